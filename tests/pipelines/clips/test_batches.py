"""Batches: who gets which clip and when, augmentation against a naive loop, and streaming against memory."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crmt.errors import BadInputError
from crmt.modality import Batch
from pipelines.clips import ingest as clips_ingest
from pipelines.clips.batches import (
    Clips,
    ClipTable,
    MemoryClips,
    Placement,
    RandomChoices,
    Transform,
    choose_mode,
    modalities_of,
    read_table,
)
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import ingest
from pipelines.clips.kinds import ModalityMeta, kinds_of
from pipelines.clips.rows import Encoded, encode_row
from pipelines.clips.stored import InMemory
from pipelines.clips.streaming import StreamClips, StreamIndex, _shuffled
from pipelines.config.schema import DataConfig
from tests.pipelines.small import NAMES, Decoded, Small

SIDE, CROP, FRAMES, CANDIDATES, MELS, COLUMNS = 12, 8, 2, 3, 4, 10
VIDEO = {"frames": FRAMES, "candidates": CANDIDATES, "size": SIDE, "crop": CROP}


def data_config(**augment: Any) -> DataConfig:
    return DataConfig.model_validate({"video": VIDEO, "augment": augment})


def made_up(counts: dict[str, int], seed: int = 0) -> ClipTable:
    """Random clips; the ids tell the split."""
    rng, n = np.random.default_rng(seed), sum(counts.values())
    splits = np.array([s for s, c in counts.items() for _ in range(c)])
    return ClipTable(
        ids=np.array([f"{i:03d}-{s}" for i, s in enumerate(splits)]),
        labels=rng.integers(0, 5, n),
        splits=splits,
        arrays={
            "video": rng.integers(0, 256, (n, FRAMES * CANDIDATES, 3, SIDE, SIDE), dtype=np.uint8),
            "audio": rng.normal(3, 2, (n, 1, MELS, COLUMNS)).astype(np.float16),
        },
    )


def memory(counts: dict[str, int], rank: int = 0, world: int = 1, **augment: Any) -> MemoryClips:
    return MemoryClips(
        made_up(counts), Transform(data_config(**augment), {"audio": (3.0, 2.0)}), Placement(rank, world)
    )


def ids_of(batches: Any) -> list[str]:
    return [i for batch in batches for i in batch.ids]


def same(a: Batch, b: Batch) -> bool:
    inputs = all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)
    return a.ids == b.ids and torch.equal(a.labels, b.labels) and inputs


# ---- who gets which clip


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 40), world=st.integers(1, 4), local=st.integers(1, 5), epoch=st.integers(1, 5))
def test_memory_training_gives_every_clip_at_most_once_and_equal_steps(
    n: int, world: int, local: int, epoch: int
) -> None:
    size = world * local
    ranks = [list(memory({"train": n, "test": 3}, r, world).training(epoch, size, 5)) for r in range(world)]
    assert {len(batches) for batches in ranks} == {n // size}
    assert all(len(b.labels) == len(b.ids) == local for batches in ranks for b in batches)
    seen = Counter(i for batches in ranks for i in ids_of(batches))
    assert set(seen.values()) <= {1} and len(seen) == n // size * size
    assert all(i.endswith("train") for i in seen)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 300), world=st.integers(1, 4), limit=st.one_of(st.none(), st.integers(4, 310)), seed=st.integers()
)
def test_memory_order_gives_every_clip_exactly_once_over_all_ranks(
    n: int, world: int, limit: int | None, seed: int
) -> None:
    seed = abs(seed)
    ranks = [ids_of(memory({"train": 2, "test": n}, r, world).ordered("test", limit, seed)) for r in range(world)]
    whole = ids_of(memory({"train": 2, "test": n}).ordered("test", limit, seed))
    assert sorted(i for ids in ranks for i in ids) == whole == sorted(set(whole))
    assert len(whole) == min(n, limit or n) and max(map(len, ranks)) - min(map(len, ranks)) <= 1
    larger = ids_of(memory({"train": 2, "test": n}).ordered("test", None if limit is None else limit + 3, seed))
    assert set(whole) <= set(larger)


def test_memory_batches_are_those_of_seed_and_epoch() -> None:
    clips = memory({"train": 20}, pad=2, time_shift=2, gain=1.0)

    def epoch(number: int, seed: int) -> list[Batch]:
        return list(clips.training(number, 4, seed))

    assert all(same(a, b) for a, b in zip(epoch(1, 0), epoch(1, 0), strict=True))
    assert ids_of(epoch(1, 0)) != ids_of(epoch(2, 0)) and ids_of(epoch(1, 0)) != ids_of(epoch(1, 1))
    assert not torch.equal(epoch(1, 0)[0].inputs["audio"], epoch(2, 0)[0].inputs["audio"])


@pytest.mark.parametrize("world", [2, 3])
def test_workers_together_see_the_very_batch_of_one_worker(world: int) -> None:
    augment = {"pad": 2, "flip": True, "time_shift": 3, "gain": 0.5}
    alone = list(memory({"train": 30}, **augment).training(3, 6, 1))
    shares = [list(memory({"train": 30}, r, world, **augment).training(3, 6, 1)) for r in range(world)]
    for step, batch in enumerate(alone):
        parts = [s[step] for s in shares]
        order = np.argsort([i for p in parts for i in p.ids])
        expected = np.argsort(batch.ids)
        assert sorted(i for p in parts for i in p.ids) == sorted(batch.ids)
        for m in batch.inputs:
            together = torch.cat([p.inputs[m] for p in parts])
            assert torch.equal(together[order], batch.inputs[m][expected])


@pytest.mark.parametrize("world", [2, 3])
def test_a_global_batch_must_divide_by_the_workers(world: int) -> None:
    with pytest.raises(BadInputError, match=rf"batch_size \(7\) must be a multiple .* \({world}\)"):
        list(memory({"train": 30}, 0, world).training(1, 7, 0))


def test_fewer_clips_than_workers_is_refused_on_every_rank() -> None:
    """Otherwise the rank that has none would fail alone, and the others would wait for it."""
    for rank in range(3):
        with pytest.raises(BadInputError, match=r"test split gives 2 clips to .* 3 workers"):
            list(memory({"train": 9, "test": 2}, rank, 3).ordered("test"))
        with pytest.raises(BadInputError, match="workers"):
            list(memory({"train": 9, "test": 5}, rank, 3).ordered("test", 2))


# ---- augmentation


def naive(
    clip: np.ndarray, sound: np.ndarray, choices: RandomChoices, i: int, pad: int, mean: float, std: float
) -> tuple[np.ndarray, np.ndarray]:
    """One clip augmented by plain loops: pad with the edge, cut, mirror; shift with the edge repeated, add the gain."""
    frames = [clip[segment * CANDIDATES + int(choices.candidate[i, segment])] for segment in range(FRAMES)]
    top, left = (int(v) + pad for v in choices.offset[i])
    cut = []
    for frame in frames:
        padded = np.pad(frame, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        part = padded[:, top : top + CROP, left : left + CROP]
        cut.append(part[:, :, ::-1] if choices.flip[i] else part)
    shifted = np.empty_like(sound, dtype=np.float32)
    for t in range(COLUMNS):
        source = min(max(t + int(choices.time_shift[i]), 0), COLUMNS - 1)
        shifted[..., t] = (sound[..., source].astype(np.float32) - mean) / std
    return np.stack(cut).astype(np.float32) / 255, shifted + np.float32(choices.gain[i])


@settings(max_examples=30, deadline=None)
@given(
    pad=st.integers(0, 4), flip=st.booleans(), shift=st.integers(0, 12), gain=st.floats(0, 2), seed=st.integers(0, 99)
)
def test_augmentation_is_what_plain_loops_do(pad: int, flip: bool, shift: int, gain: float, seed: int) -> None:
    config = data_config(pad=pad, flip=flip, time_shift=shift, gain=gain)
    table = made_up({"train": 6}, seed)
    choices = RandomChoices.draw(6, config, [seed])
    inputs = Transform(config, {"audio": (3.0, 2.0)})(table.arrays, choices, torch.device("cpu"))
    assert inputs["video"].shape == (6, FRAMES, 3, CROP, CROP) and inputs["audio"].shape == (6, 1, MELS, COLUMNS)
    for i in range(6):
        video, audio = naive(table.arrays["video"][i], table.arrays["audio"][i], choices, i, pad, 3.0, 2.0)
        np.testing.assert_array_equal(inputs["video"][i].numpy(), video)
        np.testing.assert_allclose(inputs["audio"][i].numpy(), audio, atol=1e-6)


def test_draws_fill_their_ranges_and_no_more() -> None:
    choices = RandomChoices.draw(4000, data_config(pad=2, flip=True, time_shift=3, gain=0.5), [0])
    assert set(choices.candidate.unique().tolist()) == {0, 1, 2} and choices.candidate.shape == (4000, FRAMES)
    assert set(choices.offset.unique().tolist()) == set(range(-2, SIDE - CROP + 2 + 1))
    assert set(choices.time_shift.unique().tolist()) == set(range(-3, 4))
    assert 0.45 < choices.flip.float().mean() < 0.55
    assert -0.5 <= choices.gain.min() < -0.45 and 0.45 < choices.gain.max() <= 0.5
    assert not RandomChoices.draw(100, data_config(flip=False), [0]).flip.any()


def test_evaluation_takes_the_middle_frame_and_the_centre() -> None:
    clips = memory({"test": 3, "train": 1}, pad=4, flip=True, time_shift=9, gain=9.0)
    (batch,) = clips.ordered("test")
    edge = (SIDE - CROP) // 2
    for i in range(3):
        stored = clips.table.arrays["video"][i][[1, 4], :, edge : edge + CROP, edge : edge + CROP]
        np.testing.assert_array_equal(batch.inputs["video"][i].numpy(), stored.astype(np.float32) / 255)
        sound = clips.table.arrays["audio"][i].astype(np.float32)
        np.testing.assert_allclose(batch.inputs["audio"][i].numpy(), (sound - 3) / 2, atol=1e-6)


def test_real_clips_are_in_the_units_that_their_modalities_say(decoded: Decoded, small: Small) -> None:
    config = small.config()
    clips = MemoryClips(decoded.table, decoded.transform(config))
    batches = list(clips.ordered("train"))
    video, audio = (torch.cat([b.inputs[m] for b in batches]) for m in NAMES)
    assert video.min() >= 0 and video.max() <= 1 and video.max() > 0.5
    assert abs(audio.mean()) < 1e-2 and abs(audio.std() - 1) < 1e-2
    first, second = modalities_of(decoded.cache, config.data, NAMES)
    assert first.box == (0, 1) and second.box is None and (second.mean, second.std) == ((0.0,), (1.0,))
    assert first.shape == video.shape[1:] and second.shape == audio.shape[1:]
    np.testing.assert_allclose(first.mean, video.mean((0, 1, 3, 4)), atol=0.02)  # JPEG, and only the middle frames
    with pytest.raises(BadInputError, match="no modality 'flow'"):
        modalities_of(decoded.cache, config.data, ("flow",))


# ---- what is read of a clip


@dataclass(frozen=True)
class Recorded(InMemory):
    """Notes which pictures are read; the whole may not be."""

    read: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def picture(self, clip: int, number: int) -> np.ndarray:
        self.read.append((clip, number))
        return super().picture(clip, number)

    def whole(self) -> np.ndarray:
        raise AssertionError("all pictures of a clip were read")


@pytest.mark.parametrize("augment", [{"pad": 2}, {"scale": [0.3, 1.0]}])
def test_only_the_frames_that_were_drawn_are_read(augment: dict[str, Any]) -> None:
    config, array = data_config(**augment), made_up({"train": 5}).arrays["video"]
    choices = RandomChoices.draw(5, config, [3])
    middle = torch.full((5, FRAMES), CANDIDATES // 2)
    for drawn, candidates in ((choices, choices.candidate), (None, middle)):
        stored = Recorded(array, np.arange(5))
        Transform(config)({"video": stored}, drawn, torch.device("cpu"))
        expected = [(c, t * CANDIDATES + int(candidates[c, t])) for c in range(5) for t in range(FRAMES)]
        assert sorted(stored.read) == expected


@pytest.mark.parametrize("augment", [{"pad": 2, "gain": 0.5}, {"scale": [0.3, 1.0]}])
def test_batches_do_not_depend_on_the_threads_that_make_them(augment: dict[str, Any]) -> None:
    alone = memory({"train": 30, "test": 9}, **augment)
    shared = dataclasses.replace(alone, place=Placement(input_cpus=3.0))
    assert (alone.place.threads, shared.place.threads) == (1, 3)
    for a, b in zip(alone.training(2, 7, 1), shared.training(2, 7, 1), strict=True):
        assert same(a, b)
    for a, b in zip(alone.ordered("test"), shared.ordered("test"), strict=True):
        assert same(a, b)


@pytest.mark.parametrize(("side", "channels", "quality"), [(16, 3, 95), (130, 3, 95), (129, 3, 40), (33, 2, 95)])
def test_stored_jpegs_decode_to_the_pixels_of_pillow(side: int, channels: int, quality: int) -> None:
    """Colours at full and at half resolution, and flow, whose two directions are one grey picture."""
    video = {"frames": 2, "candidates": 1, "size": side, "crop": side, "jpeg_quality": quality}
    kind = kinds_of(DataConfig.model_validate({"video": video}))["video" if channels == 3 else "flow"]
    smooth = np.random.default_rng(side).integers(0, 256, (2, channels, 5, 5)).repeat(side, 2).repeat(side, 3)
    array = smooth[:, :, ::5, ::5].astype(np.uint8)
    stored = encode_row({kind.name: array}, {kind.name: kind})[kind.name]
    clips = Encoded([stored, None], ModalityMeta(kind.shape, "uint8", (), ()))
    pictures = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in stored]
    expected = np.stack([p.transpose(2, 0, 1) if channels == 3 else p.reshape(2, side, side) for p in pictures])
    assert np.array_equal(clips.whole()[0], expected) and not clips.whole()[1].any()
    assert np.array_equal(clips.picture(0, 1), expected[1]) and not clips.picture(1, 0).any()
    assert clips.present.tolist() == [True, False]


# ---- streaming


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 60), buffer=st.integers(1, 70), seed=st.integers(0, 9))
def test_a_shuffle_loses_nothing_and_follows_its_seed(count: int, buffer: int, seed: int) -> None:
    def shuffled() -> list[int]:
        rows = ((number,) for number in range(count))
        return [row[0] for row in _shuffled(rows, buffer, np.random.default_rng(seed))]

    order = shuffled()
    assert sorted(order) == list(range(count)) and order == shuffled()
    assert all(number <= place + buffer for place, number in enumerate(order))  # read no further ahead


def test_a_shuffle_reaches_every_place() -> None:
    first = {next(_shuffled(iter([(0,), (1,), (2,)]), 3, np.random.default_rng(s)))[0] for s in range(60)}
    assert first == {0, 1, 2}


@pytest.fixture(scope="module")
def parts(small: Small, tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    """The same clips in many small Parquet parts: 6 of train, 2 of validation, 3 of test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips_ingest, "_SHARD_CLIPS", 6)
        data = small.config(data={"cache": str(tmp_path_factory.mktemp("parts"))}).data
        return ingest(small.index(), data, NAMES, progress=False)


