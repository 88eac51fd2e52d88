"""Kinds of modalities: what a configuration may say of them, and that the default ones are what they always were."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from crmt.errors import BadInputError
from pipelines.clips.batches import ClipTable, MemoryClips, expected_modalities
from pipelines.clips.cache import cache_key
from pipelines.clips.ingest import look_ahead
from pipelines.clips.kinds import KINDS, ModalityMeta, kinds_of
from pipelines.clips.placement import CPU, Placement
from pipelines.clips.random_choices import RandomChoices
from pipelines.clips.rows import add_clip, decode_rows, empty_sums, encode_row, schema_of, statistics
from pipelines.clips.transform import Transform
from pipelines.config.run_config import RunConfig, parse, with_values
from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex

VIDEO = {"frames": 2, "candidates": 3, "size": 12, "crop": 8}
LIDAR = {"kind": "array", "column": "lidar", "shape": [6, 2], "space": "metres", "box": [0, 80]}


def data_config(modalities: dict[str, Any] | None = None, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"video": VIDEO, "modalities": modalities or {}, **changes})


# ---- as it always was


def made_up() -> ClipTable:
    rng, n = np.random.default_rng(5), 9
    arrays = {
        "video": rng.integers(0, 256, (n, 6, 3, 12, 12), dtype=np.uint8),
        "audio": rng.normal(3, 2, (n, 1, 4, 10)).astype(np.float16),
        "flow": rng.integers(1, 256, (n, 6, 2, 12, 12), dtype=np.uint8),
    }
    return ClipTable(np.array([f"{i}" for i in range(n)]), np.arange(n) % 2, np.array(["train"] * n), arrays)


ALIKE = [{}, {"video": "video", "audio": {"kind": "audio"}, "flow": "flow"}]
"""Two ways to say the same."""


@pytest.mark.parametrize("modalities", ALIKE)
def test_the_default_batches_are_those_of_before_modalities_were_declared(modalities: dict[str, Any]) -> None:
    augment = {"pad": 2, "time_shift": 3, "gain": 0.5}
    transform = Transform(data_config(modalities, augment=augment), {"audio": (3.0, 2.0)})
    found = hashlib.sha256()
    for batch in MemoryClips(made_up(), transform).training(2, 4, 11):
        for name, values in batch.inputs.items():
            found.update(name.encode() + values.numpy().tobytes())
        found.update(json.dumps([batch.labels.tolist(), batch.ids]).encode())
    assert found.hexdigest() == "5efa362d92fe6e5c294b3635754e30a627547bcd4a6a21bb265a5e39a262ed7a"


@pytest.mark.parametrize("modalities", ALIKE)
def test_resized_batches_stay_what_they_are(modalities: dict[str, Any]) -> None:
    """Sums that weigh every value differently, since the last bit of a resize is the CPU's affair."""
    transform = Transform(data_config(modalities, augment={"scale": [0.3, 1.0], "flip": True}), {"audio": (3.0, 2.0)})
    found: dict[str, float] = {}
    for batch in MemoryClips(made_up(), transform).training(2, 4, 11):
        for name, values in batch.inputs.items():
            weights = torch.arange(values.numel(), dtype=torch.float64).sin()
            found[name] = found.get(name, 0.0) + float((values.double().flatten() * weights).sum())
    assert found == pytest.approx(RESIZED, abs=1e-4)


RESIZED = {"video": -0.050003, "audio": -11.444512, "flow": 1.020172}


def make_index(**columns: list[str]) -> ClipIndex:
    rows = [(f"c{i}", f"/x/{i}.mp4", i % 2, ["train", "validation", "test"][i % 3], f"g{i}") for i in range(12)]
    clips = pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"])
    return ClipIndex("m", ("a", "b"), clips.assign(**columns))


@pytest.mark.parametrize("modalities", ALIKE)
def test_the_default_caches_keep_their_names(modalities: dict[str, Any]) -> None:
    data = data_config(modalities, missing_modality="keep")
    keys = [cache_key(make_index(), data, names) for names in (("video", "audio"), ("video", "audio", "flow"))]
    assert keys == [
        "e80cadf0088de801b0b1316048a6470e03da4c8db1bc34bdb0f078c16fcec759",
        "42765d44cd8bf3ad62a0f22b30e303861b8266dfae9f837f4413dae16da395bc",
    ]


