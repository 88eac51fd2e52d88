"""What a decoded clip looks like as a row of Parquet, both ways; and the sums that the train split's statistics are of.

A row holds id, label, split, group and, of every modality, its bytes (null where the clip lacks it) and
`present_<modality>`. Video is a list of JPEGs, one a frame. Flow is one, too, both directions below one another: a
third of a PNG's or zstd's bytes, at a mean error of 0.04 of 254 steps. Sound is float16.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipelines.config.schema import DataConfig
from pipelines.decoding.clip import DecodedClip

DTYPES: dict[str, type[np.generic]] = {"video": np.uint8, "audio": np.float16, "flow": np.uint8}
MODALITIES = tuple(DTYPES)
FLOW_STEPS = 254
"""A byte b of flow is (b - 1) / 254: 128, no motion, is 0.5."""

_FULL_CHROMA_SIDE = 128  # JPEGs of at most this side keep their colours at full resolution


@dataclass(frozen=True)
class ModalityMeta:
    """One modality of a cache: video (F, 3, H, W) uint8, flow (F, 2, H, W) uint8, or audio (1, bands, frames) float16.

    `mean` and `std` are over the train split: of video and flow per channel of values in [0, 1], of audio one value.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def shapes_of(data: DataConfig) -> dict[str, tuple[int, ...]]:
    """Of one clip as it is stored, by modality."""
    count, size = data.video.frames * data.video.candidates, data.video.size
    return {"video": (count, 3, size, size), "audio": data.audio.shape, "flow": (count, 2, size, size)}


def present_column(modality: str) -> str:
    """The column that tells whether a clip has this modality."""
    return f"present_{modality}"


def schema_of(data: DataConfig, modalities: Iterable[str]) -> pa.Schema:
    """Columns of a part; the shapes of what the bytes hold are in the schema's metadata, as JSON."""
    fields = [("id", pa.string()), ("label", pa.int32()), ("split", pa.string()), ("group", pa.string())]
    for name in modalities:
        stored = pa.binary() if name == "audio" else pa.list_(pa.binary())
        fields += [(name, stored), (present_column(name), pa.bool_())]
    return pa.schema(fields, metadata={m: json.dumps(shapes_of(data)[m]) for m in modalities})


def arrays_of(decoded: DecodedClip) -> dict[str, NDArray[Any] | None]:
    return {"video": decoded.frames, "audio": decoded.audio, "flow": decoded.flow}


def encode_row(decoded: DecodedClip, modalities: Iterable[str], quality: int) -> dict[str, Any]:
    """The columns of one clip's modalities."""
    columns: dict[str, Any] = {}
    for name in modalities:
        array = arrays_of(decoded)[name]
        columns[present_column(name)] = array is not None
        if array is None:
            columns[name] = None
        elif name == "audio":
            columns[name] = array.astype("<f2").tobytes()
        else:
            images = array if name == "video" else array.reshape(len(array), -1, array.shape[-1])
            columns[name] = [_jpeg(image, quality) for image in images]
    return columns


def decode_rows(table: pa.Table, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Parquet rows to arrays `(N, *shape)`, ids, labels and `present_<modality>`; zeros where one is absent."""
    arrays: dict[str, np.ndarray] = {
        "id": np.asarray(table["id"].to_pylist(), dtype=object),
        "label": table["label"].to_numpy().astype(np.int64),
    }
    for name, shape in shapes.items():
        column = table[name].to_pylist()
        arrays[name] = np.zeros((len(column), *shape), DTYPES[name])
        arrays[present_column(name)] = np.asarray([stored is not None for stored in column], dtype=bool)
        for target, stored in zip(arrays[name], column, strict=True):
            if stored is not None:
                target[...] = _array(name, stored, shape)
    return arrays


def _array(name: str, stored: Any, shape: tuple[int, ...]) -> np.ndarray:
    if name == "audio":
        return np.frombuffer(stored, "<f2").reshape(shape)
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in stored])
    return images.reshape(shape) if name == "flow" else images.transpose(0, 3, 1, 2)


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    subsampling = "4:4:4" if max(image.shape[:2]) <= _FULL_CHROMA_SIDE else "4:2:0"
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def no_sums(modalities: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By modality: how many values a channel, their total and the total of their squares. JSON."""
    return {m: {"count": 0, "total": [], "squares": []} for m in modalities}


def add_clip(sums: dict[str, dict[str, Any]], decoded: DecodedClip) -> None:
    """Add a clip to the sums of a shard: exact whole numbers for pixels and flow, float64 for sound."""
    for name, entry in sums.items():
        array = arrays_of(decoded)[name]
        if array is None:
            continue
        if name == "audio":
            columns = array.reshape(-1, 1).astype(float)
        else:
            columns = np.moveaxis(array, 1 if name == "flow" else -1, -1).astype(np.int64)
            columns = columns.reshape(-1, columns.shape[-1])
        entry["count"] += len(columns)
        for field, values in (("total", columns.sum(0)), ("squares", (columns**2).sum(0))):
            entry[field] = [a + b for a, b in zip(entry[field] or [0] * len(values), values.tolist(), strict=True)]


def meta_of(modality: str, data: DataConfig, sums: list[dict[str, Any]]) -> ModalityMeta:
    """Mean and deviation over all shards' sums (0 and 1 where train has no clip: such a set is refused later)."""
    lowest, scale = {"video": (0.0, 255.0), "audio": (0.0, 1.0), "flow": (1.0, float(FLOW_STEPS))}[modality]
    filled = [s for s in sums if s["count"]]
    count = sum(s["count"] for s in filled)
    shape = shapes_of(data)[modality]
    channels = shape[0] if modality == "audio" else shape[1]
    mean, std = [0.0] * channels, [1.0] * channels
    for c in range(channels if count else 0):
        mean[c] = sum(s["total"][c] for s in filled) / count
        variance = sum(s["squares"][c] for s in filled) / count - mean[c] ** 2
        mean[c], std[c] = (mean[c] - lowest) / scale, max(variance, 1e-12) ** 0.5 / scale
    return ModalityMeta(shape, np.dtype(DTYPES[modality]).name, tuple(mean), tuple(std))
