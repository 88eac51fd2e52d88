"""The input path as it was before its draws were made first: what row 2 of the benchmarks is measured against.

A frozen, short copy of pipelines/clips at commit ab24a42, for one worker, train split, video and audio: Ray Data
decodes all stored JPEGs of every clip with Pillow and hands on the pixels, `grid_sample` cuts and resizes, nothing runs
beside anything. Kept for the comparison alone; nothing else imports it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from crmt.modality import Batch
from pipelines.clips.batches import ClipTable
from pipelines.clips.transform import RandomChoices, Transform

Shapes = dict[str, tuple[int, ...]]
_TASK_CPUS = 0.25


def memory_epoch(table: ClipTable, transform: Transform, batch: int, epoch: int) -> Iterator[Batch]:
    """One epoch's batches from memory: whole clips are gathered, then cut."""
    order = np.random.default_rng([0, epoch]).permutation(len(table.ids))
    for step in range(len(order) // batch):
        rows = order[step * batch : (step + 1) * batch]
        arrays = {name: values[rows] for name, values in table.arrays.items()}
        inputs = _transformed(arrays, transform, transform.draw(batch, (0, epoch, step)))
        yield Batch(inputs, torch.from_numpy(table.labels[rows]), tuple(table.ids[rows].tolist()))


def streamed_epoch(
    paths: Sequence[str], shapes: Shapes, transform: Transform, batch: int, epoch: int
) -> Iterator[Batch]:
    """One epoch's batches from Parquet: decoded in Data tasks, shuffled as pixels.

    Args:
        paths: of the Parquet parts.
        shapes: of the stored video and audio.
        transform: says how clips are cut and standardised.
        batch: clips in a batch.
        epoch: seeds the order and the draws.
    """
    import ray.data

    order = np.random.default_rng([0, epoch]).permutation(len(paths))
    dataset = ray.data.read_parquet(
        [paths[p] for p in order],
        columns=["id", "label", "split", *shapes],
        ray_remote_args={"num_cpus": _TASK_CPUS},
        override_num_blocks=len(paths),
    ).map_batches(partial(_decoded, shapes=shapes), batch_format="pyarrow", num_cpus=_TASK_CPUS)
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ray.data.ExecutionResources(cpu=2 * _TASK_CPUS)
    shuffle: dict[str, Any] = {"local_shuffle_buffer_size": 8 * batch, "local_shuffle_seed": epoch}
    batches = dataset.iter_batches(batch_size=batch, batch_format="numpy", prefetch_batches=2, **shuffle)
    for step, arrays in enumerate(batches):
        if len(arrays["id"]) == batch:
            inputs = _transformed(arrays, transform, transform.draw(batch, (0, epoch, step)))
            labels = torch.from_numpy(np.require(arrays["label"], requirements="W"))
            yield Batch(inputs, labels, tuple(map(str, arrays["id"])))


def _decoded(table: pa.Table, shapes: Shapes) -> dict[str, np.ndarray]:
    table = table.filter(pa.array(np.asarray([s == "train" for s in table["split"].to_pylist()], dtype=bool)))
    arrays = {
        "id": np.asarray(table["id"].to_pylist(), dtype=object),
        "label": table["label"].to_numpy().astype(np.int64),
        "video": np.zeros((len(table), *shapes["video"]), np.uint8),
        "audio": np.zeros((len(table), *shapes["audio"]), np.float16),
    }
    for target, jpegs in zip(arrays["video"], table["video"].to_pylist(), strict=True):
        images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs])
        target[...] = images.transpose(0, 3, 1, 2)
    for target, stored in zip(arrays["audio"], table["audio"].to_pylist(), strict=True):
        target[...] = np.frombuffer(stored, "<f2").reshape(shapes["audio"])
    return arrays


def _transformed(arrays: dict[str, np.ndarray], transform: Transform, choices: RandomChoices) -> dict[str, Tensor]:
    video, (mean, std) = transform.data.video, transform.constants["audio"]
    stored, sound = (torch.from_numpy(np.require(arrays[m], requirements=("C", "W"))) for m in ("video", "audio"))
    frames = torch.arange(video.frames) * video.candidates + choices.candidate
    assert choices.box is not None
    picked = stored[torch.arange(len(stored))[:, None], frames].float()
    values = _resized(picked, choices.box.float(), video.crop) / 255
    values = torch.where(choices.flip[:, None, None, None, None], values.flip(-1), values)
    standard = (sound.float() - mean) / std
    length = standard.shape[-1]
    columns = (torch.arange(length)[None] + choices.time_shift[:, None]).clamp(0, length - 1)
    shifted = standard.gather(3, columns[:, None, None, :].expand_as(standard))
    return {"video": values, "audio": shifted + choices.gain[:, None, None, None]}


def _resized(frames: Tensor, box: Tensor, crop: int) -> Tensor:
    side, steps = frames.shape[-1], (torch.arange(crop) + 0.5) / crop
    rows, columns = box[:, :1] + steps * box[:, 2:3], box[:, 1:2] + steps * box[:, 3:]
    grid = torch.stack([columns[:, None, :].expand(-1, crop, -1), rows[:, :, None].expand(-1, -1, crop)], dim=-1)
    grid = (grid * 2 / side - 1).to(frames)
    cut = F.grid_sample(frames.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.unflatten(1, frames.shape[1:3])
