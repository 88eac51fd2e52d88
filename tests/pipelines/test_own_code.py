"""An encoder of the user's own, in a folder outside the project, through the commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import train
from pipelines.runs.results import ResultsStore
from tests.pipelines.small import Small, one_line

PIPELINES = Path(train.__file__).parent
MYNET = """
import datasets
from torch import nn

class VideoNet(nn.Module):
    def __init__(self, modality, features, depth=1):
        super().__init__()
        width = datasets.WIDTH
        layers = [nn.Conv2d(modality.shape[modality.channel_axis], width, 3, 2), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, features))

    def forward(self, x):
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
"""
LIGHT: dict[str, Any] = {
    "train": {"epochs": 1, "method": "jt"},
    "attack": {"names": ["pgd"], "balls": ["joint"], "samples": 6},
    "certify": {"audit_samples": 0},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mynet.py`, and beside it a `datasets.py` that a bare `import datasets` must find."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mynet.py").write_text(MYNET)
    (folder / "datasets.py").write_text("WIDTH = 5\n")
    return folder


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command as a user starts it, away from the project, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, str(PIPELINES / f"{command}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment | {"OMP_NUM_THREADS": "1"},
        timeout=900,
    )


@pytest.mark.slow
def test_a_users_encoder_is_trained_evaluated_and_swept(small: Small, own: Path, tmp_path: Path) -> None:
    small.decoded()
    encoders = {"video": {"path": "mynet:VideoNet", "depth": 2}, "audio": "small_resnet"}
    config = small.file(own / "mine.yaml", **LIGHT, model={"encoders": encoders, "features": 16})
    done = run("train", "--config", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "run" / "run.json").read_text())
    assert card["config"]["code"] == [str(own)]
    model = tmp_path / "run" / "models" / "train"
    assert json.loads((model / "model.json").read_text())["spec"]["encoders"]["video"] == encoders["video"]

    refused = run("evaluate", str(model), "--out", str(tmp_path / "no"))
    assert refused.returncode == 2 and "--trust-code --with DIR" in one_line(refused.stderr)
    assert not (tmp_path / "no").exists()
    half = run("evaluate", str(model), "--with", str(own), "--out", str(tmp_path / "no"))
    assert half.returncode == 2 and "add --trust-code" in one_line(half.stderr)
    done = run("evaluate", str(model), "--trust-code", "--with", str(own), "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        ResultsStore(tmp_path / name / "results").read("curves").query("final").drop(columns=["trial_id"])
        for name in ("run", "again")
    )
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))

    search = {"model.encoders.video": {"choice": ["small_resnet", {"path": "mynet:VideoNet", "depth": 3}]}}
    config = small.file(tmp_path / "sweep.yaml", **LIGHT, search=search, sweep={"algorithm": "grid"})
    done = run("sweep", "--config", str(config), "--with", str(own), "--out", str(tmp_path / "sweep"))
    assert done.returncode == 0, done.stderr + done.stdout
    trials = ResultsStore(tmp_path / "sweep" / "results").read("trials")
    assert list(trials.status) == ["finished", "finished"]
    resumed = run("sweep", "--resume", str(tmp_path / "sweep"))
    assert resumed.returncode == 0, resumed.stderr


def test_code_that_is_nowhere_is_one_line(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoders = {"video": "nowhere_at_all:Net"}
    config = str(small.file(tmp_path / "c.yaml", model={"encoders": encoders, "features": 16}))
    assert train.main(["--config", config, "--out", str(tmp_path / "run")]) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith("error: model.encoders.video: nowhere_at_all:Net") and "--with DIR" in line
    assert train.main(["--config", config, "--with", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "there is no folder" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_method_by_path_is_not_imported_to_evaluate_its_model(small: Small, own: Path, tmp_path: Path) -> None:
    (own / "mymethod.py").write_text(
        "from dataclasses import dataclass\n"
        "from crmt.methods.jt import METHOD as JT\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(JT):\n"
        "    title = 'Mine'\n"
    )
    changes = LIGHT | {"train": {"epochs": 1, "method": "mymethod:Mine"}}
    config = small.file(own / "method.yaml", **changes)
    done = run("train", "--config", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    done = run("evaluate", str(tmp_path / "run" / "models" / "train"), "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
