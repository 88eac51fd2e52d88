"""Atomic files: whole or absent, readable by others, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crmt.errors import BadInputError
from pipelines import sweep
from pipelines.infra.files import atomic_file, check_ours, write_atomically


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


def test_pickles_that_another_may_have_written_are_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "tune" / "trial" / "state.pkl"
    file.parent.mkdir(parents=True)
    file.touch(0o644)
    check_ours(tmp_path / "tune")
    file.chmod(0o666)
    with pytest.raises(BadInputError, match=r"state.pkl .*add --trust"):
        check_ours(tmp_path / "tune")
    file.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
        with pytest.raises(BadInputError, match="another user's"):
            check_ours(tmp_path / "tune")


def test_a_sweep_that_others_may_write_to_is_resumed_by_those_who_trust_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "tune").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "tune").chmod(0o777)
    assert sweep.main(["--resume", str(run)]) == 2
    assert "add --trust" in capsys.readouterr().err
    assert sweep.main(["--resume", str(run), "--trust"]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
