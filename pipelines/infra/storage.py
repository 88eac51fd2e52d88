"""Where decoded clips are kept: a folder on disk, or one on any filesystem that pyarrow opens by its URI.

A `Folder` holds nothing but its location, so it travels to the nodes of a cluster and is opened there. A file in it is
whole or absent, whatever kills the writer. One listing is one request, however many files there are.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from crmt.errors import BadInputError, CRMTError
from pipelines.infra.files import write_atomically

READERS = 16
"""Files of a remote folder that are read side by side."""

_OBJECT_STORES = ("s3", "gcs", "abfs")
_SECRET = re.compile(r"secret|password|token|key|^sig$", re.IGNORECASE)
_ADMITTED = "a folder, or the URI of one: s3://bucket/folder, gs://, abfs://, hdfs:// or file:///folder"


def is_uri(location: str) -> bool:
    """Whether a location is a URI, not a path."""
    return "://" in location


def holds_secret(location: str) -> bool:
    """Whether a location is a URI with a password or a key in it, which would end up in every card and log."""
    rest = location.partition("://")[2]
    names = [field.partition("=")[0] for field in rest.partition("?")[2].split("&")]
    return ":" in rest.rpartition("@")[0] or any(map(_SECRET.search, names))


def local_path(location: str) -> Path | None:
    """The path that a location means, be it written as one or as file:///path; None where it is not on a disk here.

    Raises:
        BadInputError: a file URI that means no path.
    """
    if not is_uri(location):
        return Path(location).expanduser().absolute()
    return Path(_opened(location)[1]) if location.lower().startswith("file:") else None


@dataclass(frozen=True)
class Folder:
    """A folder for files that are written once. Use `folder_at` to make one.

    What its methods raise: OSError of a local folder as it is; any failure of another one as a CRMTError of one line.
    """

    location: str
    """An absolute path, or the URI as the user wrote it: what is below comes before the query."""

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> Folder:
        if self.local:
            return Folder(str(self.local / name))
        base, mark, query = self.location.partition("?")
        return Folder(f"{base.rstrip('/')}/{quote(name)}{mark}{query}")

    @property
    def local(self) -> Path | None:
        """The folder's path, where it is on a disk of this machine (or mounted like one)."""
        return None if is_uri(self.location) else Path(self.location)

    @property
    def filesystem(self) -> fs.FileSystem | None:
        """The filesystem with which pyarrow and Ray Data open `path`; None (their default) for a local folder."""
        return None if self.local else _opened(self.location)[0]

    def path(self, name: str) -> str:
        """The path of a file in this folder, as `filesystem` takes it."""
        return f"{self.location if self.local else _opened(self.location)[1]}/{name}"

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names of its files that match; none where it does not exist. One request."""
        if self.local:
            return sorted(found.name for found in self.local.glob(pattern))
        filesystem, path = _opened(self.location)
        with self._one_line("listed"):
            infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        # Azure shows a file that is being written as an empty one; no file of ours is empty
        found = [info.base_name for info in infos if info.type == fs.FileType.File and info.size]
        return sorted(fnmatch.filter(found, pattern))

    def folders(self, pattern: str = "*") -> list[str]:
        """Sorted names of the folders in it that match; none where it does not exist. One request."""
        if self.local:
            return sorted(found.name for found in self.local.glob(pattern) if found.is_dir())
        filesystem, path = _opened(self.location)
        with self._one_line("listed"):
            infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        found = [info.base_name for info in infos if info.type == fs.FileType.Directory]
        return sorted(fnmatch.filter(found, pattern))

    def has(self, name: str) -> bool:
        """Whether it holds a file."""
        if self.local:
            return (self.local / name).exists()
        with self._one_line("read"):
            info = _opened(self.location)[0].get_file_info(self.path(name))
        return info.type == fs.FileType.File and bool(info.size)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        if self.local:
            return (self.local / name).read_bytes()
        with self._one_line("read"), _opened(self.location)[0].open_input_file(self.path(name)) as file:
            content: bytes = file.read()
        return content

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The contents of several files; remote ones are read side by side.

        Args:
            names: of files in this folder.
        """
        if self.local:
            return [self.read(name) for name in names]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, in place of one of the same name. A local folder must exist.

        Args:
            name: of the file in this folder.
            content: all that it shall hold.
        """
        if self.local:
            write_atomically(self.local / name, content, durable=True)
        else:
            with self._one_line("written"):
                write_remote(_opened(self.location)[0], self.path(name), content)

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
        elif self.has(name):
            with self._one_line("written"):
                _opened(self.location)[0].delete_file(self.path(name))

    def check(self) -> None:
        """Ask once whether a remote folder can be reached, so that nothing is decoded in vain.

        Raises:
            BadInputError: a scheme that pyarrow does not know, no such bucket, no credentials, nobody who answers.
        """
        if self.local:
            return
        filesystem, path = _opened(self.location)
        bucket = path.partition("/")[0]
        try:
            if filesystem.type_name in _OBJECT_STORES:
                there = bool(bucket) and filesystem.get_file_info(bucket).type != fs.FileType.NotFound
            else:
                there = True  # folders are made as they are needed
            # to list is a right of its own; what is listed here is nothing, for the folder itself may hold millions
            filesystem.get_file_info(fs.FileSelector(f"{path}/.none", allow_not_found=True))
        except (OSError, pa.ArrowException) as error:
            raise _unusable(self.location, _first_line(error)) from None
        if not there:
            raise _unusable(self.location, f"there is no bucket {bucket!r}" if bucket else "it names no bucket")

    @contextlib.contextmanager
    def _one_line(self, done: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise CRMTError(f"{self} cannot be {done}: {_first_line(error)}") from None


def folder_at(location: str) -> Folder:
    """The folder at a path or a URI.

    Raises:
        BadInputError: a file URI that means no path.
    """
    path = local_path(location)
    return Folder(str(path) if path else location)


@cache
def _opened(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI and the path in it; once a process, for it can cost a request."""
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, pa.ArrowException) as error:
        raise _unusable(location, _first_line(error)) from None
    return filesystem, path.strip("/") if filesystem.type_name in _OBJECT_STORES else path


def _unusable(location: str, why: str) -> BadInputError:
    return BadInputError(
        f"data.cache: {location} cannot be used: {why}. Give {_ADMITTED}; credentials belong in the "
        "environment or the credentials file of every node"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def write_remote(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file whole or not at all, as the filesystem admits.

    An object store shows an upload when it is complete. Elsewhere (HDFS) the file is written under a hidden name of its
    own and then moved; a writer that is killed leaves that name behind, and no reader looks at it.
    """
    if filesystem.type_name in _OBJECT_STORES:
        with filesystem.open_output_stream(path) as file:
            file.write(content)
        return
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(temporary) as file:
        file.write(content)
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_file(path)  # HDFS moves onto no existing file
    filesystem.move(temporary, path)
