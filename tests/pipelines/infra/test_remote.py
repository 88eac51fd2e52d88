"""A server that is away for a while is asked again, by us and by Ray, and nothing is lost."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from crmt.errors import CRMTError
from pipelines.infra import remote
from pipelines.infra.storage import Folder, folder_at
from pipelines.runs import lease
from tests.pipelines.s3 import S3, Wire


def through(wire: Wire, path: str) -> Folder:
    return folder_at(f"s3://{path}?endpoint_override={wire.address}&scheme=http")


def test_a_server_that_is_away_is_asked_again_and_the_log_says_so(
    s3: S3, run: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(s3.address)
    folder = through(wire, run.root)
    folder.write("before", b"x")
    wire.cut()
    threading.Timer(4, wire.mend).start()
    with caplog.at_level(logging.WARNING):
        folder.write("after", b"y")
    assert run.read("after") == b"y" and folder.names() == ["after", "before"]
    assert "does not answer" in caplog.text and "answers again after" in caplog.text
    wire.cut()


def test_patience_ends_and_a_refusal_is_not_asked_twice(
    s3: S3, run: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 4.0)
    wire = Wire(s3.address)
    folder = through(wire, run.root)
    wire.cut()
    with pytest.raises(CRMTError, match="cannot be written") as caught:
        folder.write("a", b"x")
    assert "\n" not in str(caught.value) and caplog.text.count("does not answer") >= 1
    caplog.clear()
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 120.0)
    with pytest.raises(CRMTError, match="bucket"):
        folder_at(s3.uri("nowhere/x")).write("a", b"x")
    assert "does not answer" not in caplog.text


def test_patience_is_long_enough() -> None:
    assert remote.PATIENCE_SECONDS >= 60 and lease.STALE_SECONDS > remote.PATIENCE_SECONDS


def test_rays_state_goes_up_and_down_through_an_outage(s3: S3, run: Folder, tmp_path: Path) -> None:
    """As Tune and Train copy it: many files by several threads of pyarrow's."""
    wire = Wire(s3.address)
    folder = through(wire, run.root)
    filesystem = pickle.loads(pickle.dumps(folder.patient))
    assert filesystem == folder.patient and remote.location_of(filesystem) == str(folder)
    assert remote.location_of(fs.LocalFileSystem()) is None
    files = {f"{n}.bin": os.urandom(1000 * n) for n in range(1, 40)} | {"large.bin": os.urandom(12 * 2**20)}
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    (tmp_path / "down").mkdir()
    filesystem.create_dir(folder.path("up"))
    wire.cut()
    threading.Timer(2, wire.mend).start()
    fs.copy_files(str(source), folder.path("up"), destination_filesystem=filesystem, chunk_size=64 * 2**20)
    wire.cut()
    threading.Timer(2, wire.mend).start()
    fs.copy_files(folder.path("up"), str(tmp_path / "down"), source_filesystem=filesystem)
    assert {f.name: f.read_bytes() for f in (tmp_path / "down").iterdir()} == files
    with filesystem.open_input_file(folder.path("up/large.bin")) as file:
        file.seek(5)
        assert file.read(7) == files["large.bin"][5:12] and file.tell() == 12 and file.size() == 12 * 2**20
    filesystem.delete_dir(folder.path("up"))
    assert filesystem.get_file_info(folder.path("up/1.bin")).type == fs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(folder.path("none"))
    wire.cut()


def test_a_handler_says_what_it_cannot(run: Folder) -> None:
    filesystem = run.patient
    assert filesystem is not None and filesystem.type_name == "py::patient+s3"
    with pytest.raises((NotImplementedError, pa.ArrowException)):
        filesystem.open_append_stream(run.path("x"))
