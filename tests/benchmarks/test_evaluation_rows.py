"""The baselines of the evaluation's rows give what ours gives, so that the rows compare like with like."""

from __future__ import annotations

import pytest
import torch

from benchmarks.evaluation_rows import ROWS, SIGMAS, Case, plain_pgd, plain_smoothing, whole_passes
from benchmarks.pairs import Bench
from crmt.attacks import Ball, pgd
from crmt.certificates.estimate import gradient_constants
from crmt.certificates.sampling import SmoothingSettings, smooth

BENCH = Bench(torch.device("cpu"), full=False, rounds=1)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(BENCH, 4, 8, epochs=4)


@pytest.mark.parametrize("attacked", [("video", "audio"), ("audio",)])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
def test_the_plain_pgd_breaks_what_ours_breaks(case: Case, attacked: tuple[str, ...], epsilon: float) -> None:
    ours = pgd(case.model, case.batch.inputs, case.batch.labels, Ball.joint(attacked, epsilon), steps=10)
    plain = plain_pgd(case.model, case.batch, attacked, epsilon, steps=10)
    assert int((plain != ~ours.broken).sum()) <= 1


def test_whole_passes_give_tau(case: Case) -> None:
    found = gradient_constants(case.model, [case.batch], pairs=False)
    torch.testing.assert_close(whole_passes(case.model, case.batch.inputs), found.tau, rtol=1e-3, atol=1e-5)


def test_plain_smoothing_gives_like_radii(case: Case) -> None:
    ours = [c.radius for c in smooth(case.model, [case.batch], SmoothingSettings(sigmas=SIGMAS, n0=20, n=200))]
    plain = plain_smoothing(case.model, case.batch, n0=20, n=200, size=64)
    assert sum(abs(a - b) for a, b in zip(ours, plain, strict=True)) / len(ours) < 0.3


def test_every_target_of_the_evaluation_has_a_row() -> None:
    assert set(ROWS) == {8, 9, 10, 11, 12, 16}