def stream(cache: ClipCache, small: Small, rank: int = 0, world: int = 1) -> StreamClips:
    transform = Transform.of(cache, small.config().data)
    return StreamClips(StreamIndex.of(cache, NAMES), transform, Placement(rank, world))


def test_streaming_gives_the_pixels_of_memory(parts: ClipCache, decoded: Decoded, small: Small) -> None:
    streamed = stream(parts, small)
    kept: Clips = MemoryClips(decoded.table, decoded.transform(small.config()))
    assert [streamed.count(s) for s in ("train", "test")] == [kept.count(s) for s in ("train", "test")]
    for limit in (None, 7):
        pairs = list(zip(streamed.ordered("test", limit, 3), kept.ordered("test", limit, 3), strict=True))
        assert pairs and all(same(a, b) for a, b in pairs)
    assert np.array_equal(read_table(parts, NAMES).arrays["video"], decoded.table.arrays["video"])


def test_streamed_training(parts: ClipCache, small: Small) -> None:
    ranks = [list(stream(parts, small, r, 2).training(1, 4, 0)) for r in range(2)]
    train = set(parts_ids(parts, "train"))
    assert len(ranks[0]) == len(ranks[1]) == 36 // 4
    seen = Counter(i for batches in ranks for i in ids_of(batches))
    assert set(seen.values()) == {1} and set(seen) == train
    assert all(len(b.labels) == 2 for batches in ranks for b in batches)

    threads = dataclasses.replace(stream(parts, small), place=Placement(1, 2, input_cpus=2.0))
    again = list(threads.training(1, 4, 0))
    assert all(same(a, b) for a, b in zip(again, ranks[1], strict=True))
    assert ids_of(stream(parts, small, 1, 2).training(2, 4, 0)) != ids_of(again)


