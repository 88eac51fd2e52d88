"""benchmarks/ingest_scale.py: what it counts as the command's memory, and what its page says of the whole set."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.ingest_scale import Measured, counts_of, markdown, processes, proportional
from crmt.errors import BadInputError

MIB = 64
HOLDER = f"import sys; held = b'x' * ({MIB} << 20); print(flush=True); sys.stdin.read()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {HOLDER!r}], stdin=sys.stdin, start_new_session=True)
child.wait()
"""


def test_memory_of_a_child_in_a_session_of_its_own_counts_too() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    found = processes(process.pid)
    sizes = [proportional(pid) for pid in found]
    process.stdin.close()
    process.wait(60)
    process.stdout.close()
    assert len(found) == 2 and process.pid in found and MIB < sum(sizes) < MIB + 100
    assert not processes(process.pid) and proportional(process.pid) == 0


def test_the_whole_set_is_the_rate_times_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    few = Measured(300, 15.0, 30_000_000, [50.0, 900.0, 1000.0], [5.0, 100.0, 120.0], 1)
    many = Measured(3000, 150.0, 300_000_000, [5000.0, 900.0, 1100.0, 1000.0], [5.0, 100.0, 120.0, 110.0], 1)
    assert many.row() == ["3,000", "1,100", "1,000", "120", "150", "10.0", "0.100"]  # not what was before decoding
    page = markdown([few, many], 10.0)
    assert "| 5.6 | 0.3 | 0.1 | 20 |" in page  # 200,000 clips at 10 a second and core; 0.1 MB each
    assert "over that with 300: 1.10." in page


def test_numbers_of_clips() -> None:
    assert counts_of("3000,300") == [300, 3000]
    for text in ("", "3,x", "-300", "17"):
        with pytest.raises(BadInputError, match="--clips"):
            counts_of(text)
