"""How rows of lists and files find each other in odd cases: one file for two rows, lists beside, limits."""

from __future__ import annotations

from pathlib import Path

from tests.pipelines import layouts
from tests.pipelines.sources.test_published import load, refused


def test_a_file_that_two_rows_name_is_one_clip(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists="ogm")
    train = root / "my_train.txt"
    lines = train.read_text().splitlines()
    stem, _, label = lines[0].split(",")
    video, start = stem[:11], int(stem[12:18])
    train.write_text("\n".join([*lines, f"{video}_{start},10,{label}"]))
    index = load("kinetics_sounds", root)
    assert index.listing.counts()["repeated"] == 1 and len(index) == len(set(index.clips["path"]))
    train.write_text("\n".join([*lines, f"{video}_{start},10,{int(label) + 1}"]))
    assert f"{video}_{start}" in refused("kinetics_sounds", root)


def test_classes_beside_given_lists_are_read(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists="csv")
    whole = load("kinetics_sounds", root)
    (root / "train.csv").rename(root / "mine.csv")
    given = load("kinetics_sounds", root, lists={"train": "mine.csv", "test": "test.csv"})
    assert given.clips.equals(whole.clips) and given.classes == whole.classes


def test_a_limit_knows_which_of_its_own_clips_are_missing(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path, each=(20, 5))
    for path in sorted(root.rglob("*.mp4"))[::9]:
        path.unlink()
    index = load("vggsound", root, limit=15)
    gone = {row.id for row in index.clips.itertuples() if not Path(row.path).exists()}
    assert 0 < len(gone) < len(load("vggsound", root).listing.missing) and index.listing.missing == gone
