"""Clip lists: carving, limits, manifests with every mistake that people make, and avdigits' clips themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from crmt.errors import BadInputError
from pipelines import sources
from pipelines.config.paths import cache_root
from pipelines.config.schema import AudioConfig, DataConfig, VideoConfig
from pipelines.decoding.clip import decode_clip
from pipelines.sources import avdigits
from pipelines.sources.index import ClipIndex, with_validation, without_overlap

VIDEO = VideoConfig(frames=2, size=32, crop=32)
AUDIO = AudioConfig(
    sample_rate=8000, seconds=1.0, n_fft=512, window=400, hop=166, mels=32, fmin=300, fmax=3400, offset=1e-4, frames=48
)


def make_index(groups: list[int], labels: list[int], splits: list[str] | None = None, folder: str = "/a") -> ClipIndex:
    ids = [f"{i:03d}" for i in range(len(groups))]
    columns = {"id": ids, "path": [f"{folder}/{i}.mp4" for i in ids], "label": labels}
    clips = pd.DataFrame({**columns, "split": splits or ["train"] * len(ids), "group": [f"v{g}" for g in groups]})
    return ClipIndex("made", tuple("abc"), clips)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 2), st.sampled_from(["train", "train", "test"])), max_size=60
    ),
    st.floats(0.01, 0.85),
    st.integers(0, 5),
)
def test_carved_groups_never_straddle_and_no_class_leaves_train(
    rows: list[tuple[int, int, str]], share: float, seed: int
) -> None:
    if not rows:
        return
    groups, labels, _ = (list(column) for column in zip(*rows, strict=True))
    split_of = {group: split for group, _, split in rows}  # a group lies in one split
    index = make_index(groups, labels, [split_of[group] for group in groups])
    try:
        carved = with_validation(index, share, seed).clips
    except BadInputError:
        return
    assert with_validation(index, share, seed).clips.equals(carved)
    train, validation = (carved[carved["split"] == s] for s in ("train", "validation"))
    assert len(validation) and not set(train["group"]) & set(validation["group"])
    assert set(train["label"]) == set(index.clips.loc[index.clips["split"] == "train", "label"])
    before = index.clips[index.clips["split"] == "train"]
    assert validation["group"].nunique() <= max(1, round(share * before["group"].nunique()))
    assert carved[carved["split"] == "test"].equals(index.clips[index.clips["split"] == "test"])


def test_carving_takes_the_share_and_follows_the_seed() -> None:
    index = make_index(list(range(200)), [i % 3 for i in range(200)])
    chosen = [set(with_validation(index, 0.15, s).clips.query("split == 'validation'")["id"]) for s in (0, 0, 1)]
    assert len(chosen[0]) == 30 and chosen[0] == chosen[1] != chosen[2]


def test_a_list_with_validation_stays_as_it_is() -> None:
    index = make_index([0, 1, 2], [0, 1, 2], ["train", "validation", "test"])
    assert with_validation(index, 0.5, 0) is index


def test_no_group_to_spare_is_said() -> None:
    with pytest.raises(BadInputError, match="no clips can be carved"):
        with_validation(make_index([0, 0, 1, 2], [0, 0, 1, 2]), 0.2, 0)


def test_the_sha_is_of_the_list_and_not_of_the_machine() -> None:
    index = make_index([0, 1, 2], [0, 1, 2])
    assert index.sha256 == make_index([0, 1, 2], [0, 1, 2], folder="/elsewhere").sha256
    assert index.sha256 != make_index([0, 1, 1], [0, 1, 2]).sha256
    assert index.sha256 != make_index([0, 1, 2], [0, 1, 1]).sha256
    assert index.sha256 != with_validation(make_index([0, 1, 2, 3], [0, 1, 2, 2]), 0.2, 0).sha256


def test_limited_takes_at_most_n_of_each_split_and_every_class() -> None:
    index = make_index(list(range(90)), [i % 3 for i in range(90)], ["train", "train", "test"] * 10 + ["train"] * 60)
    small = index.limited(5, 0)
    assert small.clips["split"].value_counts().to_dict() == {"train": 5, "test": 5}
    assert set(small.clips.loc[small.clips["split"] == "train", "label"]) == {0, 1, 2}
    assert small.sha256 == index.limited(5, 0).sha256 != index.limited(5, 1).sha256
    assert len(index.limited(1000, 0)) == 90


@pytest.mark.parametrize(
    ("change", "message"),
    [({"id": "x"}, "more than once"), ({"split": "dev"}, "unknown split 'dev'"), ({"label": 7}, "between 0 and 2")],
)
def test_an_index_refuses_nonsense(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ClipIndex("made", tuple("abc"), make_index([0, 1], [0, 1]).clips.assign(**change))


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_a_source_video_in_two_splits_is_refused(splits: tuple[str, str]) -> None:
    rest = ["train", "validation", "test"]
    with pytest.raises(BadInputError, match=f"group 'v1' .* lies in {splits[0]} and {splits[1]};"):
        make_index([0, 3, 4, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2], [*rest, *reversed(splits), *splits])


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(BadInputError, match="Did you mean 'avdigits'"):
        sources.load(DataConfig(dataset="avdigit"))
    assert sources.names() == ["avdigits", "cav_mae", "kinetics_sounds", "manifest", "ucf101", "vggsound"]


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRMT_CACHE", str(tmp_path / "env"))
    assert cache_root(DataConfig()) == tmp_path / "env"
    assert cache_root(DataConfig(cache=tmp_path)) == tmp_path
    monkeypatch.delenv("CRMT_CACHE")
    assert cache_root(DataConfig()) == Path.home() / ".cache" / "crmt-sweep"


def write_manifest(folder: Path, rows: str, header: str = "path,label,split") -> DataConfig:
    (folder / "manifest.csv").write_text(f"{header}\n{rows}")
    return DataConfig(dataset="manifest", root=folder, validation_share=0.3)


GOOD = """clips/a.mp4,dog,train
clips/b.mp4,"bird chirping, tweeting",train
clips/c.mp4,dog,train
/far/d.mp4,"bird chirping, tweeting",train
clips/e.mp4,dog,test
"""


def test_manifest(tmp_path: Path) -> None:
    index = sources.load(write_manifest(tmp_path, GOOD))
    assert index.classes == ("bird chirping, tweeting", "dog")
    clips = index.clips.set_index("id")
    assert clips.loc["clips/a.mp4", "path"] == str(tmp_path / "clips/a.mp4") and clips.loc["clips/a.mp4", "label"] == 1
    assert clips.loc["/far/d.mp4", "path"] == "/far/d.mp4"
    assert clips["split"].value_counts().to_dict() == {"train": 3, "validation": 1, "test": 1}
    direct = sources.load(DataConfig(dataset="manifest", root=tmp_path / "manifest.csv", validation_share=0.3))
    assert direct.sha256 == index.sha256


def test_manifest_as_parquet_with_groups_and_other_columns(tmp_path: Path) -> None:
    rows = [(f"{i}.mp4", i % 2, "test" if i > 7 else "train", f"v{i // 4}", i * 1.5) for i in range(10)]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "group", "extra"])
    table.to_parquet(tmp_path / "m.parquet")
    index = sources.load(DataConfig(dataset="manifest", root=tmp_path / "m.parquet", validation_share=0.3))
    assert index.classes == ("0", "1") and index.clips["extra"].tolist() == [str(i * 1.5) for i in range(10)]
    assert index.sha256 == dataclasses.replace(index, clips=index.clips.drop(columns="extra")).sha256
    assert index.clips.groupby("group")["split"].nunique().loc[["v0", "v1"]].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,label", "a.mp4,dog\n", "no column split"),
        ("path,label,split", "", "no rows"),
        (
            "path,label,split",
            "a.mp4,dog,train\nb.mp4,cat,trian\n",
            "row 2: unknown split 'trian'. Did you mean 'train'",
        ),
        ("path,label,split", "a.mp4,dog,train\nb.mp4,cat,train\n", "no row has the split `test`"),
        ("path,label,split", "a.mp4,dog,test\nb.mp4,cat,test\n", "no row has the split `train`"),
        ("path,label,split", "a.mp4,dog,train\nb.mp4,dog,test\n", "two classes"),
        ("path,label,split", "a.mp4,dog,train\nb.mp4,cat,test\n", "'cat' has no clip in train"),
        ("path,label,split", "a.mp4,dog,train\na.mp4,cat,test\n", "row 2: 'a.mp4' is listed a second time"),
        ("path,label,split", "a.mp4,,train\n", "row 1 has no label"),
        (
            "path,label,split,group",
            "a.mp4,dog,train,x\nb.mp4,cat,train,y\nc.mp4,cat,test,y\n",
            "'y' .* train and test",
        ),
        ("path,label,split", 'a.mp4,"dog,train\n', "cannot be read|no rows|has no"),
    ],
)
def test_manifest_mistakes(tmp_path: Path, header: str, rows: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        sources.load(write_manifest(tmp_path, rows, header))


def test_manifest_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--data-root"):
        sources.load(DataConfig(dataset="manifest"))
    with pytest.raises(BadInputError, match=r"no file .*manifest\.csv"):
        sources.load(DataConfig(dataset="manifest", root=tmp_path))


@pytest.mark.parametrize("path", ["./clips/a.mp4", "clips/../clips/a.mp4"])
def test_a_file_under_two_names_is_listed_twice(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadInputError, match=r"row 6: .*a\.mp4' is listed a second time"):
        sources.load(write_manifest(tmp_path, f"{GOOD}{path},dog,test\n"))


def test_spaces_around_labels_change_nothing_and_commas_at_the_ends_are_refused(tmp_path: Path) -> None:
    plain = sources.load(write_manifest(tmp_path, GOOD))
    found = sources.load(write_manifest(tmp_path, GOOD.replace("dog", " dog ").replace("train", "train ")))
    assert found.classes == plain.classes and found.clips.equals(plain.clips)
    with pytest.raises(BadInputError, match="more cells than the header"):
        sources.load(write_manifest(tmp_path, GOOD.replace("\n", ",\n")))


def test_a_parquet_manifest_may_be_shuffled_filtered_or_indexed(tmp_path: Path) -> None:
    table = pd.read_csv(write_manifest(tmp_path, GOOD).root / "manifest.csv")
    plain = sources.load(DataConfig(dataset="manifest", root=tmp_path / "manifest.csv"))
    for stored in (table.sample(frac=1, random_state=0), table.set_index("path")):
        stored.to_parquet(tmp_path / "m.parquet")
        found = sources.load(DataConfig(dataset="manifest", root=tmp_path / "m.parquet"))
        assert found.clips.equals(plain.clips)


@pytest.mark.parametrize("column", ["path", "label", "split"])
def test_an_empty_cell_of_a_parquet_manifest_is_named(tmp_path: Path, column: str) -> None:
    table = pd.read_csv(write_manifest(tmp_path, GOOD).root / "manifest.csv")
    table.loc[2, column] = None
    table.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(BadInputError, match=f"row 3 has no {column}"):
        sources.load(DataConfig(dataset="manifest", root=tmp_path / "m.parquet"))


def test_a_manifests_columns_that_mean_something_else_here_get_another_name(tmp_path: Path) -> None:
    rows = "a.mp4,x,train,9,f\nb.mp4,y,train,8,g\nc.mp4,x,train,7,h\nd.mp4,y,train,6,i\ne.mp4,y,test,5,j\n"
    index = sources.load(write_manifest(tmp_path, rows, "path,label,split,id,fingerprint"))
    assert index.clips["manifest_id"].tolist() == list("98765") and index.clips["id"][0] == "a.mp4"
    assert index.clips["manifest_fingerprint"].tolist() == list("fghij") and "fingerprint" not in index.clips


def test_a_manifest_knows_what_is_missing_and_what_lies_beside(tmp_path: Path) -> None:
    odd = "new\nline, 'quoted'.mp4"
    data = write_manifest(tmp_path, f'{GOOD}"clips/{odd}",dog,train\nclips/-ü.mp4,dog,train\n')
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", odd, "-ü.mp4", "other.webm", "other.txt"):
        (tmp_path / "clips" / name).touch()
    listing = sources.load(data).listing
    assert listing.missing == {"clips/b.mp4", "clips/c.mp4", "/far/d.mp4", "clips/e.mp4"}
    assert listing.unlisted == (str(tmp_path / "clips/other.webm"),)
    assert list(listing.lists) == [str(tmp_path / "manifest.csv")]


def test_a_manifests_overlap_can_be_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{i}.mp4,{'xy'[i % 2]},{'test' if i > 7 else 'train'},{i % 9}\n" for i in range(10))
    data = write_manifest(tmp_path, rows, "path,label,split,group")
    with pytest.raises(BadInputError, match=r"group '0' .* train and test; 1 such group .*data\.on_overlap=drop_train"):
        sources.load(data)
    index = sources.load(data.model_copy(update={"on_overlap": "drop_train"}))
    assert index.listing.left_out.to_dict("records") == [
        {"id": "0.mp4", "split": "train", "reason": "overlap", "detail": "source video 0 is in test"}
    ]
    assert len(index) == 9


def test_test_keeps_its_clips_then_validation() -> None:
    index = pd.DataFrame(
        [("a", "train", 1), ("b", "validation", 1), ("c", "test", 2), ("d", "validation", 2), ("e", "train", 3)],
        columns=["id", "split", "group"],
    ).astype(str)
    kept, left_out = without_overlap("made", index, "drop_train")
    assert kept["id"].tolist() == ["b", "c", "e"] and left_out["id"].tolist() == ["a", "d"]


def test_a_limit_that_loses_classes_is_refused(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, GOOD).model_copy(update={"limit": 1})
    with pytest.raises(BadInputError, match="Give at least 2"):
        sources.load(data)


@pytest.mark.parametrize("label", range(10))
def test_the_tones_are_the_digits_dtmf_pair(label: int) -> None:
    recipe = dataclasses.replace(avdigits.RECIPE, tone_db=(20.0, 20.0), duration=(0.4, 0.4))
    _, wave = avdigits.make_clip(np.zeros((8, 8)), label, np.random.default_rng(label), recipe)
    spectrum = np.abs(np.fft.rfft(wave))
    for low, high, expected in [(600, 1075, avdigits.DTMF[label][0]), (1075, 1600, avdigits.DTMF[label][1])]:
        assert abs(low + spectrum[low:high].argmax() - expected) <= 0.011 * expected + 2  # one bin a hertz


def test_clips_are_drawn_from_their_seed_alone() -> None:
    digit = load_digits().images[5]
    first, again, other = (avdigits.make_clip(digit, 5, np.random.default_rng([s, 5])) for s in (0, 0, 1))
    assert first[0].shape == (8, 32, 32, 3) and first[0].dtype == np.uint8
    assert first[1].shape == (8000,) and first[1].dtype == np.float32 and np.abs(first[1]).max() <= 1
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_the_digit_is_seen_and_moves() -> None:
    calm = dataclasses.replace(avdigits.RECIPE, clutter=0.0, pixel_noise=0.0, background=(0.0, 0.0))
    frames, _ = avdigits.make_clip(load_digits().images[0], 0, np.random.default_rng(3), calm)
    ink = (frames.mean(-1) > 10).reshape(8, -1).sum(1)
    assert (ink > 80).all() and (np.abs(np.diff(ink)) < 40).all()
    assert not np.array_equal(frames[0], frames[-1])


def test_every_constant_of_the_recipe_names_another_folder() -> None:
    recipe = avdigits.RECIPE
    hashes = {recipe.hash}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        changed = value + "x" if isinstance(value, str) else (0.11, 0.12) if isinstance(value, tuple) else value + 1
        hashes.add(dataclasses.replace(recipe, **{field.name: changed}).hash)
    assert len(hashes) == len(dataclasses.fields(recipe)) + 1


def test_generated_clips_survive_their_codecs(ray_cluster: None, tmp_path: Path) -> None:
    index = avdigits.generate(tmp_path, images=12, progress=False)
    assert len(index) == 12 and set(index.clips["split"]) <= {"train", "test"}
    digits = load_digits()
    for clip in index.clips.itertuples():
        number = int(str(clip.id))
        assert clip.label == digits.target[number]
        drawn, _ = avdigits.make_clip(
            digits.images[number], int(digits.target[number]), np.random.default_rng([0, number])
        )
        decoded = decode_clip(Path(str(clip.path)), VIDEO, AUDIO, 30)
        assert decoded.frames is not None and decoded.audio is not None
        kept = np.corrcoef(decoded.frames.mean(-1).ravel(), drawn[[2, 6]].mean(-1).ravel())[0, 1]
        assert kept > 0.9
        assert decoded.audio.shape == (1, 32, 48) and decoded.audio.std() > 0.3
    # whatever is missing is made again, the same; the rest is left alone
    first, second = (Path(p) for p in index.clips["path"][:2])
    content, time = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    again = avdigits.generate(tmp_path, images=12, progress=False)
    assert first.read_bytes() == content and second.stat().st_mtime_ns == time and again.sha256 == index.sha256


def test_the_split_is_fixed() -> None:
    table = avdigits._table(avdigits.RECIPE)
    assert table["split"].value_counts().to_dict() == {"train": 1200, "test": 597}
    assert table["split"].equals(avdigits._table(avdigits.RECIPE)["split"])
