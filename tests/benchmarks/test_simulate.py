"""The arithmetic of a big sweep: what grows with what, and that what breaks first is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulate import Scale, loads, main, totals


def test_each_load_grows_with_what_it_depends_on() -> None:
    base, by_name = Scale(), {load.name: load for load in loads(Scale())}
    twice = {load.name: load for load in loads(replace(base, gpus=2 * base.gpus))}
    for name in ("cores of a node that make batches", "reading of a node from storage"):
        assert twice[name].used == pytest.approx(2 * by_name[name].used)
    larger = {load.name: load for load in loads(replace(base, clips=10 * base.clips))}
    assert sum(larger[n].used == pytest.approx(10 * by_name[n].used) for n in by_name) == 3


def test_a_sweep_on_half_the_gpus_takes_twice_as_long() -> None:
    def hours(scale: Scale) -> float:
        return float(dict(totals(scale))["the sweep"].split(" h;")[0])

    assert hours(Scale(nodes=4)) == pytest.approx(2 * hours(Scale()), rel=0.02)
    assert hours(Scale(trials=65)) == hours(Scale(nodes=4))  # two rounds


def test_what_breaks_first_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cpus", "32"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "cores of a node that make batches: training runs at 1/" in printed and "sweep.input_cpus" in printed
    assert main(["--cpus", "100000", "--network", "100"]) == 0
    assert "nothing breaks" in " ".join(capsys.readouterr().out.split())
