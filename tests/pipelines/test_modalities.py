"""Modalities as a manifest declares them, from files on disk to a trained and measured model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from crmt.checkpoint import load_model
from crmt.errors import BadInputError, CRMTError
from pipelines.clips.batches import MemoryClips, modalities_of, read_table
from pipelines.clips.ingest import ingest, look_ahead
from pipelines.clips.streaming import StreamClips, StreamIndex
from pipelines.clips.transform import Transform
from pipelines.config.run_config import RunConfig, parse
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput
from pipelines.sources.check import check
from pipelines.sweeps.preflight import check_settings
from pipelines.trials.sessions import LocalSession
from pipelines.trials.trial import run_trial
from tests.pipelines.media import ffmpeg
from tests.pipelines.small import TINY, merged

CLASSES = ("high", "low")
PER_SPLIT = {"train": 12, "validation": 4, "test": 6}
FOUR = ("camera", "rear", "speech", "lidar")
BOX = (0.0, 80.0)
MODALITIES: dict[str, Any] = {
    "camera": {"kind": "video"},
    "rear": {"kind": "video", "column": "rear", "frames": 1, "size": 24, "crop": 16},
    "speech": {"kind": "audio", "column": "wav"},
    "lidar": {
        "kind": "array",
        "column": "lidar",
        "shape": [1, 8, 8],
        "space": "metres",
        "box": list(BOX),
        "channel_axis": 0,
    },
}


def make_clips(folder: Path, rows: list[dict[str, str]]) -> None:
    """A video without sound, a folder of pictures, a .wav and a .npy for each row; one film for all is enough."""
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=32x32:rate=5:duration=1", "-pix_fmt", "yuv420p", f"file:{folder}/film.mp4"
    )
    for i, row in enumerate(rows):
        rng, low = np.random.default_rng(i), row["label"] == "low"
        (folder / row["path"]).symlink_to(folder / "film.mp4")
        pictures = folder / row["rear"]
        pictures.mkdir(parents=True)
        for k in range(3):
            grey = int(rng.integers(0, 100)) + 120 * low
            Image.new("RGB", (40, 30), (grey, 90, 90)).save(pictures / f"{k}.jpg")
        tone = f"sine=frequency={400 if low else 1500}:sample_rate=8000:duration=1"
        ffmpeg("-f", "lavfi", "-i", tone, f"file:{folder}/{row['wav']}")
        np.save(folder / row["lidar"], rng.uniform(0, 30, (1, 8, 8)) + 40 * low)


def rows_of_a_set() -> list[dict[str, str]]:
    rows = []
    for split, count in PER_SPLIT.items():
        for i in range(count):
            name = f"{split}{i}"
            files = {"path": f"{name}.mp4", "rear": f"rear/{name}", "wav": f"{name}.wav", "lidar": f"{name}.npy"}
            rows.append({**files, "label": CLASSES[i % 2], "split": split})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 clips, each in four files."""
    root = tmp_path_factory.mktemp("modalities")
    rows = rows_of_a_set()
    make_clips(root, rows)
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