# ---- what a configuration may say


def test_kinds_are_found_by_their_files() -> None:
    assert KINDS.names() == ["array", "audio", "flow", "video"]


def test_settings_begin_from_those_of_the_section() -> None:
    data = data_config(
        {
            "left": {"kind": "video", "column": "left"},
            "right": {"kind": "video", "column": "right", "frames": 4, "crop": 6},
            "motion": {"kind": "flow", "column": "right", "bound": 3.0},
            "speech": {"kind": "audio", "column": "wav", "front_end": "fbank", "frames": 100},
            "near": {"kind": "audio", "mels": 16},
        },
        audio={"mels": 64, "hop": 100},
    )
    kinds = kinds_of(data)
    assert list(kinds) == ["left", "right", "motion", "speech", "near"]
    assert kinds["left"].shape == (6, 3, 12, 12) and kinds["right"].shape == (12, 3, 12, 12)
    assert kinds["motion"].shape == (12, 2, 12, 12)  # that of the video in its column
    assert kinds["motion"].motion is not None and kinds["motion"].motion.bound == 3.0
    assert kinds["speech"].shape == (1, 128, 100) and kinds["near"].shape == (1, 16, 1024)
    assert kinds["near"].sound is not None and kinds["near"].sound.hop == 100


def test_a_model_can_be_built_before_anything_is_decoded() -> None:
    data = data_config({"right": {"kind": "video", "column": "right", "frames": 4, "crop": 6}, "lidar": LIDAR})
    lidar, right = expected_modalities(data, ["lidar", "right"])
    assert (lidar.shape, lidar.space, lidar.box) == ((6, 2), "metres", (0, 80))
    assert right.shape == (4, 3, 6, 6) and right.mean == (0.0,) * 3 and right.std == (1.0,) * 3
    with pytest.raises(BadInputError, match="right and lidar, not video"):
        expected_modalities(data, ["video"])


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"a": "vidoe"}, r"data\.modalities\.a\.kind: no modality kind 'vidoe'.* Did you mean 'video'"),
        ({"a": {"kind": "video", "size": 4}}, r"data\.modalities\.a: crop \(8\) must not exceed size"),
        ({"a": {"kind": "video", "cropp": 4}}, r"data\.modalities\.a: its kind has no setting 'cropp'.* 'crop'"),
        ({"a": {"kind": "audio", "hop": -1}}, r"data\.modalities\.a\.hop: .*greater than or equal to 1, not -1"),
        ({"a": {"kind": "array"}}, r"data\.modalities\.a\.shape: Field required"),
        ({"a": {**LIDAR, "shape": [0]}}, r"data\.modalities\.a\.shape\.0: "),
        ({"a": {**LIDAR, "box": [3, 1]}}, r"box \[3.0, 1.0\] must have the lower end first"),
        ({"a": {**LIDAR, "channel_axis": 2}}, "channel_axis 2 is no axis of shape"),
        ({"a": {**LIDAR, "channel_axis": 1, "standardise": [[1.0], 2.0]}}, "not one number for each channel"),
        ({"a": "nowhere.at.all:Kind"}, r"data\.modalities\.a\.kind: .*no module 'nowhere'"),
        ({"a": "pipelines.clips.kinds:kinds_of"}, "no class that derives from"),
    ],
)
def test_a_wrong_declaration_is_one_line(modalities: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        kinds_of(data_config(modalities))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["id", "joint", "present_video", "a.b", "type", "my video", "path"])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    # what torch's modules call their own is found out when the kinds are made: a configuration is read without torch
    with pytest.raises((ValidationError, BadInputError), match="can be called"):
        kinds_of(data_config({name: "video"}))


def test_a_declaration_survives_the_dump_and_a_path() -> None:
    config = parse({"data": {"modalities": {"lidar": LIDAR, "sound": "audio"}}}, "a test")
    assert parse(config.model_dump(mode="json"), "again") == config
    changed = with_values(config, {"data.modalities.lidar": {**LIDAR, "shape": [3]}})
    assert kinds_of(changed.data)["lidar"].shape == (3,)
    assert list(kinds_of(RunConfig().data)) == ["video", "audio", "flow"]


