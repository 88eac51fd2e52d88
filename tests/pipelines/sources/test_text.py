"""Names that look alike: one text in two Unicode forms, labels that differ in case, one file under two names."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from crmt.errors import BadInputError
from pipelines import sources
from pipelines.config.schema import DataConfig
from pipelines.sources import check as check_module
from pipelines.sources.files import on_disk, one_group_a_file
from pipelines.sources.index import ClipIndex
from pipelines.sources.text import alike, one_text
from tests.pipelines import layouts

NFC = "café"
NFD = unicodedata.normalize("NFD", NFC)
ROWS = [("a.mp4", "dog", "train"), ("b.mp4", "cat", "train"), ("c.mp4", "dog", "train"), ("d.mp4", "cat", "train"),
        ("e.mp4", "dog", "test")]  # fmt: skip


def manifest(folder: Path, rows: list[tuple[str, ...]], header: str = "path,label,split") -> DataConfig:
    lines = [header, *(",".join(row) for row in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return DataConfig(dataset="manifest", root=folder, validation_share=0.3)


@pytest.mark.parametrize("other", [NFD, "ca\u200bfé", f"{NFC}\ufeff", f" {NFD}\u2060 "])
def test_a_label_in_two_forms_is_one_class(tmp_path: Path, other: str) -> None:
    rows = [("a.mp4", NFC, "train"), ("b.mp4", "cat", "train"), ("c.mp4", "cat", "train"), ("d.mp4", other, "test")]
    index = sources.load(manifest(tmp_path, [*rows, ("e.mp4", other, "train")]))
    assert index.classes == (NFC, "cat") and alike(index.classes) == []


def test_a_published_lists_label_in_two_forms_is_one_class(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path, each=(20, 5))
    lines = (root / "vggsound.csv").read_text().splitlines()
    plain = sources.load(DataConfig(dataset="vggsound", root=root))
    name = plain.classes[0]
    forms = [f"{name}é", f"{name}{unicodedata.normalize('NFD', 'é')}"]
    swapped = [line.replace(name, forms[i % 2]) for i, line in enumerate(lines)]
    (root / "vggsound.csv").write_text("\n".join(swapped), encoding="utf-8")
    index = sources.load(DataConfig(dataset="vggsound", root=root))
    assert len(index.classes) == len(plain.classes) and forms[0] in index.classes


def test_a_loader_of_ones_own_gets_one_class_too() -> None:
    clips = pd.DataFrame({"id": list("abc"), "path": "x", "label": [0, 1, 2], "split": "train", "group": list("abc")})
    index = sources._one_class_each(ClipIndex("own", (NFC, "cat", NFD), clips))
    assert index.classes == (NFC, "cat") and index.clips["label"].tolist() == [0, 1, 0]


def test_labels_that_differ_in_case_alone_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, ("f.mp4", "Dog", "train")]
    for row in rows:
        (tmp_path / row[0]).write_bytes(b"clip")
    data = manifest(tmp_path, rows)
    assert alike(sources.load(data).classes) == ["labels 'Dog' and 'dog' differ in case alone: they are 2 classes"]
    assert check_module.check(data, tmp_path / "out.csv") == 0
    assert "differ in case alone" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_path_is_found_in_either_form(tmp_path: Path, listed: str, there: str) -> None:
    folder = tmp_path / there
    folder.mkdir()
    (folder / f"{there}.mp4").touch()
    (path,) = on_disk([str(tmp_path / listed / f"{listed}.mp4")])
    assert path == str(folder / f"{there}.mp4") and Path(path).exists()
    rows = [(f"{listed}/{listed}.mp4", "dog", "train"), *ROWS[1:]]
    listing = sources.load(manifest(tmp_path, rows)).listing
    assert len(listing.missing) == 4 and rows[0][0] not in listing.missing and listing.unlisted == ()


def test_a_path_that_is_nowhere_stays_and_two_files_that_look_alike_stay_two(tmp_path: Path) -> None:
    for form in (NFC, NFD):
        (tmp_path / f"{form}.mp4").touch()
    paths = [str(tmp_path / f"{form}.mp4") for form in (NFC, NFD)]
    if len(list(tmp_path.iterdir())) == 2:  # some disks know one form only
        assert on_disk(paths) == paths
    for odd in ("", str(tmp_path / "no.mp4"), str(tmp_path / "no" / NFD / "a.mp4"), f"{tmp_path}/", "a.mp4"):
        assert on_disk([odd]) == [odd]
    (tmp_path / NFC).mkdir()
    assert on_disk([str(tmp_path / NFD / "frame_*" / "a.jpg")]) == [str(tmp_path / NFC / "frame_*" / "a.jpg")]


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_one_file_under_two_names_in_two_splits_is_an_overlap(
    tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in ROWS[:4]:
        (tmp_path / row[0]).write_bytes(row[0].encode())
    if link == "hard":
        (tmp_path / "e.mp4").hardlink_to(tmp_path / "a.mp4")
    else:
        (tmp_path / "e.mp4").symlink_to(tmp_path / "a.mp4")
    data = manifest(tmp_path, ROWS)
    with pytest.raises(BadInputError, match=r"a\.mp4: one file, a\.mp4 = e\.mp4'.* lies in train and test"):
        sources.load(data)
    report = tmp_path / "out.csv"
    assert check_module.check(data, report) == 1
    assert "1 clips share a source video with another split" in capsys.readouterr().err
    assert "a.mp4,train,overlap" in report.read_text()
    dropped = sources.load(data.model_copy(update={"on_overlap": "drop_train"}))
    assert set(dropped.clips["id"]) == {"b.mp4", "c.mp4", "d.mp4", "e.mp4"}


def test_a_link_in_a_published_set_is_an_overlap(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path, each=(20, 5))
    data = DataConfig(dataset="vggsound", root=root)
    clips = sources.load(data).clips
    train, test = (clips.loc[clips["split"] == split, "path"].iloc[0] for split in ("train", "test"))
    Path(test).unlink()
    Path(test).symlink_to(train)
    with pytest.raises(BadInputError, match=r"one file, .* = .* lies in train and test"):
        sources.load(data)
    index = sources.load(data.model_copy(update={"on_overlap": "drop_train"}))
    assert len(index) == len(clips) - 1 and index.listing.counts()["overlap"] == 1


def test_names_of_one_file_in_one_split_stay_together() -> None:
    """Or the validation split could take one of them."""
    here = str(Path(__file__))
    clips = pd.DataFrame({"id": list("abcd"), "path": [here, "/no", here, "/no"], "group": ["x", "y", "z", "z"]})
    groups = one_group_a_file(clips)["group"]
    assert groups[0] == groups[2] == groups[3] != groups[1]
    sound = clips.assign(wav=["/1", "/2", "/3", "/4"])  # one film and four sounds are four clips
    assert one_group_a_file(sound, ["path", "wav"])["group"].tolist() == ["x", "y", "z", "z"]
    apart = clips.assign(path=["/a", "/b", "/c", "/d"])
    assert one_group_a_file(apart)["group"].tolist() == ["x", "y", "z", "z"]


def test_one_text() -> None:
    assert one_text(NFD) == one_text("ca\u200df\u00adé") == NFC and one_text("a b") == "a b"
