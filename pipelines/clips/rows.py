"""Decoded clips to rows of Parquet and back, and the sums from which the train split's statistics are computed.

A row holds id, label, split, group and, of every modality, its bytes (null where the clip lacks it) and
`present_<modality>`. Pictures are a list of JPEGs, one a frame. Flow is one, too, both directions below one another: a
third of a PNG's or zstd's bytes, at a mean error of 0.04 of 254 steps. Everything else is the array's own bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.clips.kinds import Kind, ModalityMeta

Arrays = Mapping[str, NDArray[Any] | None]
"""A clip's arrays by modality; None for one that it lacks."""

_COLOURS = 3
_FULL_CHROMA_SIDE = 128  # JPEGs of at most this side keep their colours at full resolution


def present_column(modality: str) -> str:
    """The column that tells whether a clip has this modality."""
    return f"present_{modality}"


def schema_of(kinds: Mapping[str, Kind]) -> pa.Schema:
    """Columns of a part; the shapes of what the bytes hold are in the schema's metadata, as JSON."""
    fields = [("id", pa.string()), ("label", pa.int32()), ("split", pa.string()), ("group", pa.string())]
    for name, kind in kinds.items():
        stored = pa.list_(pa.binary()) if kind.jpeg else pa.binary()
        fields += [(name, stored), (present_column(name), pa.bool_())]
    return pa.schema(fields, metadata={name: json.dumps(kind.shape) for name, kind in kinds.items()})


def encode_row(arrays: Arrays, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The columns of one clip's modalities.

    Args:
        arrays: modality to its array; one that the clip lacks is left out.
        kinds: how each is stored.
    """
    columns: dict[str, Any] = {}
    for name, kind in kinds.items():
        array = arrays[name]
        columns[present_column(name)] = array is not None
        if array is None:
            columns[name] = None
        elif kind.jpeg:
            colour = array.shape[1] == _COLOURS
            images = array.transpose(0, 2, 3, 1) if colour else array.reshape(len(array), -1, array.shape[-1])
            columns[name] = [_jpeg(image, kind.jpeg_quality) for image in images]
        else:
            columns[name] = array.astype(kind.dtype.newbyteorder("<")).tobytes()
    return columns


def decode_rows(table: pa.Table, metas: Mapping[str, ModalityMeta]) -> dict[str, np.ndarray]:
    """Parquet rows to arrays `(N, *shape)`, ids, labels and `present_<modality>`; zeros where one is absent."""
    arrays: dict[str, np.ndarray] = {
        "id": np.asarray(table["id"].to_pylist(), dtype=object),
        "label": table["label"].to_numpy().astype(np.int64),
    }
    for name, meta in metas.items():
        encoded = Encoded(table[name].to_pylist(), meta)
        arrays[name], arrays[present_column(name)] = encoded.whole(), encoded.present
    return arrays


@dataclass(frozen=True)
class Encoded:
    """One modality of some clips as rows hold it (see pipelines/clips/stored.py)."""

    column: Sequence[Any]
    """A clip's bytes, or its list of JPEGs; None where it lacks the modality."""
    meta: ModalityMeta

    def __len__(self) -> int:
        return len(self.column)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which clips have the modality, `(B,)`."""
        return np.asarray([stored is not None for stored in self.column], dtype=bool)

    def whole(self) -> NDArray[Any]:
        arrays = np.zeros((len(self.column), *self.meta.shape), self.meta.dtype)
        for clip, stored in enumerate(self.column):
            if isinstance(stored, bytes):
                values = np.frombuffer(stored, np.dtype(self.meta.dtype).newbyteorder("<"))
                arrays[clip] = values.reshape(self.meta.shape)
            elif stored is not None:
                for number in range(len(stored)):
                    arrays[clip, number] = self.picture(clip, number)
        return arrays

    def picture(self, clip: int, number: int) -> NDArray[np.uint8]:
        stored, shape = self.column[clip], self.meta.shape[1:]
        if stored is None:
            return np.zeros(shape, np.uint8)
        # the decoder of libjpeg-turbo, as Pillow's is, with its defaults: the same pixels at two thirds of the cost
        image = simplejpeg.decode_jpeg(stored[number], "RGB" if shape[0] == _COLOURS else "GRAY")
        if shape[0] != _COLOURS:
            return image.reshape(shape)
        import cv2

        planes = np.empty(shape, np.uint8)
        cv2.split(image, list(planes))  # a third of what a transposed copy costs
        return planes


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    subsampling = "4:4:4" if max(image.shape[:2]) <= _FULL_CHROMA_SIDE else "4:2:0"
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def empty_sums(modalities: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """Modality to the number of values in each channel, their sum and the sum of their squares, as JSON holds them."""
    return {m: {"count": 0, "total": [], "squares": []} for m in modalities}


def add_clip(sums: dict[str, dict[str, Any]], arrays: Arrays, kinds: Mapping[str, Kind]) -> None:
    """Add a clip to the sums of a shard: exact whole numbers for whole numbers, float64 for others."""
    for name, entry in sums.items():
        array, axis = arrays[name], kinds[name].statistics_axis
        if array is None:
            continue
        by_channel = (
            array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        )
        whole = np.issubdtype(array.dtype, np.integer)
        exact = np.int64 if whole and array.itemsize > 1 else np.float64  # which sums bytes exactly, and far sooner
        channels = [channel.astype(exact) for channel in by_channel]
        entry["count"] += by_channel.shape[1]
        for field, found in (("total", [c.sum() for c in channels]), ("squares", [(c * c).sum() for c in channels])):
            values = [int(value) if whole else float(value) for value in found]
            entry[field] = [a + b for a, b in zip(entry[field] or [0] * len(values), values, strict=True)]


def statistics(kind: Kind, sums: list[dict[str, Any]]) -> ModalityMeta:
    """Mean and deviation over all shards' sums (0 and 1 where train has no clip: such a set is refused later)."""
    lowest, scale = kind.unit
    filled = [s for s in sums if s["count"]]
    count = sum(s["count"] for s in filled)
    channels = 1 if kind.statistics_axis is None else kind.shape[kind.statistics_axis]
    mean, std = [0.0] * channels, [1.0] * channels
    for c in range(channels if count else 0):
        mean[c] = sum(s["total"][c] for s in filled) / count
        variance = sum(s["squares"][c] for s in filled) / count - mean[c] ** 2
        mean[c], std[c] = (mean[c] - lowest) / scale, max(variance, 1e-12) ** 0.5 / scale
    return ModalityMeta(kind.shape, kind.dtype.name, tuple(mean), tuple(std))
