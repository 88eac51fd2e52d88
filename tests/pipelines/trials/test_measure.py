"""Measuring a model: shares and their intervals, and the same rows whatever the number of ranks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crmt.certificates.estimate import gradient_constants
from crmt.evaluation import Share
from crmt.model import ModelSpec, MultiModalModel, build_model
from pipelines.clips.batches import MemoryClips, Placement, modalities_of
from pipelines.config.run_config import RunConfig
from pipelines.trials.measure import Measured, Measurement
from tests.pipelines.small import NAMES, Decoded, Small


@given(st.integers(1, 3000), st.data())
def test_a_share_carries_its_wilson_interval(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    found = Share.of(successes, n)._asdict()
    p, z = successes / n, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert found["value"] == p and found["n"] == n
    assert found["low"] == pytest.approx(centre - half, abs=1e-9)
    assert found["high"] == pytest.approx(centre + half, abs=1e-9)


def test_a_share_of_nothing_is_no_number() -> None:
    assert Share.of(0, 0)._asdict() == {"value": None, "low": None, "high": None, "n": 0}


class Ranks:
    """Gathers over threads: what torch.distributed does between processes."""

    def __init__(self, world: int) -> None:
        self._barrier, self._values = threading.Barrier(world, timeout=60), [None] * world

    def of(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            self._barrier.wait()
            self._values[rank] = value
            self._barrier.wait()
            return list(self._values)

        return gather


def model_of(decoded: Decoded, config: RunConfig, head: str) -> MultiModalModel:
    modalities = modalities_of(decoded.cache, config.data, NAMES)
    spec = ModelSpec(
        modalities=modalities,
        encoders=dict(config.model.encoders),
        features=16,
        head=head,
        classes=decoded.cache.classes,
    )
    return build_model(spec, 1)


def measured(decoded: Decoded, config: RunConfig, head: str, world: int) -> tuple[list[Measured], list[float]]:
    model, ranks, heard = model_of(decoded, config, head), Ranks(world), []
    constants = gradient_constants(model, MemoryClips(decoded.table, decoded.transform(config)).ordered("train", 8))
    reference = torch.zeros(2, len(decoded.cache.classes))
    results: dict[int, Measured] = {}

    def work(rank: int) -> None:
        clips = MemoryClips(decoded.table, decoded.transform(config), Placement(rank, world))

        def progress(phase: str, fraction: float) -> None:
            if rank == 0:
                heard.append(fraction)

        measure = Measurement(config, clips, ranks.of(rank), progress)
        results[rank] = measure(copy.deepcopy(model), constants, reference, "step1", True)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world)], heard


@pytest.mark.parametrize("head", ["concat", "orthogonal"])
def test_every_rank_has_the_rows_of_one_rank_alone(small: Small, decoded: Decoded, head: str) -> None:
    config = small.config(attack={"samples": 7}, certify={"audit_samples": 5})
    (alone,), heard = measured(decoded, config, head, 1)
    both, _ = measured(decoded, config, head, 2)
    for one in both:
        for table in ("metrics", "curves", "radii"):
            rows, expected = pd.DataFrame(getattr(one, table)), pd.DataFrame(getattr(alone, table))
            if table == "radii":
                rows, expected = (t.sort_values(["ball", "clip_id"], ignore_index=True) for t in (rows, expected))
            pd.testing.assert_frame_equal(rows, expected, rtol=1e-4, atol=1e-6)
    assert all(0 <= f <= 1 for f in heard) and heard[-1] == 1


def test_numbers_are_found_by_name(small: Small, decoded: Decoded) -> None:
    (found,), _ = measured(decoded, small.config(certify={"audit_samples": 0}), "orthogonal", 1)
    assert found.value("clean_accuracy") is not None and found.value("missing_accuracy") is None
    assert found.value("missing_accuracy", "video") is not None and found.value("nothing") is None


def test_fewer_clips_can_be_audited_and_attacked_than_there_are(small: Small, decoded: Decoded) -> None:
    config = small.config(certify={"audit_samples": 4}, attack={"samples": 3})
    (found,), _ = measured(decoded, config, "orthogonal", 1)
    radii = pd.DataFrame(found.radii)
    assert radii.groupby("ball").size().nunique() == 1 and len(radii) > 3 * 4
    assert (radii[radii.audited].groupby("ball").size() <= 4).all()
    assert {r["n"] for r in found.curves} == {3}
