"""What the repository promises a newcomer: the README's code runs, pins are exact."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readmes_python_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in printed if len(line.split()) == 2 and line.split()[0].isdigit()]
    assert losses[-1] < losses[0]
    assert any(line.startswith("mean radius") for line in printed) and any(x.startswith("accuracy") for x in printed)


def test_the_readmes_new_method_is_found_by_its_file(tmp_path: Path, monkeypatch) -> None:
    """The file as the README shows it, put where it says, is a method with a field of its own."""
    from crmt import methods
    from crmt.fit import FitSettings, fit
    from tests.crmt.tiny import learnable, trainable

    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "METHOD = " in b)
    assert len(block.splitlines()) <= 26
    (tmp_path / "label_smoothing.py").write_text(block)
    monkeypatch.delitem(sys.modules, "crmt.methods.label_smoothing", raising=False)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "label_smoothing" in methods.method_names()
    method = methods.create("label_smoothing", label_smoothing=0.2)
    model = trainable(method.head)
    results = list(fit(model, method, learnable(model), FitSettings(epochs=3, lr=0.05)))
    assert results[-1].metrics["loss"] < results[0].metrics["loss"]


def test_what_the_readme_names_exists() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for script in set(re.findall(r"python ((?:pipelines|benchmarks)/\w+\.py)", README)):
        assert (ROOT / script).exists(), script
    for target in set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_every_benchmark_that_the_readme_names_starts() -> None:
    found = set(re.findall(r"python (-m benchmarks[\w.]*|benchmarks/\w+\.py)", README))
    assert len(found) >= 6
    for name in sorted(found):
        words = name.split() if name.startswith("-m") else [str(ROOT / name)]
        done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr[-1000:]


def test_requirements_are_exact_and_install_the_project() -> None:
    lines = [x.strip() for x in (ROOT / "requirements.txt").read_text().splitlines() if x.strip() and x[0] != "#"]
    assert lines.pop() == "-e ."
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line) for line in lines), lines