# ---- arrays


def as_metas(kinds: Any, sums: Any) -> dict[str, ModalityMeta]:
    return {name: kind.with_constants(statistics(kind, [sums[name]])) for name, kind in kinds.items()}


@pytest.mark.parametrize("axis", [None, 1, -2])
def test_arrays_come_back_as_they_were_with_the_statistics_of_each_channel(axis: int | None) -> None:
    import pyarrow as pa

    kinds = kinds_of(data_config({"lidar": {**LIDAR, "channel_axis": axis}}))
    rng = np.random.default_rng(0)
    given = rng.uniform(0, 80, (7, 6, 2)).astype(np.float32)
    sums, rows = empty_sums(kinds), []
    for i, values in enumerate([*given, None]):
        add_clip(sums, {"lidar": values}, kinds)
        rows.append({"id": str(i), "label": 0, "split": "train", "group": "", **encode_row({"lidar": values}, kinds)})
    metas = as_metas(kinds, sums)
    arrays = decode_rows(pa.Table.from_pylist(rows, schema=schema_of(kinds)), metas)
    assert np.array_equal(arrays["lidar"][:7], given) and not arrays["lidar"][7].any()
    assert arrays["present_lidar"].tolist() == [True] * 7 + [False]
    others = {None: (0, 1, 2), 1: (0, 1), -2: (0, 2)}[axis]
    np.testing.assert_allclose(metas["lidar"].mean, np.ravel(given.astype(float).mean(others)), rtol=1e-9)
    np.testing.assert_allclose(metas["lidar"].std, np.ravel(given.astype(float).std(others)), rtol=1e-6)
    modality = kinds["lidar"].modality(metas["lidar"])
    assert modality.shape == (6, 2) and modality.box == (0, 80) and modality.space == "metres"
    standardised = (torch.from_numpy(given) - modality.per_channel(modality.mean)) / modality.per_channel(modality.std)
    assert abs(float(standardised.mean())) < 1e-5


@pytest.mark.parametrize(
    ("standardise", "mean", "std"),
    [("none", (0.0, 0.0), (1.0, 1.0)), ([40, 20], (40, 40), (20, 20)), ([[1, 2], [3, 4]], (1, 2), (3, 4))],
)
def test_constants_of_arrays(standardise: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    declared = {"lidar": {**LIDAR, "channel_axis": 1, "standardise": standardise}}
    kinds, index = kinds_of(data_config(declared)), make_index(lidar=["/y.npy"] * 12)
    modality = kinds["lidar"].modality(as_metas(kinds, empty_sums(kinds))["lidar"])
    assert (modality.mean, modality.std) == (mean, std)
    trained = data_config({"lidar": {**LIDAR, "channel_axis": 1}})
    assert cache_key(index, trained, ["lidar"]) == cache_key(index, data_config(declared), ["lidar"])  # no byte differs


def test_the_key_follows_what_is_declared(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 2)))
    index = make_index(lidar=[str(tmp_path / "a.npy"), *[""] * 11], other=["/z"] * 12)

    def key(column: str = "lidar", kind: str = "array", **settings: Any) -> str:
        return cache_key(
            index, data_config({"lidar": {**LIDAR, "column": column, "kind": kind, **settings}}), ["lidar"]
        )

    keys = [key(), key(column="other"), key(shape=[12]), key(box=None), key(key="x"), key(channel_axis=1)]
    assert len(set(keys)) == len(keys) and key(space="feet") == key()
    np.save(tmp_path / "a.npy", np.zeros((6, 3)))
    assert key() not in keys


def test_the_key_follows_every_picture_of_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"a" * i)
    index, data = make_index(frames=[str(tmp_path)] * 12), data_config({"v": {"kind": "video", "column": "frames"}})
    keys = [cache_key(index, data, ["v"])]
    (tmp_path / "1.jpg").write_bytes(b"other")
    keys.append(cache_key(index, data, ["v"]))
    (tmp_path / "2.jpg").unlink()
    keys.append(cache_key(index, data, ["v"]))
    assert len(set(keys)) == 3


# ---- random choices


