"""What `pip install` gives: ranges that hold the tested pins, and a wheel that works where no clone is."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.pipelines.small import Small

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
PACKAGES = ("crmt", "pipelines", "tune_configs")


def pinned(requirement: Requirement) -> Version:
    [only] = requirement.specifier
    assert only.operator == "==", requirement
    return Version(only.version)


def test_dependencies_are_ranges_that_begin_with_the_tested_pins() -> None:
    """The cap is the next release that may break: a major one, or below 1 a minor one."""
    ranges = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    assert list(ranges) == [pin.name for pin in PINS]
    for pin in PINS:
        found, version = ranges[pin.name], pinned(pin)
        cap = str(version.major + 1) if version.major else f"0.{version.minor + 1}"
        assert found.extras == pin.extras
        assert {(s.operator, s.version) for s in found.specifier} == {(">=", str(version)), ("<", cap)}


def test_extras_are_exact_and_one_package_has_one_version() -> None:
    versions: dict[str, set[Version]] = {}
    for requirement in [*PINS, *(Requirement(x) for extra in PROJECT["optional-dependencies"].values() for x in extra)]:
        versions.setdefault(requirement.name, set()).add(pinned(requirement))
    assert {name for name, found in versions.items() if len(found) > 1} == set()
    assert {"aws", "completion", "dev", "timm"} <= set(PROJECT["optional-dependencies"])


def tracked() -> set[str]:
    """Every file of our packages that the repository holds."""
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the repository holds, by the setuptools that is here."""
    copy = tmp_path_factory.mktemp("copy")
    for name in (*tracked(), "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    out = copy / "wheels"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, copy], check=True, timeout=300)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment with the wheel, that borrows the other packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, timeout=120)
    [here] = (folder / "lib").glob("python*/site-packages")
    (here / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([command, *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_our_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not re.match(r"crmt_sweep-[\d.]+\.dist-info/", name)}
        [metadata] = [archive.read(x).decode() for x in archive.namelist() if x.endswith("METADATA")]
    assert names == tracked()
    assert {"pipelines/reporting/static/report.js", "tune_configs/avdigits.yaml"} < names
    assert "Requires-Python: <3.14,>=3.11" in metadata and "Provides-Extra: aws" in metadata


@pytest.mark.slow
def test_the_installed_command_works_where_no_clone_is(installed: Path, tmp_path: Path) -> None:
    command = installed / "crmt-sweep"
    done = run(command, "--version", cwd=tmp_path)
    assert done.stdout.strip() == f"crmt-sweep {PROJECT['version']}", done.stderr
    where = (
        "import pipelines, crmt, pipelines.config.reading as r; print(pipelines.__file__, crmt.__file__, r.CONFIG_DIR)"
    )
    lies = run(installed / "python", "-c", where, cwd=tmp_path).stdout.split()
    assert len(lies) == 3 and all(path.startswith(str(installed.parent)) for path in lies)
    assert run(command, "--help", cwd=tmp_path).stdout.startswith("usage: crmt-sweep")
    assert run(command, "sweep", "--help", cwd=tmp_path).stdout.startswith("usage: crmt-sweep sweep")
    for arguments, message in (
        (["--dataset", "avdigits", "--dry-run", "--set", "train.epoch=3"], "Did you mean 'train.epochs'"),
        (["--dataset", "avdigit", "--dry-run"], "Did you mean 'avdigits'"),
        (["--dataset", "vggsound", "--dry-run"], "vggsound.csv"),
        (["--config", "tune_configs/avdigits_certified.yaml", "--set", "train.lr=0"], "train.lr"),
        (["--config", "none.yaml"], f"In {lies[2]} there are: avdigits"),
        (["--resume"], f"under {tmp_path / 'runs'}"),
    ):
        done = run(command, "sweep", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_installed_command_trains_and_reports(installed: Path, small: Small, tmp_path: Path) -> None:
    """The report's templates, styles and names are there; the run says what made it, though there is no commit."""
    light = {"attack": {"names": ["fgm"], "samples": 4}, "certify": {"audit_samples": 0}, "train": {"epochs": 1}}
    config = str(small.file(tmp_path / "config.json", **light))
    command = installed / "crmt-sweep"
    done = run(command, "train", "--dataset", "manifest", "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    card = (folder / "run.json").read_text()
    assert '"command": "crmt-sweep train' in card and '"commit": null' in card
    assert f'"crmt-sweep": "{PROJECT["version"]}"' in card
    (folder / "report.html").unlink()
    assert run(command, "report", str(folder), cwd=tmp_path).returncode == 0
    assert "<style>" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_installed_command(installed: Path, tmp_path: Path) -> None:
    """As a user sets it up: the function that argcomplete registers, asked by bash itself."""
    script = f"""
    PATH={installed}:{Path(sys.executable).parent}:$PATH
    eval "$(register-python-argcomplete crmt-sweep)"
    COMP_LINE="crmt-sweep sweep --dry" COMP_POINT=22 COMP_WORDS=(crmt-sweep sweep --dry) COMP_CWORD=2 COMP_TYPE=9
    _python_argcomplete crmt-sweep --dry sweep
    echo "${{COMPREPLY[@]}}"
    """
    done = run(Path(shutil.which("bash") or ""), "-c", script, cwd=tmp_path)
    assert done.stdout.split() == ["--dry-run"], done
