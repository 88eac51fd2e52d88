"""Stored arrays to inputs: resized crops against plain loops, mirrored flow, and modalities that a clip lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from crmt.errors import BadInputError
from pipelines.clips.batches import ClipTable, MemoryClips, modalities_of, read_table
from pipelines.clips.cache import cache_key
from pipelines.clips.ingest import ingest
from pipelines.clips.kinds._pictures import _resized_here, _resized_there
from pipelines.clips.placement import CPU, Placement
from pipelines.clips.streaming import StreamClips, StreamIndex
from pipelines.clips.transform import RandomChoices, Transform
from pipelines.config.schema import DataConfig
from pipelines.decoding.sound import PUBLISHED_FBANK
from pipelines.sources.index import ClipIndex
from tests.pipelines.media import make_media

SIDE, CROP, FRAMES, CANDIDATES = 12, 8, 2, 3
COUNT = 5


def config(**augment: Any) -> DataConfig:
    video = {"frames": FRAMES, "candidates": CANDIDATES, "size": SIDE, "crop": CROP}
    return DataConfig.model_validate({"video": video, "augment": augment})


def stored(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (COUNT, FRAMES * CANDIDATES)
    return {
        "video": rng.integers(0, 256, (*shape, 3, SIDE, SIDE), dtype=np.uint8),
        "flow": rng.integers(1, 256, (*shape, 2, SIDE, SIDE), dtype=np.uint8),
        "audio": rng.normal(3, 2, (COUNT, 1, 4, 6)).astype(np.float16),
    }


def resized(image: NDArray[np.float64], box: list[int]) -> NDArray[np.float64]:
    """One channel: the box cut out, then linear interpolation between the centres of its pixels, by plain loops."""
    top, left, height, width = box
    image = image[top : top + height, left : left + width]
    result = np.empty((CROP, CROP))
    for i in range(CROP):
        for j in range(CROP):
            y = min(max((i + 0.5) * height / CROP - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / CROP - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            upper = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            lower = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            result[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return result


@settings(max_examples=10, deadline=None)
@given(low=st.floats(0.05, 1), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_random_resized_crop_is_what_plain_loops_do(low: float, flip: bool, seed: int) -> None:
    data, arrays = config(scale=[low, 1.0], flip=flip), stored(seed)
    choices = RandomChoices.draw(COUNT, data, [seed])
    inputs = Transform(data)(arrays, choices, CPU)
    assert choices.box is not None and inputs["video"].shape == (COUNT, FRAMES, 3, CROP, CROP)
    for i in range(COUNT):
        for name, channel in (("video", 1), ("flow", 0), ("flow", 1)):
            frame = arrays[name][i, CANDIDATES + int(choices.candidate[i, 1]), channel].astype(float)
            values = resized((frame - 1) / 254 if name == "flow" else frame / 255, choices.box[i].tolist())
            values = values[:, ::-1] if choices.flip[i] else values
            values = 1 - values if choices.flip[i] and (name, channel) == ("flow", 0) else values
            np.testing.assert_allclose(inputs[name][i, 1, channel].numpy(), values, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(low=st.floats(0.05, 1), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_card_resizes_as_a_cpu_does(low: float, flip: bool, seed: int) -> None:
    """Both ways on the CPU, where both run."""
    choices = RandomChoices.draw(COUNT, config(scale=[low, 1.0], flip=flip), [seed])
    frames = torch.from_numpy(stored(seed)["video"])
    assert choices.box is not None
    here, there = (resize(frames, choices.box, choices.flip, CROP) for resize in (_resized_here, _resized_there))
    torch.testing.assert_close(here, there, atol=1e-3, rtol=0)  # of 255


def test_resized_crops_fill_their_ranges() -> None:
    side, large = 100, {"frames": FRAMES, "candidates": CANDIDATES, "size": 100, "crop": CROP}
    augment = {"scale": [0.2, 0.8], "ratio": [0.8, 1.25]}
    box = RandomChoices.draw(4000, DataConfig.model_validate({"video": large, "augment": augment}), [0]).box
    assert box is not None and box.dtype == torch.int64
    top, left, height, width = box.numpy().T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height).max() == (left + width).max() == side and top.min() == left.min() == 0
    area, ratio = height * width / side**2, width / height
    assert 0.19 < area.min() < 0.21 and 0.78 < area.max() < 0.81
    assert 0.78 < ratio.min() < 0.82 and 1.22 < ratio.max() < 1.28
    smallest = RandomChoices.draw(99, config(scale=[1e-9, 1e-9]), [0]).box
    assert smallest is not None and (smallest[:, 2:] == 1).all() and (smallest[:, :2] <= SIDE - 1).all()
    assert RandomChoices.draw(3, config(), [0]).box is None
    for wrong in ({"scale": [0.5, 1.2]}, {"scale": [0.8, 0.2]}, {"ratio": [2.0, 1.0]}, {"scale": [0.5, 1], "pad": 2}):
        with pytest.raises(ValidationError):
            config(**wrong)


def test_a_crop_of_the_whole_square_is_a_plain_resize() -> None:
    data = config(scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=False)
    inputs = Transform(data)(stored(), RandomChoices.draw(COUNT, data, [1]), CPU)
    assert RandomChoices.draw(COUNT, data, [1]).box is not None
    assert inputs["video"].mean() == pytest.approx(stored()["video"].mean() / 255, abs=0.03)


@pytest.mark.parametrize("augment", [{"pad": 2}, {"scale": [0.3, 1.0]}])
def test_resized_draws_are_those_of_seed_epoch_and_rank(augment: dict[str, Any]) -> None:
    arrays = stored()
    table = ClipTable(np.array(list("abcde")), np.zeros(COUNT, np.int64), np.array(["train"] * COUNT), arrays)
    whole = list(MemoryClips(table, Transform(config(**augment))).training(3, 4, 7))
    again = list(MemoryClips(table, Transform(config(**augment))).training(3, 4, 7))
    other = list(MemoryClips(table, Transform(config(**augment))).training(4, 4, 7))
    ranks = [
        list(MemoryClips(table, Transform(config(**augment)), Placement(r, 2)).training(3, 4, 7)) for r in range(2)
    ]
    for name in arrays:
        assert torch.equal(whole[0].inputs[name], again[0].inputs[name])
        for r in range(2):
            assert torch.equal(ranks[r][0].inputs[name], whole[0].inputs[name][r::2])
    assert not torch.equal(whole[0].inputs["video"], other[0].inputs["video"])


def test_flow_mirrored_goes_the_other_way_and_is_cut_as_the_video_is() -> None:
    data, arrays = config(flip=True, pad=2), stored()
    arrays["flow"] = np.repeat(arrays["video"][:, :, :1].clip(1), 2, axis=2)  # so that they can be compared
    choices = RandomChoices.draw(COUNT, data, [3])
    assert choices.flip.any() and not choices.flip.all()
    inputs = Transform(data)(arrays, choices, CPU)
    for i in range(COUNT):
        same = (inputs["video"][i, :, 0] * 255 - 1).clamp(0) / 254
        across = 1 - same if choices.flip[i] else same
        torch.testing.assert_close(inputs["flow"][i, :, 0], across)
        torch.testing.assert_close(inputs["flow"][i, :, 1], same)
    still = {"flow": np.full((COUNT, FRAMES * CANDIDATES, 2, SIDE, SIDE), 128, np.uint8)}
    for chosen in (choices, None):
        assert (Transform(data)(still, chosen, CPU)["flow"] == 0.5).all()


# ---- from clips on disk

CLIPS: dict[str, Any] = {
    "dataset": "manifest",
    "max_failure_share": 0.9,
    "video": {"frames": 2, "size": 32, "crop": 24},
    "audio": {"sample_rate": 8000, "seconds": 1.0, "n_fft": 512, "hop": 166, "mels": 16, "frames": 40},
}
ALL = ("video", "audio", "flow")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    """Two whole clips a split, in train also a silent one, one without a picture and one with neither."""
    folder = tmp_path_factory.mktemp("clips")
    made = {f"{split}{i}": (split, {}) for split in ("train", "validation", "test") for i in range(2)}
    made |= {"silent": ("train", {"tone": None}), "dark": ("train", {"picture": False})}
    rows = []
    for i, (name, (split, options)) in enumerate(made.items()):
        path = make_media(folder / f"{name}.mp4", seconds=1, width=48, **options)
        rows.append((name, str(path), i % 2, split, name))
    (folder / "empty.mp4").write_bytes(b"")
    rows.append(("empty", str(folder / "empty.mp4"), 0, "train", "empty"))
    return ClipIndex("manifest", ("a", "b"), pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"]))


def clips_config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({**CLIPS, "cache": folder, **changes})


def test_clips_that_lack_a_modality_are_dropped_or_kept(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    dropped = ingest(clips, clips_config(tmp_path), ALL, progress=False)
    reasons = {"silent": "no_audio", "dark": "no_video", "empty": "empty"}
    assert dropped.quarantine.set_index("clip_id").reason.to_dict() == reasons
    assert dropped.incomplete == {}

    data = clips_config(tmp_path, missing_modality="keep")
    cache = ingest(clips, data, ALL, progress=False)
    assert cache.quarantine.clip_id.tolist() == ["empty"] and cache.counts["train"] == 4
    assert cache.missing == {m: {"train": 1, "validation": 0, "test": 0} for m in ALL}
    assert cache.incomplete == {"video": 1, "audio": 1, "flow": 1}
    rows = pd.concat(pd.read_parquet(p) for p in cache.parts).set_index("id")
    for name in ALL:
        absent = {"silent"} if name == "audio" else {"dark"}
        assert set(rows.index[~rows[f"present_{name}"]]) == absent == set(rows.index[rows[name].isna()])

    table, transform = read_table(cache, ALL), Transform.of(cache, data)
    modalities = {m.name: m for m in modalities_of(cache, data, ALL)}
    streamed = StreamClips(StreamIndex.of(cache, ALL), transform)
    memory = MemoryClips(table, transform)
    plain, augmented = list(memory.ordered("train")), list(memory.training(1, 4, 0))
    for batch in [*plain, *augmented, *streamed.ordered("train"), *streamed.training(1, 4, 0)]:
        for position, clip in enumerate(batch.ids):
            for name, modality in modalities.items():
                found = batch.inputs[name][position : position + 1]
                absent = clip == ("silent" if name == "audio" else "dark")
                assert torch.allclose(found, modality.missing(found)) == absent, (clip, name)


def test_statistics_are_of_the_clips_that_have_the_modality(
    ray_cluster: None, clips: ClipIndex, tmp_path: Path
) -> None:
    cache = ingest(clips, clips_config(tmp_path, missing_modality="keep"), ALL, progress=False)
    table = read_table(cache, ALL)
    train = table.splits == "train"
    for name, scale, first in (("video", 255, 0), ("flow", 254, 1)):
        values = table.arrays[name][train & table.arrays[f"present_{name}"]].astype(float)
        expected = (values.mean((0, 1, 3, 4)) - first) / scale
        np.testing.assert_allclose(cache.modalities[name].mean, expected, atol=0.01)  # JPEG
        np.testing.assert_allclose(cache.modalities[name].std, values.std((0, 1, 3, 4)) / scale, atol=0.01)
    flow = next(m for m in modalities_of(cache, clips_config(tmp_path), ALL) if m.name == "flow")
    assert flow.shape == (2, 2, 24, 24) and flow.box == (0.0, 1.0) and flow.channel_axis == 1


def test_one_modality_alone_is_never_missing(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    cache = ingest(clips, clips_config(tmp_path, missing_modality="keep"), ("audio",), progress=False)
    assert set(cache.quarantine.clip_id) == {"silent", "empty"} and not cache.incomplete
    with pytest.raises(BadInputError, match="no modality 'flow'"):
        modalities_of(cache, clips_config(tmp_path), ("flow",))


def test_constants_of_the_standardisation(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    """Train's are stored with the cache; published or given ones use the very same cache."""
    audio = {"front_end": "fbank", "seconds": 1.0, "frames": 100}
    caches = {}
    for name, value in {"train": "train", "published": "published", "given": [1.5, 2.5]}.items():
        data = clips_config(tmp_path, audio={**audio, "standardise": value})
        caches[name] = ingest(clips, data, ("audio",), progress=False)
    assert len({c.folder for c in caches.values()}) == 1
    constants = {n: (c.modalities["audio"].mean[0], c.modalities["audio"].std[0]) for n, c in caches.items()}
    assert constants["published"] == PUBLISHED_FBANK == (-4.503877, 10.282552) and constants["given"] == (1.5, 2.5)
    table = read_table(caches["train"], ("audio",))
    train = table.arrays["audio"][table.splits == "train"].astype(float)
    np.testing.assert_allclose(constants["train"], (train.mean(), train.std()), rtol=1e-6)
    data = clips_config(tmp_path, audio={**audio, "standardise": "published"})
    (batch,) = MemoryClips(table, Transform.of(caches["published"], data)).ordered("test")
    expected = (table.arrays["audio"][table.splits == "test"].astype(np.float32) + 4.503877) / (2 * 5.141276)
    np.testing.assert_allclose(batch.inputs["audio"].numpy(), expected, atol=1e-5)


def test_the_key_follows_the_new_settings(clips: ClipIndex, tmp_path: Path) -> None:
    def key(modalities: tuple[str, ...] = ALL, **changes: Any) -> str:
        return cache_key(clips, clips_config(tmp_path, **changes), modalities)

    video = CLIPS["video"]
    keys = [key(), key(("video", "audio")), key(missing_modality="keep"), key(flow={"bound": 10.0})]
    keys += [key(video={**video, "max_frames": 9}), key(video={**video, "max_seconds": 9.0})]
    keys += [key(audio={"front_end": front_end}) for front_end in ("logmel", "fbank", "vggsound")]
    assert len(set(keys)) == len(keys)
    both = ("video", "audio")
    assert key(both, flow={"bound": 10.0}) == key(both)
    assert key(augment={"scale": [0.5, 1.0]}) == key() == key(audio={**CLIPS["audio"], "standardise": [0.0, 1.0]})
