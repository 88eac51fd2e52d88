"""`crmt-sweep`: the same commands as the scripts, and every message says the command as it was typed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import console, evaluate, ingest, report, sweep, train
from pipelines.clips.cache import load_cache
from pipelines.command import run_command
from pipelines.infra import entry
from pipelines.infra.entry import CONSOLE, ROOT, typed
from pipelines.infra.storage import folder_at
from tests.pipelines.small import one_line

MODULES = {"sweep": sweep, "train": train, "evaluate": evaluate, "ingest": ingest, "report": report}
FROM_CONSOLE = [
    "-c",
    f"import sys; sys.argv[0] = '/bin/{CONSOLE}'; from pipelines.console import main; sys.exit(main())",
]


@pytest.fixture(params=["script", "console"])
def started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the process was started; gives what then comes before a command's name or is the whole of it."""
    first = "/some/bin/crmt-sweep" if request.param == "console" else str(ROOT / "pipelines" / "sweep.py")
    monkeypatch.setattr(sys, "argv", [first, "--dataset", "avdigits"])
    return str(request.param)


def written(started: str, command: str) -> str:
    return f"crmt-sweep {command}" if started == "console" else f"python pipelines/{command}.py"


def from_console(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **env}
    command = [sys.executable, *FROM_CONSOLE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_the_five_commands_are_those_of_the_scripts() -> None:
    assert set(console.COMMANDS) == set(MODULES)
    assert all((ROOT / "pipelines" / f"{name}.py").exists() for name in console.COMMANDS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_command_gets_the_rest_and_its_exit_code_comes_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def main(argv: list[str]) -> int:
        given.append(argv)
        return 7

    monkeypatch.setattr(MODULES[name], "main", main)
    assert console.main([name, "--help", "-x", "sweep"]) == 7 and given == [["--help", "-x", "sweep"]]
    monkeypatch.setattr(sys, "argv", [CONSOLE, name, "a b"])
    assert console.main() == 7 and given[-1] == ["a b"]


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["swep", "--dataset", "avdigits"]) == 2
    assert "unknown command 'swep'. Did you mean 'sweep'?" in one_line(capsys.readouterr().err)
    for wrong in ([], ["--resume"], ["--", "sweep"]):
        with pytest.raises(SystemExit) as ended:
            console.main(wrong)
        assert ended.value.code == 2 and CONSOLE in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(MODULES))
def test_usage_and_example_are_written_as_typed(
    name: str, started: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        MODULES[name].main(["--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and printed.startswith(f"usage: {written(started, name)} [")
    assert f"\n{written(started, name)} " in printed
    other = "python pipelines/" if started == "console" else CONSOLE
    assert other not in printed
    with pytest.raises(SystemExit) as ended:
        MODULES[name].main(["--no-such-option"])
    assert ended.value.code == 2 and f"{written(started, name)}: error:" in capsys.readouterr().err


def test_what_to_do_next_is_written_as_typed(
    started: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    def interrupted(_: object, after: str) -> int:
        return run_command(stopped, after)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "run_command", interrupted)
    assert sweep.main(["--dataset", "avdigits"]) == entry.INTERRUPTED
    assert f"goes on with: {written(started, 'sweep')} --resume" in one_line(capsys.readouterr().err)
    with pytest.raises(Exception, match=f"Run {written(started, 'ingest')} again"):
        load_cache(folder_at(str(tmp_path)))


def test_no_text_of_the_code_names_a_script() -> None:
    """What is printed of a command comes from `typed`; docstrings may name scripts."""
    told: list[str] = []
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        shown = [n.value for n in texts if id(n) not in docs]
        told += [
            f"{path.name}: {x}" for x in shown if re.search(r"pipelines/|(sweep|train|evaluate|ingest|report)\.py", x)
        ]
    assert {x.partition(":")[0] for x in told} == {"entry.py", "command.py"}, told


def test_without_a_clone_there_is_no_script_to_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a Ray worker on a node where the package is installed."""
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    assert typed("ingest") == "python pipelines/ingest.py"
    monkeypatch.setattr(entry, "ROOT", tmp_path)
    assert typed("ingest") == "crmt-sweep ingest"


def test_help_and_version_need_neither_torch_nor_ray() -> None:
    done = from_console("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: crmt-sweep [")
    for name, module in MODULES.items():
        assert f"{name} " in done.stdout and str(module.__doc__).split()[0] in done.stdout
    assert from_console("--version").stdout.startswith("crmt-sweep ")
    heavy = "assert not {'torch', 'ray', 'pandas', 'pydantic'} & set(sys.modules), sorted(sys.modules)"
    for arguments in (["--help"], ["sweep", "--help"], ["--version"]):
        code = f"import sys\nfrom pipelines.console import main\ntry: main({arguments!r})\nexcept SystemExit: {heavy}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr


def test_a_refusal_is_that_of_the_script() -> None:
    done = from_console("sweep", "--dataset", "avdigit")
    assert done.returncode == 2 and "Did you mean 'avdigits'" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("crmt-sweep ", {"sweep", "train", "evaluate", "ingest", "report"}),
        ("crmt-sweep ev", {"evaluate"}),
        ("crmt-sweep sweep --dry", {"--dry-run"}),
        ("crmt-sweep train --dataset vgg", {"vggsound"}),
        ("crmt-sweep train --set train.lr", {"train.lr="}),
        ("crmt-sweep evaluate MODEL --set certify.smoothing.al", {"certify.smoothing.alpha="}),
    ],
)
def test_the_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    from_console(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        _ARGCOMPLETE_SHELL="fish",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    found = {x.partition("\t")[0].strip() for x in answer.read_text().splitlines()} - {"-h", "--help", "--version"}
    assert expected <= found and (len(expected) > 1 or len(found) <= 2), found


def test_completing_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    with pytest.raises(SystemExit) as ended:
        console.main(["--help"])
    assert ended.value.code == 0


def test_our_configurations_are_found_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tune_configs/NAME.yaml is the user's where there is one, else ours; the refusal says where ours lie."""
    monkeypatch.chdir(tmp_path)
    wrong = ["--set", "train.lr=0"]  # refused once the file is read
    assert sweep.main(["--config", "tune_configs/avdigits_certified.yaml", *wrong]) == 2
    assert "train.lr" in one_line(capsys.readouterr().err)
    assert sweep.main(["--config", "tune_configs/other.yaml", *wrong]) == 2
    assert str(ROOT / "tune_configs") in one_line(capsys.readouterr().err)
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "avdigits_certified.yaml").write_text("data: [")
    assert sweep.main(["--config", "tune_configs/avdigits_certified.yaml", *wrong]) == 2
    assert "not valid YAML" in one_line(capsys.readouterr().err)