def parts_ids(cache: ClipCache, split: str) -> list[str]:
    rows = StreamIndex.of(cache, NAMES).rows
    return rows.id[rows.split == split].tolist()


def test_streamed_order_is_shared_out_however_few_parts_there_are(small: Small, parts: ClipCache) -> None:
    one_part = small.decoded()  # each split in a single part
    for cache, limit in ((parts, None), (one_part, 5)):
        ranks = [ids_of(stream(cache, small, r, 2).ordered("test", limit, 1)) for r in range(2)]
        whole = ids_of(stream(cache, small).ordered("test", limit, 1))
        assert sorted(ranks[0] + ranks[1]) == sorted(whole) and len(set(whole)) == (limit or 15)
        assert abs(len(ranks[0]) - len(ranks[1])) <= 1


def test_streaming_too_few_parts_for_the_workers_says_so(small: Small) -> None:
    for rank in range(2):
        with pytest.raises(BadInputError, match=r"data\.mode"):
            list(stream(small.decoded(), small, rank, 2).training(1, 4, 0))


# ---- the choice between them


def test_the_mode_is_chosen_by_size(decoded: Decoded) -> None:
    cache = decoded.cache
    size = cache.nbytes
    assert size == 63 * (2 * 3 * 32 * 32 + 2 * 16 * 48)
    half = DataConfig(memory_share=0.5)
    assert choose_mode(cache, half, 2 * size)[0] == "memory"
    assert choose_mode(cache, half, 2 * size - 2)[0] == "stream"
    assert choose_mode(cache, half, 0)[0] == "stream"
    for mode in ("memory", "stream"):
        chosen, why = choose_mode(cache, DataConfig(mode=mode), 0)
        assert chosen == mode and f"data.mode is {mode}" in why
    big = dataclasses.replace(cache, counts={"train": 200_000})
    assert "do not fit in 1024 MiB" in choose_mode(big, half, 2**31)[1]
