"""The layouts of published data sets, as people have them: every naming, nesting and list, and what can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmt.errors import BadInputError
from pipelines import sources
from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex, overlapping
from pipelines.sources.text import one_text
from tests.pipelines import layouts


def load(name: str, root: Path | None, **fields: object) -> ClipIndex:
    return sources.load(DataConfig.model_validate({"dataset": name, "root": root, "validation_share": 0.25} | fields))


def refused(name: str, root: Path | None, **fields: object) -> str:
    """The message, which is one line."""
    with pytest.raises(BadInputError) as caught:
        load(name, root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts(index: ClipIndex) -> dict[str, int]:
    return {str(k): int(v) for k, v in index.clips["split"].value_counts().items()}


def all_found(index: ClipIndex) -> bool:
    return not index.listing.missing and all(Path(path).is_file() for path in index.clips["path"])


@pytest.mark.parametrize("nesting", ["flat", "split", "class"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("container", [".mp4", ".webm", ".MKV"])
def test_vggsound_however_its_clips_lie(tmp_path: Path, nesting: str, padded: bool, container: str) -> None:
    root = layouts.vggsound(tmp_path, nesting=nesting, padded=padded, container=container)  # type: ignore[arg-type]
    index = load("vggsound", root)
    assert index.classes == tuple(sorted(layouts.VGG_LABELS))
    assert all_found(index) and not index.listing.unlisted
    assert counts(index) == {"train": 9, "validation": 3, "test": 6}
    for clip in index.clips.itertuples():
        assert str(clip.id).startswith(str(clip.group) + "_") and len(str(clip.id)) == 18
        assert Path(str(clip.path)).stem.startswith(str(clip.group))


def test_both_lists_of_vggsound_are_the_same_index(tmp_path: Path) -> None:
    four = load("vggsound", layouts.vggsound(tmp_path / "four"))
    two = load("vggsound", layouts.vggsound(tmp_path / "two", columns=2, padded=False))
    assert four.sha256 == two.sha256 and len(four.listing.lists) == 1 and len(two.listing.lists) == 2
    (four_file,) = four.listing.lists
    assert four.listing.lists[four_file] != next(iter(two.listing.lists.values()))


def test_the_case_of_an_id_counts(tmp_path: Path) -> None:
    (tmp_path / "vggsound.csv").write_text("abcdefghijk,1,a,train\nABCdefghijk,1,b,train\nzbcdefghijk,1,a,train\n"
                                           "ybcdefghijk,1,b,train\nxbcdefghijk,1,a,test\n")  # fmt: skip
    for name in ("abcdefghijk_1.mp4", "zbcdefghijk_1.mp4", "ybcdefghijk_1.mp4", "xbcdefghijk_1.mp4"):
        (tmp_path / name).touch()
    index = load("vggsound", tmp_path)
    assert index.listing.missing == {"ABCdefghijk_000001"}
    path = index.clips.set_index("id")["path"]
    assert path["ABCdefghijk_000001"] == str(tmp_path / "ABCdefghijk_000001.mp4")  # quarantined as missing by ingest
    assert path["abcdefghijk_000001"] == str(tmp_path / "abcdefghijk_1.mp4")


def test_a_header_and_a_mark_are_passed_over(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path)
    before = load("vggsound", root).sha256
    text = (root / "vggsound.csv").read_text()
    (root / "vggsound.csv").write_text("\ufeffyoutube_id,start_seconds,label,split\n" + text, encoding="utf-8")
    assert load("vggsound", root).sha256 == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc,x,dog,train", "line 19: start_seconds must be a whole number, 0 or more, not 'x'"),
        ("abc,-1,dog,train", "line 19: start_seconds"),
        ("abc,1,dog,trian", "line 19: unknown split 'trian'. Did you mean 'train'"),
        ("abc,1,dog", "line 19: 3 columns"),
        ("abc,1,,train", "line 19: no label"),
        (",1,dog,train", "line 19: '' is no youtube_id"),
        ("abc_000001.mp4,dog", "line 19: two columns do not tell the split"),
        ('abc,1,"dog,train', "line 19: unexpected end of data"),
        ('abc,1,"dog"s,train', "line 19: "),
        ("FIRST,0,dog,train", "label 'dog', but 'people marching' in vggsound.csv line 1. Take one"),
        ("new,0,dog,test", "1 of 4 classes have no clip in train, 'dog' first"),
    ],
)
def test_a_bad_line_of_vggsound_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = layouts.vggsound(tmp_path)
    first = (root / "vggsound.csv").read_text().partition(",")[0]
    with (root / "vggsound.csv").open("a") as file:
        file.write(line.replace("FIRST", first) + "\n")
    assert message in refused("vggsound", root)


def test_repeated_rows_count_once_and_are_reported(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path)
    before = load("vggsound", root)
    text = (root / "vggsound.csv").read_text()
    (root / "vggsound.csv").write_text(text + text.splitlines()[3] + "\n")
    index = load("vggsound", root)
    assert index.sha256 == before.sha256 and index.listing.lists != before.listing.lists
    left_out = index.listing.left_out
    assert left_out["reason"].tolist() == ["repeated"]
    assert left_out["detail"].tolist() == ["vggsound.csv line 19, after vggsound.csv line 4"]
    assert index.listing.counts()["repeated"] == 1


def test_an_overlap_by_source_video_is_refused_or_left_out_of_train(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path)
    tested = next(line for line in (root / "vggsound.csv").read_text().splitlines() if line.endswith("test"))
    video = tested.partition(",")[0]
    with (root / "vggsound.csv").open("a") as file:
        file.write(f"{video},777,people marching,train\n")
        file.write(f"{tested.removesuffix('test')}train\n")  # the very same clip
    (root / f"{video}_777.mp4").touch()
    message = refused("vggsound", root)
    assert repr(video) in message and "train and test" in message and "data.on_overlap=drop_train" in message
    index = load("vggsound", root, on_overlap="drop_train")
    assert overlapping(index.clips).empty and counts(index) == {"train": 9, "validation": 3, "test": 6}
    left_out = index.listing.left_out
    assert set(left_out["reason"]) == {"overlap"} and set(left_out["split"]) == {"train"} and len(left_out) == 2
    assert set(left_out["detail"]) == {f"source video {video} is in test"}
    assert index.listing.summary()["counts"]["overlap"] == 2 and not index.listing.unlisted


@pytest.mark.parametrize("lists", ["crmt", "ogm", "csv"])
@pytest.mark.parametrize("nesting", ["flat", "split", "class"])
@pytest.mark.parametrize("container", [".mp4", ".mkv"])
def test_kinetics_sounds_by_every_list(tmp_path: Path, lists: str, nesting: str, container: str) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists=lists, nesting=nesting, container=container)  # type: ignore[arg-type]
    index = load("kinetics_sounds", root)
    assert index.classes == (tuple(sorted(layouts.KINETICS_LABELS)) if lists == "csv" else ("0", "1", "2"))
    assert all_found(index) and not index.listing.unlisted
    assert counts(index) == {"train": 9, "validation": 3, "test": 6}
    assert all(len(group) == 11 and Path(path).name.startswith(group) for group, path in
               zip(index.clips["group"], index.clips["path"], strict=True))  # fmt: skip


def test_a_name_without_a_time_finds_the_bare_file_first(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, timed=False)
    index = load("kinetics_sounds", root)
    test = index.clips[index.clips["split"] == "test"]
    assert all_found(index) and all(Path(p).stem == clip for p, clip in zip(test["path"], test["id"], strict=True))
    extra = Path(test["path"].iloc[0]).with_name(f"{test['id'].iloc[0]}_000003_000013.mp4")
    extra.touch()
    again = load("kinetics_sounds", root)
    assert again.clips["path"].equals(index.clips["path"]) and again.listing.unlisted == (str(extra),)


def test_a_class_file_names_the_numbers(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path)
    (root / "classes.txt").write_text("x\ny\nz\n")
    assert load("kinetics_sounds", root).classes == ("x", "y", "z")
    (root / "classes.txt").write_text("x\ny\n")
    assert "label 2, but classes.txt names 2 (0 to 1)" in refused("kinetics_sounds", root)
    (root / "classes.txt").write_text("x\ny\nx\n")
    assert "'x' is named twice" in refused("kinetics_sounds", root)


def test_of_kinetics_cuts_that_begin_together_the_listed_end_is_taken(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists="crmt", nesting="flat")
    clip = next(root.glob("*_000000_000010.mp4"))
    (root / clip.name.replace("_000010", "_000005")).touch()
    index = load("kinetics_sounds", root)
    assert str(clip) in set(index.clips["path"])


def test_kinetics_csv_needs_its_class_file_and_checks_it(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists="csv")
    index = load("kinetics_sounds", root)
    assert "18 of 19 rows are of the 3 classes in classes.txt" in index.listing.notes
    (root / "classes.txt").write_text("playing acordion\nsinging\n")
    assert "Did you mean 'playing accordion'" in refused("kinetics_sounds", root)
    (root / "classes.txt").unlink()
    assert "write the classes to keep into classes.txt" in refused("kinetics_sounds", root)


def test_kinetics_validation_rows_are_the_test_split_where_there_are_none(tmp_path: Path) -> None:
    root = layouts.kinetics_sounds(tmp_path, lists="csv")
    (root / "test.csv").rename(root / "validate.csv")
    index = load("kinetics_sounds", root)
    assert counts(index) == {"train": 9, "validation": 3, "test": 6}
    assert any("validation rows are the test split" in note for note in index.listing.notes)
    named = {"train": "train.csv", "validation": "validate.csv", "classes": "classes.txt"}
    assert load("kinetics_sounds", root, lists=named).sha256 == index.sha256
    whole = (root / "train.csv").read_text() + "\n" + (root / "validate.csv").read_text().partition("\n")[2]
    (root / "kinetics.csv").write_text(whole)
    index = load("kinetics_sounds", root, lists={"all": "kinetics.csv", "classes": "classes.txt"})
    assert counts(index) == {"train": 9, "validation": 3, "test": 6}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tooshort_000001_000011 1", "ks_train_overlap.txt line 13: 'tooshort_000001_000011' is not a YouTube id"),
        ("-24HxQDHOAM_000001_000011", "line 13: '-24HxQDHOAM_000001_000011' is neither"),
        ("-24HxQDHOAM_000001_000011 one", "line 13: the label must be a whole number"),
        ("-24HxQDHOAM_000001_000011,1", "line 13: "),
        ("-24HxQDHOAM_000001_000011 7", "4 of 8 classes have no clip in train, '3' first"),
    ],
)
def test_a_bad_line_of_kinetics_sounds_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = layouts.kinetics_sounds(tmp_path)
    with (root / "ks_train_overlap.txt").open("a") as file:
        file.write(line + "\n")
    assert message in refused("kinetics_sounds", root)


def test_two_pairs_of_lists_must_be_chosen_from(tmp_path: Path) -> None:
    layouts.kinetics_sounds(tmp_path, lists="ogm")
    layouts.kinetics_sounds(tmp_path, lists="crmt")
    message = refused("kinetics_sounds", tmp_path)
    assert "ks_train_overlap.txt + ks_test_overlap.txt or my_train.txt + my_test.txt" in message
    index = load("kinetics_sounds", tmp_path, lists={"train": "my_train.txt", "test": "my_test.txt"})
    assert {Path(file).name for file in index.listing.lists} == {"my_train.txt", "my_test.txt"}
    message = refused("kinetics_sounds", tmp_path, lists={"train": "my_train.txt"})
    assert "`train` and `test`" in message
    assert "gone.txt, which is no file" in refused("kinetics_sounds", tmp_path, lists={"train": "gone.txt"})
    with pytest.raises(ValueError, match="data"):
        DataConfig.model_validate({"lists": {"data": "x.txt"}})


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_ucf101_in_its_three_splits(tmp_path: Path, split: int, flat: bool) -> None:
    index = load("ucf101", layouts.ucf101(tmp_path, flat=flat), split=split)
    assert index.classes == layouts.UCF_LABELS and all_found(index) and not index.listing.unlisted
    test = index.clips[index.clips["split"] == "test"]
    assert set(test["group"]) == {f"{name}_g0{g}" for name in layouts.UCF_LABELS for g in (split, split + 3)}
    assert (test["group"].str.partition("_")[0] == test["label"].map(dict(enumerate(index.classes)))).all()
    assert counts(index) == {"train": 18, "validation": 6, "test": 12}
    assert overlapping(index.clips).empty


def test_ucf101_in_another_container_with_lists_in_the_root(tmp_path: Path) -> None:
    layouts.ucf101(tmp_path, container=".mp4")
    for file in list((tmp_path / "ucfTrainTestlist").iterdir()):
        file.rename(tmp_path / file.name)
    assert all_found(load("ucf101", tmp_path))


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("trainlist01.txt", "YoYo/v_YoYo_g09_c01.avi 1", "trainlist01.txt line 25: label 1 is not YoYo"),
        ("trainlist01.txt", "YoYo/v_YoYo_g09_c01.avi 9", "trainlist01.txt line 25: label 9 is not YoYo"),
        ("trainlist01.txt", "Yo/v_Yo_g09_c01.avi 1", "no folder that is a class of classInd.txt"),
        ("testlist01.txt", "v_YoYo_g09_c01.avi", "testlist01.txt line 13: 'v_YoYo_g09_c01.avi' has no folder"),
        ("testlist01.txt", "YoYo/v_YoYo.avi", "line 13: 'v_YoYo.avi' is not v_<class>_gXX_cYY"),
        ("classInd.txt", "9 More", "classInd.txt line 4: expected `4 <class>`, found '9 More'"),
        ("trainlist01.txt", "YoYo/v_YoYo_g01_c09.avi 3", "'YoYo_g01' (clips of one source video) lies in train and"),
    ],
)
def test_a_bad_line_of_ucf101_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    root = layouts.ucf101(tmp_path)
    with (root / "ucfTrainTestlist" / file).open("a") as handle:
        handle.write(line + "\n")
    assert message in refused("ucf101", root)


LOOKED_FOR = {
    "vggsound": ["vggsound.csv", "train.csv and test.csv", "{youtube_id}_{start:06d}.mp4"],
    "kinetics_sounds": ["ks_train_overlap.txt and ks_test_overlap.txt", "my_train.txt and my_test.txt", "classes.txt"],
    "ucf101": ["classInd.txt", "trainlist01.txt", "testlist01.txt", "ucfTrainTestlist", "UCF-101/ApplyEyeMakeup/"],
}


@pytest.mark.parametrize("name", sorted(LOOKED_FOR))
def test_nothing_found_says_what_was_looked_for_and_where(tmp_path: Path, name: str) -> None:
    message = refused(name, tmp_path)
    assert str(tmp_path) in message and all(part in message for part in LOOKED_FOR[name])
    assert "--data-root DIR" in refused(name, None)
    assert "/nowhere is not a folder" in refused(name, Path("/nowhere"))


@pytest.mark.parametrize("name", sorted(LOOKED_FOR))
def test_lists_without_a_single_clip_say_what_lies_there_instead(tmp_path: Path, name: str) -> None:
    root = getattr(layouts, name)(tmp_path, put=lambda path, label: path.with_suffix(".txt").touch())
    message = refused(name, root)
    assert "none of the listed clips was found" in message and "no clip file lies there" in message
    (root / "sub").mkdir(exist_ok=True)
    (root / "sub" / "holiday.mp4").touch()
    assert "1 clip files lie there, 'sub/holiday.mp4' first" in refused(name, root)


@pytest.mark.parametrize("name", sorted(LOOKED_FOR))
def test_empty_lists_are_refused(tmp_path: Path, name: str) -> None:
    root = getattr(layouts, name)(tmp_path)
    for file in root.rglob("*list0*.txt"):
        file.write_text("")
    for file in [*root.glob("*.csv"), *root.glob("ks*.txt")]:
        file.write_text("\n\n")
    assert "no clips in" in refused(name, root)


def test_what_is_no_clip_or_no_utf8_or_hidden(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path, nesting="class")
    clip = Path(load("vggsound", root).clips["path"][0])
    for extra in (".wav", ".npy", ".jpg", ".mp4.part"):  # what preprocessing and downloads leave beside a clip
        clip.with_suffix(extra).touch()
    (clip.parent / f"._{clip.name}").touch()
    odd = os.fsencode(clip.parent) + b"/caf\xe9.mp4"
    with open(odd, "wb"):  # noqa: PTH123 - a name in Latin-1
        pass
    index = load("vggsound", root)
    assert index.listing.unlisted == (os.fsdecode(odd),) and not index.listing.several
    os.rename(os.fsencode(clip.parent), os.fsencode(clip.parent.parent) + b"/\xe9")  # noqa: PTH104
    assert "is not UTF-8" in refused("vggsound", root)


def test_of_several_files_the_same_is_always_taken(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path, nesting="split", container=".webm")
    clip = Path(load("vggsound", root).clips["path"][0])
    (root / "zz").mkdir()
    (root / "zz" / f"{clip.stem}.mp4").touch()
    index = load("vggsound", root)
    first = index.clips.iloc[0]
    assert first["path"] == str(root / "zz" / f"{clip.stem}.mp4")
    assert index.listing.several == {first["id"]: (first["path"], str(clip))}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    store = layouts.vggsound(tmp_path / "store", nesting="class")
    root = tmp_path / "root"
    root.mkdir()
    (root / "vggsound.csv").write_bytes((store / "vggsound.csv").read_bytes())
    (root / "clips").symlink_to(store / "videos")
    (store / "videos" / "again").symlink_to(store / "videos")
    (store / "videos" / "up").symlink_to(root)
    index = load("vggsound", root)
    assert all_found(index) and not index.listing.several
    assert all(path.startswith(f"{root}/clips/") for path in index.clips["path"])


def test_a_folder_that_may_not_be_read_stops_nothing_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the lost+found of a disk. Root may read everything, so the system's refusal is made up."""
    root = layouts.vggsound(tmp_path)
    (root / "locked").mkdir()
    scan = os.scandir

    def scandir(folder: str) -> object:
        if folder in closed:
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = {str(root / "locked")}
    index = load("vggsound", root)
    assert all_found(index) and any("locked" in note for note in index.listing.notes)
    closed = {str(root)}
    assert "cannot be read: Permission denied" in refused("vggsound", root)


