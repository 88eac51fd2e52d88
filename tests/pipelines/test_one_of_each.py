"""From a folder outside the project, one part of every kind is added, and all of them run in one sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines import sweep
from pipelines.runs.results import ResultsStore
from tests.pipelines.own_parts import write_parts
from tests.pipelines.small import Small, one_line

COMMANDS = Path(sweep.__file__).parent


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command as a person starts it, away from the project, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(COMMANDS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        timeout=1500,
    )


def configuration(small: Small, folder: Path) -> Path:
    changes: dict[str, Any] = {
        "data": {
            "dataset": "myparts:Clips",
            "root": str(folder / "clips"),
            "modalities": {
                "video": "video",
                "audio": "audio",
                "words": {"kind": "myparts:WordCounts", "column": "text", "vocabulary": ["0", "1", "2"]},
            },
        },
        "model": {
            "encoders": {
                "video": {"path": "myparts:Frames", "width": 6},
                "audio": "myparts:sound",
                "words": "myparts:words",
            },
            "features": 9,
        },
        "train": {"method": "myparts:Smooth", "options": {"smoothing": 0.2}},
        "attack": {"names": ["pgd", "myparts:LongPGD"], "balls": ["joint", "words"]},
        "certify": {"certificates": ["estimate", {"path": "myparts:MarginShare", "share": 0.001}]},
        "sweep": {
            "trials": 2,
            "algorithm": "myparts:Halving",
            "algorithm_options": {"start": 0.4},
            "scheduler": "myparts:Patient",
            "loggers": [{"path": "myparts:Diary", "file": str(folder / "diary.txt")}],
        },
        "search": {"train.options.smoothing": {"uniform": [0.0, 0.5]}},
    }
    return small.file(folder / "mine.yaml", **changes)


def test_one_of_each_in_a_sweep_of_three_modalities(small: Small, tmp_path: Path) -> None:
    folder, run = tmp_path / "elsewhere", tmp_path / "run"
    write_parts(folder, small.folder / "manifest.csv")
    config = configuration(small, folder)
    done = command("sweep", "--config", str(config), "--out", str(run))
    assert done.returncode == 0, done.stderr + done.stdout

    store = ResultsStore(run / "results")
    trials = store.read("trials")
    assert list(trials.status) == ["finished", "finished"] and set(trials.method) == {"myparts:Smooth"}
    searched = sorted(json.loads(p)["train.options.smoothing"] for p in trials.params)
    assert searched == [0.1, 0.2]
    assert {json.loads(c)["train"]["options"]["smoothing"] for c in trials.config} == {0.1, 0.2}
    curves = store.read("curves")
    assert set(curves.attack) == {"pgd", "myparts:LongPGD"} and set(curves.ball) == {"joint", "words"}
    assert {json.loads(s)["steps"] for s in curves[curves.attack == "myparts:LongPGD"].settings} == {3}
    radii = store.read("radii")
    assert set(radii.certificate) == {"estimate", "margin_share"}
    assert set(radii.ball) == {"joint", "video", "audio", "words"}
    card = json.loads((run / "run.json").read_text())
    assert card["spaces"]["words"] == "words" and card["config"]["code"] == [str(folder)]
    assert len((folder / "diary.txt").read_text().splitlines()) == 2 * 3  # two validations and the end
    page = (run / "report.html").read_text()
    assert all(word in page for word in ("Label smoothing", "long PGD", "claimed radius"))

    model = run / str(trials.model[0])
    spec = json.loads((model / "model.json").read_text())["spec"]
    assert spec["encoders"]["video"] == {"path": "myparts:Frames", "width": 6} and spec["features"] == 9
    refused = command("evaluate", str(model), "--out", str(tmp_path / "no"))
    assert refused.returncode == 2 and "--trust-code" in one_line(refused.stderr)
    again = command("evaluate", str(model), "--trust-code", "--with", str(folder), "--out", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    before = curves[(curves.trial_id == trials.trial_id[0]) & curves.final].drop(columns="trial_id")
    after = ResultsStore(tmp_path / "again" / "results").read("curves").drop(columns="trial_id")
    assert before.reset_index(drop=True).equals(after.reset_index(drop=True))


def test_options_of_no_method_are_refused(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    write_parts(folder, small.folder / "manifest.csv")
    config = configuration(small, folder)
    raw = json.loads(config.read_text())
    raw["train"]["options"] = {"smothing": 0.2}
    config.write_text(json.dumps(raw))
    done = command("sweep", "--config", str(config), "--dry-run", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "Did you mean 'smoothing'?" in one_line(done.stderr)
