"""Files on a server that may be away for a while: what it is asked is asked again until it answers."""

from __future__ import annotations

import io
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

PATIENCE_SECONDS = 120.0
"""How long a server that does not answer is asked again before the request fails."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""They show an upload when it is complete."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_IN_MEMORY = 16 * 2**20
"""The most bytes of a file on its way up that wait in memory; more wait on the disk."""
_PIECE = 8 * 2**20
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|AuthenticationFailed|HTTP status 4(?!08|29)\d\d",
    re.IGNORECASE,
)
"""What a server says that is there and will say so again."""
_FINAL = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError)
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def patiently(work: Callable[[], _T], where: str) -> _T:
    """Ask a server for something, and again with longer and longer pauses while it is away, for `PATIENCE_SECONDS`.

    Each failure is a warning in the log, and so is the answer in the end.

    Args:
        work: asks once; it can be asked twice.
        where: what is asked, for the log.

    Raises:
        OSError: a refusal at once, or what the last of many tries ended with.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            done = work()
        except (OSError, pa.ArrowException) as error:
            left = began + PATIENCE_SECONDS - time.monotonic()
            if left <= 0 or isinstance(error, _FINAL) or _REFUSED.search(str(error)):
                raise
            why = first_line(error).partition("; Details")[0]
            _LOG.warning("%s does not answer (%s): asked again for %.0f s more", where, why, left)
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if pause > _FIRST_PAUSE:
                _LOG.warning("%s answers again after %.0f s", where, time.monotonic() - began)
            return done


def write_remote(filesystem: fs.FileSystem, path: str, content: bytes | IO[bytes]) -> None:
    """Write a file whole or not at all, as the filesystem admits.

    An object store shows an upload when it is complete. Elsewhere (HDFS) the file is written under a hidden name of its
    own and then moved; a writer that is killed leaves that name behind, and no reader looks at it.

    Args:
        filesystem: takes the file.
        path: on it.
        content: all that it shall hold; a file is read from where it stands.
    """
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    if filesystem.type_name in OBJECT_STORES:
        with filesystem.open_output_stream(path) as file:
            shutil.copyfileobj(source, file, _PIECE)
        return
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(temporary) as file:
        shutil.copyfileobj(source, file, _PIECE)
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_file(path)  # HDFS moves onto no existing file
    filesystem.move(temporary, path)


class _Upload:
    """A file that is sent when it is closed, as often as it takes."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self.closed = False
        self._filesystem, self._path = filesystem, path
        self._waiting = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115

    def write(self, data: Any) -> int:
        return self._waiting.write(data)

    def tell(self) -> int:
        return self._waiting.tell()

    def flush(self) -> None:
        """What is sent is the whole file, at its end."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True

        def send() -> None:
            self._waiting.seek(0)
            write_remote(self._filesystem, self._path, self._waiting)

        with self._waiting:
            patiently(send, self._path)


class _Download(io.RawIOBase):
    """A file of a server, each piece of which is asked for as often as it takes."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._path, self._at = path, 0
        self._file = patiently(lambda: filesystem.open_input_file(path), path)
        self._size = patiently(self._file.size, path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        found: bytes = patiently(lambda: self._file.read_at(wanted, self._at), self._path) if wanted else b""
        self._at += len(found)
        return found

    def readall(self) -> bytes:
        return self.read()


class Patient(fs.FileSystemHandler):
    """A filesystem of pyarrow's that asks patiently: what Tune and Train are given for their own state."""

    def __init__(self, filesystem: fs.FileSystem, location: str) -> None:
        self.filesystem, self.location = filesystem, location

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and self.location == other.location

    def __hash__(self) -> int:
        return hash(self.location)

    def _ask(self, name: str, path: str, *more: Any, **named: Any) -> Any:
        return patiently(lambda: getattr(self.filesystem, name)(path, *more, **named), path)

    def get_type_name(self) -> str:
        return f"patient+{self.filesystem.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(patiently(lambda: self.filesystem.get_file_info(paths), ", ".join(paths)))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return list(patiently(lambda: self.filesystem.get_file_info(selector), selector.base_dir))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask("create_dir", path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._ask("delete_dir", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._ask("delete_dir_contents", path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nobody empties a whole server")

    def delete_file(self, path: str) -> None:
        self._ask("delete_file", path)

    def move(self, src: str, dest: str) -> None:
        self._ask("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._ask("copy_file", src, dest)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_Download(self.filesystem, path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        return pa.PythonFile(_Upload(self.filesystem, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        raise NotImplementedError("a file is written once")


def location_of(filesystem: fs.FileSystem) -> str | None:
    """The URI of the folder whose patient filesystem this is; None for any other filesystem."""
    handler = getattr(filesystem, "handler", None)
    return handler.location if isinstance(handler, Patient) else None