ODD_LABELS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: text.strip() == one_text(text).strip() == text
)


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(ODD_LABELS, min_size=2, max_size=3, unique=True), folder=st.sampled_from(["ü ' \"", "-x", "a\nb"])
)
def test_any_label_and_folder_name(tmp_path_factory: pytest.TempPathFactory, labels: list[str], folder: str) -> None:
    root = tmp_path_factory.mktemp("odd") / folder
    root.mkdir()
    lines = []
    for number, (label, split) in enumerate((la, s) for la in labels for s in ("train", "train", "test")):
        quoted = '"' + label.replace('"', '""') + '"'
        lines.append(f"{layouts.video_id(number)},{number},{quoted},{split}")
        (root / f"{layouts.video_id(number)}_{number}.mp4").touch()
    (root / "vggsound.csv").write_text("\r\n".join(lines), encoding="utf-8")
    index = load("vggsound", root)
    assert index.classes == tuple(sorted(labels)) and all_found(index)


def test_a_label_of_nothing_that_can_be_seen_is_said(tmp_path: Path) -> None:
    root = layouts.vggsound(tmp_path)
    with (root / "vggsound.csv").open("a", encoding="utf-8") as file:
        file.write("\n---g-f_I2yQ,77,\u00ad\u200b,train\n")
    assert "nothing that can be seen" in refused("vggsound", root)