TWO = {
    "left": {"kind": "video", "column": "left"},
    "motion": {"kind": "flow", "column": "left"},
    "right": {"kind": "video", "column": "right", "frames": 3, "size": 16, "crop": 10},
    "speech": {"kind": "audio", "column": "wav"},
    "lidar": LIDAR,
}


def many(seed: int = 0, n: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    left = rng.integers(1, 256, (n, 6, 3, 12, 12), dtype=np.uint8)
    return {
        "left": left,
        "motion": left[:, :, :2].copy(),
        "right": rng.integers(0, 256, (n, 9, 3, 16, 16), dtype=np.uint8),
        "speech": rng.normal(3, 2, (n, 1, 4, 10)).astype(np.float16),
        "lidar": rng.uniform(0, 80, (n, 6, 2)).astype(np.float32),
    }


def test_two_cameras_are_cut_each_by_its_own_settings_and_mirrored_together() -> None:
    data = data_config(TWO, augment={"pad": 1, "flip": True, "time_shift": 2})
    transform = Transform(data, {"speech": (3.0, 2.0)})
    arrays, choices = many(), transform.draw(8, [1])
    inputs = transform(arrays, choices, CPU)
    assert list(inputs) == list(TWO)
    assert inputs["left"].shape == (8, 2, 3, 8, 8) and inputs["right"].shape == (8, 3, 3, 10, 10)
    left, right = (choices.of(transform.groups[name]) for name in ("left", "right"))
    assert transform.groups["motion"] == transform.groups["left"] != transform.groups["right"]
    assert torch.equal(left.flip, right.flip) and choices.flip.any() and not choices.flip.all()
    assert not torch.equal(left.offset, right.offset)
    # the same pixels: what was cut of the video was cut of its flow, mirrored along with it
    torch.testing.assert_close(inputs["motion"][:, :, 1], (inputs["left"][:, :, 1] * 255 - 1).clamp(0) / 254)
    assert np.array_equal(inputs["lidar"].numpy(), arrays["lidar"])
    plain = transform(arrays, None, CPU)
    np.testing.assert_allclose(plain["right"].numpy(), arrays["right"][:, [1, 4, 7], :, 3:13, 3:13] / 255, atol=1e-6)
    np.testing.assert_allclose(plain["speech"].numpy(), (arrays["speech"].astype(np.float32) - 3) / 2, atol=1e-6)


def test_workers_together_see_the_draws_of_one() -> None:
    data = data_config(TWO, augment={"pad": 1, "scale": None, "gain": 0.5})
    n = 8
    table = ClipTable(np.array(list("abcdefgh")), np.zeros(n, np.int64), np.array(["train"] * n), many())
    alone = next(MemoryClips(table, Transform(data)).training(1, 6, 3))
    for rank in range(2):
        share = next(MemoryClips(table, Transform(data), Placement(rank, 2)).training(1, 6, 3))
        for name in TWO:
            assert torch.equal(share.inputs[name], alone.inputs[name][rank::2]), name


def test_what_a_clip_lacks_is_its_mean() -> None:
    data = data_config({"lidar": {**LIDAR, "channel_axis": 1}, "right": TWO["right"]})
    kinds = kinds_of(data)
    metas = {
        "lidar": ModalityMeta((6, 2), "float32", (10.0, 20.0), (1.0, 1.0)),
        "right": ModalityMeta((9, 3, 16, 16), "uint8", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
    }
    transform = Transform(data, {}, {name: kinds[name].modality(meta) for name, meta in metas.items()})
    arrays = {name: many()[name] for name in metas} | {f"present_{name}": np.arange(8) > 0 for name in metas}
    inputs = transform(arrays, None, CPU)
    assert inputs["lidar"][0].unique(dim=0).tolist() == [[10, 20]]
    np.testing.assert_allclose(inputs["right"][0].mean((0, 2, 3)).numpy(), [0.1, 0.2, 0.3], atol=1e-6)
    assert np.array_equal(inputs["lidar"][1:].numpy(), arrays["lidar"][1:])


def test_a_card_tells_how_sound_was_standardised() -> None:
    data = data_config({"near": {"kind": "audio"}, "far": {"kind": "audio", "column": "far"}})
    trained = Transform(data, {"near": (1.0, 2.0), "far": (3.0, 4.0)})
    card = json.loads(json.dumps(trained.front_end()))
    assert Transform(data, {"near": (9.0, 9.0)}).with_front_end(card).constants == trained.constants
    old = Transform(data_config()).with_front_end({"audio_mean": 5.0, "audio_std": 6.0})
    assert old.constants["audio"] == (5.0, 6.0)


def test_draws_of_the_default_ones_do_not_depend_on_others() -> None:
    data = data_config({"video": "video", **TWO}, augment={"pad": 1})
    base, more = RandomChoices.draw(5, data_config(augment={"pad": 1}), [3]), Transform(data).draw(5, [3])
    assert torch.equal(base.offset, more.of(Transform(data).groups["video"]).offset)


# ---- a kind of the user's own

OWN = '''
"""Words of a text file, counted."""
import numpy as np
import torch
from crmt.modality import Modality
from pipelines.clips.kinds import Kind
from pipelines.config.schema import Section
from pipelines.decoding.errors import DecodeError


class Settings(Section):
    words: list[str]


class WordCounts(Kind):
    Settings = Settings

    @property
    def shape(self):
        return (len(self.settings.words),)

    @property
    def dtype(self):
        return np.dtype(np.int32)

    def read(self, file, seconds):
        text = open(file).read().split()
        if not text:
            raise DecodeError("empty", "no words")
        return np.array([text.count(word) for word in self.settings.words], np.int32)

    def modality(self, meta):
        n = len(self.settings.words)
        return Modality(name=self.name, shape=self.shape, channel_axis=0, mean=meta.mean * n, std=meta.std * n,
                        box=None, space="words")

    def transform(self, stored, constants, choices):
        return stored.float()
'''


def test_a_kind_of_the_users_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.clips.reading import ClipError, read_clip

    (tmp_path / "wordcounts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordcounts", raising=False)
    for name, text in {"a": "a b a", "none": ""}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    data = data_config({"words": {"kind": "wordcounts:WordCounts", "column": "text", "words": ["a", "b", "c"]}})
    kinds = kinds_of(data)
    found = read_clip({"path": "x", "text": str(tmp_path / "a.txt")}, kinds, data)
    assert found["words"] is not None and found["words"].tolist() == [2, 1, 0]
    with pytest.raises(ClipError) as caught:
        read_clip({"path": "x", "text": str(tmp_path / "none.txt")}, kinds, data)
    assert (caught.value.reason, caught.value.detail) == ("empty", "words: no words")
    sums = empty_sums(kinds)
    add_clip(sums, found, kinds)
    assert statistics(kinds["words"], [sums["words"]]).mean == (1.0,)
    with pytest.raises(BadInputError, match="has no setting 'word'"):
        kinds_of(data_config({"words": {"kind": "wordcounts:WordCounts", "words": ["a"], "word": 3}}))


# ---- before anything is decoded


def write_manifest(folder: Path, shape: tuple[int, ...] = (6, 2), header: str = "path,label,split,lidar") -> DataConfig:
    rows = [f"{i}.mp4,{'ab'[i % 2]},{'train' if i < 4 else 'test'},{i}.npy" for i in range(6)]
    (folder / "manifest.csv").write_text("\n".join([header, *rows]))
    for i in range(6):
        np.save(folder / f"{i}.npy", np.zeros(shape))
    return data_config({"lidar": LIDAR}, dataset="manifest", root=folder, validation_share=0.5)


def test_a_wrong_shape_is_said_before_ray_is_started(tmp_path: Path) -> None:
    data = write_manifest(tmp_path)
    index = look_ahead(data)
    assert index is not None and index.clips.lidar[0] == str(tmp_path / "0.npy")
    np.save(tmp_path / "0.npy", np.zeros(3))  # one alone is that clip's fault
    assert look_ahead(data) is not None
    write_manifest(tmp_path, (3, 2))
    with pytest.raises(BadInputError, match=r"data\.modalities\.lidar: .*0\.npy: .*\[3, 2\], and `shape` is \[6, 2\]"):
        look_ahead(data)


def test_a_column_that_the_list_lacks_is_one_line(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, header="path,label,split,radar")
    with pytest.raises(BadInputError, match=r"data\.modalities\.lidar\.column: .* no column 'lidar' .* path, radar"):
        look_ahead(data)