def raw(root: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    data = {"root": str(root), "cache": str(cache), "modalities": MODALITIES, "augment": {"flip": True}}
    model = {"encoders": dict.fromkeys(FOUR, "small_resnet")}
    return merged(merged(TINY, {"data": data, "model": model, "train": {"noise": {"lidar": 0.5}}}), changes)


def config_of(root: Path, cache: Path, **changes: Any) -> RunConfig:
    return parse(raw(root, cache, **changes), "a test")


def test_four_modalities_from_files_to_a_measured_model(ray_cluster: None, folder: Path, tmp_path: Path) -> None:
    attack = {"balls": ["joint", "lidar"], "product": {"speech": [0.5], "lidar": [1.0]}, "names": ["pgd"]}
    config = config_of(folder, tmp_path, attack=attack, train={"epochs": 5, "batch_size": 4})
    check_settings(config)
    index = look_ahead(config.data)
    assert index is not None and not index.listing.missing_in()
    cache = ingest(index, config.data, FOUR, progress=False)
    assert cache.failed == 0 and cache.counts == PER_SPLIT
    assert {name: meta.shape for name, meta in cache.modalities.items()} == {
        "camera": (2, 3, 32, 32),
        "rear": (1, 3, 24, 24),
        "speech": (1, 16, 48),
        "lidar": (1, 8, 8),
    }
    table, transform = read_table(cache, FOUR), Transform.of(cache, config.data)
    for i, clip in enumerate(table.ids):
        stored = np.load(folder / clip.replace(".mp4", ".npy")).astype(np.float32)
        assert np.array_equal(table.arrays["lidar"][i], stored)
    modalities = modalities_of(cache, config.data, FOUR)
    assert [m.space for m in modalities] == ["pixels in [0, 1]"] * 2 + ["standardised log-mel", "metres"]
    assert modalities[3].box == BOX and 20 < modalities[3].mean[0] < 50

    memory, stream = MemoryClips(table, transform), StreamClips(StreamIndex.of(cache, FOUR), transform)
    for one, other in zip(memory.ordered("test"), stream.ordered("test"), strict=True):
        assert one.ids == other.ids and all(torch.equal(one.inputs[name], other.inputs[name]) for name in FOUR)

    run = tmp_path / "run"
    given = TrialInput(run, modalities, cache.classes, {"clips_sha256": cache.clips_sha256})
    report = run_trial(config, given, memory, LocalSession("t0", run))
    assert report["finished"] and report["clean_accuracy"] > 0.6
    store = ResultsStore(run / "results")
    curves = store.read("curves")
    assert {"joint", "lidar"} <= set(curves[curves.final].ball)
    assert "lidar: metres" in curves[curves.final].space.iloc[0]
    assert set(store.read("radii").ball) == {"joint", *FOUR}
    _, spec, card = load_model(run / report["model"])
    assert spec.modalities == modalities
    assert set(card["front_end"]["constants"]) == {"speech"}
    again = transform.with_front_end(card["front_end"])
    assert again.constants == transform.constants


def broken(folder: Path, target: Path) -> Path:
    """The same set with a clip without lidar, one whose .npy is gone, one of another shape, one outside the box, and
    one of which nothing is there."""
    target.mkdir()
    table = pd.read_csv(folder / "manifest.csv").astype(str)
    for column in ("path", "rear", "wav", "lidar"):
        table[column] = [str(folder / name) for name in table[column]]
    np.save(target / "flat.npy", np.zeros((8, 8)))
    np.save(target / "far.npy", np.full((1, 8, 8), 81.0))
    table.loc[0, "lidar"] = ""
    table.loc[1, "lidar"] = "gone.npy"
    table.loc[2, "lidar"] = "flat.npy"
    table.loc[3, "lidar"] = "far.npy"
    table.loc[4, ["wav", "lidar"]] = ""
    table.to_csv(target / "manifest.csv", index=False)
    return target


def test_absent_and_wrong_arrays_are_quarantined_or_kept(ray_cluster: None, folder: Path, tmp_path: Path) -> None:
    root, names = broken(folder, tmp_path / "broken"), ("speech", "lidar")

    def quarantine(missing: str) -> dict[str, str]:
        config = config_of(root, tmp_path, data={"missing_modality": missing, "max_failure_share": 0.5})
        index = look_ahead(config.data)
        assert index is not None and [len(index.listing.missing_in([c])) for c in ("wav", "lidar")] == [0, 1]
        cache = ingest(index, config.data, names, progress=False)
        assert cache.quarantine["detail"].str.startswith(names).all()
        if missing == "keep":
            assert cache.incomplete == {"lidar": 1}
            table, transform = read_table(cache, names), Transform.of(cache, config.data)
            (position,) = np.flatnonzero(~table.arrays["present_lidar"])
            lacking = transform({m: a[[position]] for m, a in table.arrays.items()}, None, torch.device("cpu"))
            mean = table.arrays["lidar"][(table.splits == "train") & table.arrays["present_lidar"]].mean()
            np.testing.assert_allclose(lacking["lidar"].numpy(), mean, rtol=1e-5)
        found = cache.quarantine.assign(name=[Path(i).stem for i in cache.quarantine.clip_id])
        return found.set_index("name").reason.to_dict()

    wrong = {"train1": "missing", "train2": "wrong_shape", "train3": "bad_values"}
    assert quarantine("keep") == {**wrong, "train4": "absent"}
    assert quarantine("drop") == {**wrong, "train0": "absent", "train4": "absent"}
    strict = config_of(root, tmp_path / "fresh", data={"max_failure_share": 0.01})  # no finished set to open
    index = look_ahead(strict.data)
    assert index is not None
    with pytest.raises(CRMTError, match="1 of 22 clips of manifest have no file"):
        ingest(index, strict.data, names, progress=False)


def test_the_check_counts_each_column(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    root = broken(folder, tmp_path / "broken")
    data = config_of(root, tmp_path, data={"max_failure_share": 0.1}).data
    assert check(data, tmp_path / "out.csv", Console(width=200)) == 0
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "column " in line}
    assert "20 files named, 1 of them missing; 2 clips without" in lines["column lidar"]
    assert "21 files named, 0 of them missing; 1 clips without" in lines["column wav"]
    assert "22 files named, 0 of them missing; 0 clips without" in lines["column rear"]
    misfits = pd.read_csv(tmp_path / "out.csv")
    assert misfits[misfits.reason == "missing"].detail.tolist() == [str(root / "gone.npy")]


def test_a_table_of_extracted_files_needs_no_clip(ray_cluster: None, folder: Path, tmp_path: Path) -> None:
    """OGM-GE's folders: a folder of frames and a .wav a clip; `path` is then but a name."""
    table = pd.read_csv(folder / "manifest.csv").astype(str)
    for column in ("rear", "wav"):
        table[column] = [str(folder / name) for name in table[column]]
    table["path"] = [Path(name).stem for name in table["path"]]
    table[["path", "label", "split", "rear", "wav"]].to_csv(tmp_path / "manifest.csv", index=False)
    modalities = {"video": {"kind": "video", "column": "rear"}, "audio": {"kind": "audio", "column": "wav"}}
    data = {**raw(tmp_path, tmp_path)["data"], "modalities": modalities}
    config = parse({**TINY, "data": data}, "a test")
    index = look_ahead(config.data)
    assert index is not None and not index.listing.missing_in()
    cache = ingest(index, config.data, ("video", "audio"), progress=False)
    assert cache.failed == 0 and cache.modalities["video"].shape == (2, 3, 32, 32)


def test_a_modality_that_is_not_declared(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path, model={"encoders": {"lidar": "small_resnet", "video": "small_resnet"}})
    with pytest.raises(BadInputError, match=r"camera and rear and speech and lidar, not video"):
        check_settings(config)


# ---- CAV-MAE's lists


def write_cav_mae(root: Path, folder: Path) -> Path:
    """Its lists and folders on the sounds above: pictures at frames/frame_0/ID.jpg and so on."""
    root.mkdir()
    lists: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for i, row in enumerate(rows_of_a_set()):
        clip = f"-x_{i:03d}abcdefgh"[:11] + "_000030"
        for second in range(4):
            (root / "frames" / f"frame_{second}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * second, 90, 90)).save(root / "frames" / f"frame_{second}" / f"{clip}.jpg")
        label = "/m/04rlf" if row["label"] == "high" else "/m/07pjwq1"
        entry = {"wav": str(folder / row["wav"]), "labels": label, "video_id": clip, "video_path": "frames"}
        lists["test" if row["split"] == "test" else "train"].append(entry)
    lists["train"].append({**lists["train"][0], "video_id": "several", "labels": "/m/04rlf,/m/07pjwq1"})
    lists["train"].append({**lists["train"][0], "video_id": "gone"})
    for split, entries in lists.items():
        (root / f"{split}.json").write_text(json.dumps({"data": entries}))
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/07pjwq1,"Buzz, low"\n1,/m/0unused,No\n2,/m/04rlf,Music\n'
    )
    return root


def test_cav_maes_lists(ray_cluster: None, folder: Path, tmp_path: Path) -> None:
    root = write_cav_mae(tmp_path / "set", folder)
    modalities = {"video": {"kind": "video", "column": "frames"}, "audio": "audio"}
    data = {**raw(root, tmp_path)["data"], "dataset": "cav_mae", "modalities": modalities, "max_failure_share": 0.1}
    config = parse({**TINY, "data": data}, "a test")
    index = look_ahead(config.data)
    assert index is not None and index.classes == ("Buzz, low", "Music") and len(index) == 23
    assert index.listing.counts()["several_labels"] == 1 and index.listing.missing_in() == {"gone"}
    assert all(not group.endswith("_000030") for group in index.clips.group)
    cache = ingest(index, config.data, ("video", "audio"), progress=False)
    assert cache.quarantine.set_index("clip_id").reason.to_dict() == {"gone": "missing"}
    table = read_table(cache, ("video", "audio"))
    red = table.arrays["video"][:, :, 0].mean((2, 3))
    np.testing.assert_allclose(red, np.broadcast_to([60.0, 180.0], red.shape), atol=3)  # the middles of two halves
    with pytest.raises(BadInputError, match=r"pictures in `frames`\. Set data\.modalities"):
        look_ahead(config.data.model_copy(update={"modalities": {}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no list `data`"),
        ('{"data": [{"video_id": "a"}]}', "clip 1 has no text as `labels`"),
        ('{"data": [{"video_id": "a", "labels": "/m/none", "wav": "a.wav"}]}', "does not name the label '/m/none'"),
        ('{"data": [{"video_id": "a", "labels": "/m/04rlf,/m/07pjwq1"}]}', "have several labels"),
    ],
)
def test_mistakes_in_cav_maes_lists(tmp_path: Path, content: str, message: str) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/04rlf,Music\n")
    modalities = {"video": {"kind": "video", "column": "frames"}, "audio": "audio"}
    config = parse({"data": {"dataset": "cav_mae", "root": str(tmp_path), "modalities": modalities}}, "a test")
    with pytest.raises(BadInputError, match=message):
        look_ahead(config.data)