LISTS = {
    "vggsound": ["vggsound.csv"],
    "kinetics_sounds": ["ks_train_overlap.txt", "classes.txt"],
    "ucf101": ["ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"],
}
NOISE = st.one_of(
    st.binary(max_size=40),
    st.text("0123456789,_ /.\"'\n\r\0-ab", max_size=60).map(str.encode),
    st.integers(1, 6000).map(lambda n: b"-24HxQDHOAM_" + b"9" * n + b" 1,2,3,train"),
)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in LISTS.items() for file in files])
def test_noise_in_a_list_is_a_line_of_error_or_no_harm(tmp_path: Path, name: str, file: str) -> None:
    root = getattr(layouts, name)(tmp_path)
    whole = (root / file).read_bytes() if (root / file).exists() else b"x\ny\nz\n"

    @settings(deadline=None, max_examples=60)
    @given(noise=NOISE, at=st.integers(0, len(whole)), cut=st.integers(0, 30))
    def attempt(noise: bytes, at: int, cut: int) -> None:
        (root / file).write_bytes(whole[:at] + noise + whole[at + cut :])
        try:
            index = load(name, root)
        except BadInputError as error:
            assert "\n" not in str(error)
        else:
            assert len(index) and all("\0" not in path for path in index.clips["path"])

    attempt()


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    assert "only ucf101 has three splits" in refused("vggsound", layouts.vggsound(tmp_path), split=2)
    assert "data.lists takes no effect with manifest" in refused("manifest", tmp_path, lists={"all": "x.csv"})
    assert "reads no list with the role 'classes'" in refused("vggsound", tmp_path, lists={"classes": "vggsound.csv"})


def test_the_same_index_whatever_the_order_on_disk(tmp_path: Path) -> None:
    root = layouts.ucf101(tmp_path)
    index = load("ucf101", root)
    for path in sorted(root.rglob("*.avi"), reverse=True):
        content = path.with_suffix(".moved")
        path.rename(content)
        content.rename(path)
    again = load("ucf101", root)
    assert again.clips.equals(index.clips) and again.sha256 == index.sha256
