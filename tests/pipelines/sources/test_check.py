"""`ingest.py --check`: what it counts, writes and exits with; and that it neither decodes nor starts Ray."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pandas as pd
import pytest
import ray

from pipelines import ingest
from pipelines.config.run_config import load_config
from pipelines.sources.files import clip_files
from tests.pipelines import layouts

BARE = "data: {validation_share: 0.25}\n"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide terminal, and a cache of its own."""
    monkeypatch.setenv("COLUMNS", "250")
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CRMT_CACHE", str(cache))
    return cache


def run(name: str, root: Path, *more: str) -> int:
    """The command, with a configuration of nothing but defaults."""
    config = root.parent / "bare.yaml"
    config.write_text(BARE)
    return ingest.main(["--dataset", name, "--data-root", str(root), "--config", str(config), "--check", *more])


def misfits(file: Path) -> list[tuple[str, ...]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as handle:
        rows = [tuple(row) for row in csv.reader(handle)]
    assert rows[0] == ("clip", "split", "reason", "detail")
    return rows[1:]


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    row = next(line for line in text.splitlines() if line.strip("│ ").startswith(first))
    return [cell.strip() for cell in row.strip("│ ").split("│")]


@pytest.mark.parametrize("name", ["vggsound", "kinetics_sounds", "ucf101"])
def test_a_whole_set_is_usable_and_nothing_is_decoded(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], wide: Path
) -> None:
    root = getattr(layouts, name)(tmp_path / "set")
    before = ray.is_initialized()
    assert run(name, root) == 0  # the clips are empty files: decoding one would fail
    assert ray.is_initialized() == before
    out = capsys.readouterr().out
    assert "Usable as it is." in out and cells(out, "missing on disk")[1] == "0 (0.0%)"
    classes, file = sorted((wide / "checks").iterdir(), key=lambda f: not f.stem.endswith("-classes"))
    assert misfits(file) == [] and {f"every misfit: {file}", f"every class: {classes}"} <= set(out.splitlines())
    counts = pd.read_csv(classes)
    for split in ("train", "validation", "test"):
        assert counts[f"{split} listed"].tolist() == counts[f"{split} found"].tolist()
    assert counts.drop(columns="class").to_numpy().sum() == 2 * len(list(clip_files(root)[0]))
    assert len([line for line in out.splitlines() if "SHA-256" in line]) >= 2


def test_everything_is_counted_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.vggsound(tmp_path / "set", each=(20, 5), nesting="split")
    lines = (root / "vggsound.csv").read_text().splitlines()
    clips = sorted((root / "train").iterdir())
    clips[0].unlink()
    clips[1].rename(root / "strange\nname.mp4")
    (root / "twice").mkdir()
    (root / "twice" / clips[2].name).touch()
    video = next(line for line in lines if line.endswith("test")).partition(",")[0]
    more = [lines[0], f"{video},777,people marching,train"]
    (root / "vggsound.csv").write_text("\n".join([*lines, *more]))
    report = tmp_path / "reports" / "misfits.csv"
    assert run("vggsound", root, str(report)) == 1
    out, err = capsys.readouterr()
    assert err == (
        "not usable: 1 clips share a source video with another split; leave them out with data.on_overlap=drop_train\n"
    )
    train, held, test = (cells(out, split) for split in ("train", "validation", "test"))
    assert [int(a) + int(b) for a, b in zip(train[1:4], held[1:4], strict=True)] == [60, 58, 2]
    assert test[1:] == ["15", "15", "0", "15", "5", "5", "5"]
    assert cells(out, "missing on disk")[1] == "2 (2.7%)"
    assert cells(out, "unlisted clip files")[1] == cells(out, "listed more than once")[1] == "1"
    assert cells(out, "overlap of splits")[1] == "1 source videos, 1 clips (data.on_overlap: error)"
    assert "unlisted: '" in out and r"strange\nname.mp4" in out
    reasons = {reason: (clip, detail) for clip, _, reason, detail in misfits(report)}
    assert sorted(reason for _, _, reason, _ in misfits(report)) == [
        "missing", "missing", "overlap", "repeated", "several_files", "unlisted",
    ]  # fmt: skip
    assert reasons["unlisted"] == ("", str(root / "strange\nname.mp4"))
    assert reasons["overlap"] == (f"{video}_000777", f"source video {video} is in test")
    assert reasons["several_files"][0] == clips[2].stem
    assert run("vggsound", root, str(report), "--set", "data.on_overlap=drop_train") == 0


def test_the_missing_share_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.ucf101(tmp_path / "set")
    for path in sorted(root.rglob("*c02.avi"))[:4]:
        path.unlink()
    assert run("ucf101", root) == 1
    assert capsys.readouterr().err == "not usable: 11.1% of the clips are missing; data.max_failure_share allows 5%\n"
    assert run("ucf101", root, "--set", "data.max_failure_share=0.2") == 0


def test_a_class_or_a_split_without_a_file_is_not_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.kinetics_sounds(tmp_path / "set", each=(40, 2))
    for path in (root / "test").iterdir():
        path.unlink()
    assert run("kinetics_sounds", root) == 1
    assert capsys.readouterr().err == "not usable: no clip of the test split was found\n"
    listed = [line.split() for line in (root / "ks_train_overlap.txt").read_text().splitlines()]
    for name, label in listed:
        if label == "1":
            (root / "train" / f"{name}.mp4").unlink()
    assert run("kinetics_sounds", root, "--set", "data.max_failure_share=1") == 1
    assert "not usable: 1 classes have no train clip on disk, '1' first" in capsys.readouterr().err


def test_a_manifest_and_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    root.mkdir()
    rows = [f"{i}.mp4,{'xy'[i % 2]},{'test' if i > 7 else 'train'}" for i in range(10)]
    (root / "manifest.csv").write_text("path,label,split\n" + "\n".join(rows))
    for i in range(10):
        (root / f"{i}.mp4").touch()
    os.rename(os.fsencode(root / "3.mp4"), os.fsencode(root) + b"/\xff\x1b[31m.mp4")  # noqa: PTH104
    report = tmp_path / "misfits.csv"
    assert run("manifest", root, str(report), "--set", "data.max_failure_share=0.2") == 0
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and r"\udcff\x1b[31m.mp4" in out
    assert sorted(reason for _, _, reason, _ in misfits(report)) == ["missing", "unlisted"]
    assert b"\xff\x1b[31m.mp4" in report.read_bytes()


def test_bad_lists_and_nothing_to_check_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    root.mkdir()
    assert run("vggsound", root) == 2
    assert "vggsound.csv" in capsys.readouterr().err
    assert ingest.main(["--dataset", "avdigits", "--check"]) == 2
    assert "nothing on disk to check" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vggsound", "kinetics_sounds", "ucf101"])
def test_the_shipped_configuration_takes_the_layout(tmp_path: Path, name: str) -> None:
    root = getattr(layouts, name)(tmp_path / "set", **({"groups": 20} if name == "ucf101" else {"each": (20, 5)}))
    assert ingest.main(["--dataset", name, "--data-root", str(root), "--check", str(tmp_path / "out.csv")]) == 0
    config = load_config(Path(__file__).parents[3] / "tune_configs" / f"{name}.yaml")
    assert set(config.model.encoders) == ({"video", "flow"} if name == "ucf101" else {"video", "audio"})
