"""Every layout with real small media, each in other codecs: from the files as people have them to a trained CRMT model.

A clip's colour, motion and tone say its class, so a model that got the right frames and sounds with the right labels
learns them in seconds; one that got another clip's does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from crmt.checkpoint import load_model
from pipelines import sources, train
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import ingest
from pipelines.config.run_config import parse
from pipelines.runs.results import ResultsStore
from tests.pipelines import layouts
from tests.pipelines.media import CODECS, class_clip
from tests.pipelines.small import merged

EACH = (9, 3)
SMALL: dict[str, Any] = {
    "data": {
        "mode": "memory",
        "decode_timeout": 600.0,  # a busy machine is no failure
        "validation_share": 0.34,
        "video": {"frames": 2, "size": 36, "crop": 32},
        "augment": {"pad": 0, "flip": False},
    },
    "model": {"encoders": {"video": "small_resnet", "audio": "small_resnet"}, "features": 64},
    "train": {"method": "crmt_jt", "epochs": 16, "batch_size": 6, "lr": 0.05, "tau_samples": 6, "step2": {"steps": 10}},
    "select": {"steps": 1, "every": 16, "samples": 4},
    "attack": {"names": ["pgd"], "epsilons": [0.5], "balls": ["joint"], "steps": 2, "samples": 4},
    "certify": {"audit_samples": 2, "audit_steps": 2, "audit_attack": "pgd"},
}
SOUND = {"data": {"audio": {"sample_rate": 8000, "seconds": 1.0, "n_fft": 512, "hop": 200, "mels": 16, "frames": 40}}}
FLOW: dict[str, Any] = {
    "data": {"flow": {"bound": 5.0}},
    "model": {"encoders": {"video": "small_resnet", "flow": "small_resnet"}, "features": 16},
    "train": {"epochs": 30},
}
SHAPES = {"video": (2, 3, 36, 36), "audio": (1, 16, 40), "flow": (2, 2, 36, 36)}


@dataclass(frozen=True)
class Case:
    """A data set, how its folder is built, in which codecs, and by which method a model is trained on it."""

    dataset: str
    build: Callable[[Path, layouts.Put], Path]
    codecs: dict[str, tuple[str, str]] = field(default_factory=lambda: CODECS)
    method: str = "crmt_jt"

    @property
    def changes(self) -> dict[str, Any]:
        more = FLOW if self.dataset == "ucf101" else SOUND
        return merged(merged(SMALL, more), {"train": {"method": self.method}})

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.changes["model"]["encoders"])


CASES = {
    "vggsound, 4 columns, H.264/AAC": Case("vggsound", lambda r, p: layouts.vggsound(r, p, each=EACH)),
    "vggsound, 2 columns, VP9/Opus": Case(
        "vggsound",
        lambda r, p: layouts.vggsound(r, p, columns=2, padded=False, nesting="split", container=".webm", each=EACH),
        method="crmt_mix",
    ),
    "kinetics_sounds, CRMT's lists, HEVC/AAC": Case(
        "kinetics_sounds",
        lambda r, p: layouts.kinetics_sounds(r, p, container=".mkv", timed=False, each=EACH),
        method="crmt_step1",
    ),
    "kinetics_sounds, OGM's lists, AV1/Opus": Case(
        "kinetics_sounds",
        lambda r, p: layouts.kinetics_sounds(r, p, lists="ogm", nesting="flat", each=EACH),
        {".mp4": ("libsvtav1", "libopus")},
        "crmt_step2",
    ),
    "kinetics_sounds, Kinetics' CSV, MPEG-4/MP3": Case(
        "kinetics_sounds",
        lambda r, p: layouts.kinetics_sounds(r, p, lists="csv", nesting="class", container=".avi", each=EACH),
    ),
    "ucf101, MPEG-4 without sound": Case("ucf101", lambda r, p: layouts.ucf101(r, p), {".avi": ("mpeg4", "")}),
    "manifest, CSV, every container": Case(
        "manifest", lambda r, p: layouts.manifest(r, p, containers=tuple(CODECS), each=EACH), method="crmt_at"
    ),
    "manifest, Parquet, H.264/PCM": Case(
        "manifest", lambda r, p: layouts.manifest(r, p, table="parquet", containers=(".mov",), each=EACH)
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, tuple[str, str]]], layouts.Put]:
    """Codecs by container to a `put` that copies one clip a class, encoded at its first use."""
    folder = tmp_path_factory.mktemp("media")

    def put_with(codecs: dict[str, tuple[str, str]]) -> layouts.Put:
        def put(path: Path, label: int) -> None:
            video, audio = codecs[path.suffix]
            source = folder / f"{video}-{audio}-{label}{path.suffix}"
            if not source.exists():
                class_clip(source, label, (video, audio))
            shutil.copy(source, path)

        return put

    return put_with


def written(folder: Path, case: Case, cache: Path) -> Path:
    """The case's settings as a file for --config."""
    file = folder / "config.json"  # JSON is YAML
    file.write_text(json.dumps(merged(case.changes, {"data": {"cache": str(cache)}})))
    return file


