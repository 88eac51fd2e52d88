"""Atomic files: whole or absent, readable by others, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.infra.files import atomic_file, write_atomically


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(("data", "bytes_"), [("τ\n", "τ\n".encode()), (b"\x00\xff\r\n", b"\x00\xff\r\n")])
def test_it_holds_what_was_given(tmp_path: Path, data: str | bytes, bytes_: bytes, durable: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    umask = os.umask(0o077)
    try:
        write_atomically(path, data, durable)
    finally:
        os.umask(umask)
    assert path.read_bytes() == bytes_ and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_alone_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="half"), atomic_file(path) as temporary:
        temporary.write_text("ha")
        assert path.read_text() == "before" and temporary.parent == tmp_path
        raise RuntimeError("half")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", "x")
