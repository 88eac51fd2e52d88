"""The benchmarks' ratios: alternating order, the median of the rounds' ratios, verdicts in both directions."""

from __future__ import annotations

from unittest import mock

import pytest

from benchmarks import pairs
from benchmarks.pairs import Row, paired, table


def test_both_run_in_alternating_order_after_a_warm_up_and_ratios_are_paired_by_round() -> None:
    runs: list[str] = []
    clock = {"now": 0.0}
    slow = {"ours": iter([9.0, 1.0, 2.0, 4.0]), "theirs": iter([9.0, 2.0, 6.0, 4.0])}

    def run(name: str) -> None:
        runs.append(name)
        clock["now"] += next(slow[name])

    with mock.patch.object(pairs, "perf_counter", lambda: clock["now"]):
        found = paired(lambda: run("ours"), lambda: run("theirs"), rounds=3)
    assert runs == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert found == (2.0, 2.0, 4.0)  # the median of 2, 3 and 1


@pytest.mark.parametrize(("ratio", "at_least", "met"), [(1.0, True, True), (0.9, True, False), (0.9, False, True)])
def test_a_row_meets_its_target_in_its_own_direction(ratio: float, at_least: bool, met: bool) -> None:
    row = Row(3, "training", "a plain loop", ratio, 0.95, at_least)
    assert row.met == met == row.to_json()["met"]
    assert ("| met |" if met else "| missed |") in table([row])