@pytest.mark.parametrize("name", CASES)
def test_from_files_to_a_trained_model(
    ray_cluster: None, made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case, run = CASES[name], tmp_path / "run"
    root = case.build(tmp_path / "data", made(case.codecs))
    config = written(tmp_path, case, tmp_path / "cache")
    arguments = ["--dataset", case.dataset, "--data-root", str(root), "--config", str(config), "--out", str(run)]
    assert train.main(arguments) == 0, capsys.readouterr().err
    check_cache(case, root, tmp_path / "cache")
    check_run(case, run)


def check_cache(case: Case, root: Path, cache_root: Path) -> None:
    """Every clip of the folder is a row with its own label, in its own shapes; none is missing, failed or double."""
    config = parse(merged(case.changes, {"data": {"dataset": case.dataset, "root": root, "cache": cache_root}}), "test")
    index = sources.load(config.data)
    files = [p for p in (root if root.is_dir() else root.parent).rglob("*") if p.suffix in (*CODECS, ".avi")]
    assert len(index.clips) == len(files) and set(index.clips["path"]) == {str(p) for p in files}
    cache: ClipCache = ingest(index, config.data, case.modalities, progress=False)
    rows = pd.concat([pq.read_table(part).to_pandas() for part in cache.parts]).set_index("id")
    assert cache.failed == 0 and rows.index.is_unique and sum(cache.counts.values()) == len(rows) == len(files)
    assert rows["label"].to_dict() == index.clips.set_index("id")["label"].to_dict()
    assert {m: meta.shape for m, meta in cache.modalities.items()} == {m: SHAPES[m] for m in case.modalities}
    assert len(list(cache_root.glob("clips/*/cache.json"))) == 1  # the training's own: nothing was decoded again


def check_run(case: Case, run: Path) -> None:
    """The loss fell, the classes are told apart, also by each modality alone, and model, radii and report are there."""
    store = ResultsStore(run / "results")
    trial = store.read("trials").iloc[0]
    assert trial.status == "finished" and (run / "report.html").exists()
    model, spec, _ = load_model(run / trial.model)
    assert len(spec.classes) == 3 and tuple(model.modalities) == case.modalities
    loss = store.read("epochs").query("name == 'loss'").sort_values("epoch").value
    assert loss.iloc[-1] < loss.iloc[0]
    metrics = store.read("metrics")
    final = metrics[metrics.final & (metrics.split == "test")].set_index("name")
    assert final.value["clean_accuracy"] >= 2 / 3, final.value
    alone = final.loc["unimodal_accuracy"].set_index("modality").value  # chance is a third
    assert set(alone.index) == set(case.modalities) and (alone > 0.5).all(), alone
    counts = json.loads((run / "run.json").read_text())["clips"]
    radii = store.read("radii")
    assert counts["failed"] == 0 and min(counts["train"], counts["validation"]) >= 3
    assert len(radii[radii.final & (radii.ball == "joint")]) == counts["test"]


@pytest.mark.slow
def test_the_command_of_the_readme_on_a_folder_of_vggsound(made: Any, tmp_path: Path) -> None:
    """`python pipelines/train.py --dataset vggsound --data-root DIR` from a shell, in the set's own front-ends."""
    root = layouts.vggsound(tmp_path / "data", made(CODECS), each=EACH)
    sizes = ["data.video.size=40", "data.video.crop=32", "model.features=64", "train.epochs=2", "train.batch_size=6"]
    sizes += [f"model.encoders.{m}=small_resnet" for m in ("video", "audio")]
    sizes += ["train.tau_samples=6", "train.step2.steps=10", "select.samples=4", "attack.samples=4", "attack.steps=2"]
    sizes += ["certify.audit_samples=0", "sweep.gpus_per_worker=0", "sweep.cpus_per_worker=1", "data.audio.seconds=1"]
    script = Path(train.__file__)
    command = [sys.executable, str(script), "--dataset", "vggsound", "--data-root", str(root), "--out", "run"]
    command += [part for size in sizes for part in ("--set", size)]
    own = {"RAY_ADDRESS": "local", "CRMT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    trial = ResultsStore(tmp_path / "run" / "results").read("trials").iloc[0]
    assert trial.status == "finished" and trial.epochs == 2 and (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["clips"]["failed"] == 0
