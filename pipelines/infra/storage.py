"""Where decoded clips and runs are kept: a folder on disk, or one on any filesystem that pyarrow opens by its URI.

A `Folder` holds nothing but its location, so it travels to the nodes of a cluster and is opened there. A file in it is
whole or absent, whatever kills the writer. One listing is one request, however many files there are. A server that is
away for a while is asked again (`pipelines.infra.remote`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from crmt.errors import BadInputError, CRMTError
from pipelines.infra.files import write_atomically
from pipelines.infra.remote import OBJECT_STORES, Patient, first_line, patiently, write_remote

READERS = 16
"""Files of a remote folder that are read side by side."""

_T = TypeVar("_T")
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


def local_path(location: str, field: str = "data.cache") -> Path | None:
    """The path that a location means, be it written as one or as file:///path; None where it is not on a disk here.

    Args:
        location: as the user wrote it.
        field: where: the setting or the option that an error names.

    Raises:
        BadInputError: a file URI that means no path.
    """
    if not is_uri(location):
        return Path(location).expanduser().absolute()
    return Path(_opened(location, field)[1]) if location.lower().startswith("file:") else None


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
    def name(self) -> str:
        """The last part of its path."""
        if self.local:
            return self.local.name
        return unquote(self.location.partition("?")[0].rstrip("/").rpartition("/")[2])

    @property
    def parent(self) -> Folder:
        """The folder that it lies in."""
        if self.local:
            return Folder(str(self.local.parent))
        base, mark, query = self.location.partition("?")
        return Folder(base.rstrip("/").rpartition("/")[0] + mark + query)

    @property
    def local(self) -> Path | None:
        """The folder's path, where it is on a disk of this machine (or mounted like one)."""
        return None if is_uri(self.location) else Path(self.location)

    @property
    def filesystem(self) -> fs.FileSystem | None:
        """The filesystem with which pyarrow and Ray Data open `path`; None (their default) for a local folder."""
        return None if self.local else _opened(self.location)[0]

    @property
    def patient(self) -> fs.PyFileSystem | None:
        """The same for Ray's own state: it asks again where the server is away. None for a local folder."""
        return None if self.local else fs.PyFileSystem(Patient(_foreground(self.location), self.location))

    @property
    def root(self) -> str:
        """The path of this folder, as its filesystems take it."""
        return self.location if self.local else _opened(self.location)[1]

    def path(self, name: str) -> str:
        """The path of a file in this folder, as `filesystem` takes it."""
        return f"{self.root}/{name}"

    def make(self) -> None:
        """Make a local folder with its parents; others are made as files are written."""
        if self.local:
            self.local.mkdir(parents=True, exist_ok=True)

    def make_empty(self, name: str) -> None:
        """Make a folder in it that holds nothing; an object store shows it by an object of its own."""
        if self.local:
            (self.local / name).mkdir(exist_ok=True)
        else:
            self._ask(lambda: _opened(self.location)[0].create_dir(self.path(name), recursive=False), "written")

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names of its files that match; none where it does not exist. One request."""
        if self.local:
            return sorted(found.name for found in self.local.glob(pattern))
        return sorted(fnmatch.filter(self.stamps(), pattern))

    def stamps(self) -> dict[str, float]:
        """Name of each file ▸ when it was written, in seconds of the server's own clock; of a remote folder. One
        request."""
        # Azure shows a file that is being written as an empty one; no file of ours is empty
        return {i.base_name: i.mtime_ns / 1e9 for i in self._listed() if i.type == fs.FileType.File and i.size}

    def folders(self, pattern: str = "*") -> list[str]:
        """Sorted names of the folders in it that match; none where it does not exist. One request."""
        if self.local:
            return sorted(found.name for found in self.local.glob(pattern) if found.is_dir())
        found = [info.base_name for info in self._listed() if info.type == fs.FileType.Directory]
        return sorted(fnmatch.filter(found, pattern))

    def _listed(self) -> list[fs.FileInfo]:
        filesystem, path = _opened(self.location)
        selector = fs.FileSelector(path, allow_not_found=True)
        return self._ask(lambda: list(filesystem.get_file_info(selector)), "listed")

    def has(self, name: str) -> bool:
        """Whether it holds a file."""
        if self.local:
            return (self.local / name).exists()
        info = self._ask(lambda: _opened(self.location)[0].get_file_info(self.path(name)), "read")
        return info.type == fs.FileType.File and bool(info.size)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        if self.local:
            return (self.local / name).read_bytes()

        def read() -> bytes:
            with _opened(self.location)[0].open_input_file(self.path(name)) as file:
                content: bytes = file.read()
            return content

        return self._ask(read, "read")

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The contents of several files; remote ones are read side by side.

        Args:
            names: of files in this folder.
        """
        if self.local:
            return [self.read(name) for name in names]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, content: bytes, durable: bool = True) -> None:
        """Write a file whole or not at all, in place of one of the same name. A local folder must exist.

        Args:
            name: of the file in this folder.
            content: all that it shall hold.
            durable: whether a local file shall be on the disk before this returns (`atomic_file`).
        """
        if self.local:
            write_atomically(self.local / name, content, durable=durable)
        else:
            self._ask(lambda: write_remote(_opened(self.location)[0], self.path(name), content), "written")

    def upload(self, file: Path) -> None:
        """Copy a file of this machine into a remote folder, under its own name."""

        def send() -> None:
            with file.open("rb") as source:
                write_remote(_opened(self.location)[0], self.path(file.name), source)

        self._ask(send, "written")

    @contextlib.contextmanager
    def here(self, pattern: str = "*") -> Iterator[Path]:
        """Its files on this machine while the block runs: the folder itself, or a copy of what matches right in it."""
        if self.local:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as copy:
            names = self.names(pattern)
            for name, content in zip(names, self.read_all(names), strict=True):
                (Path(copy) / name).write_bytes(content)
            yield Path(copy)

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
        elif self.has(name):
            with contextlib.suppress(FileNotFoundError):  # asked twice, since the first answer was lost
                self._ask(lambda: _opened(self.location)[0].delete_file(self.path(name)), "written")

    def remove_folder(self, name: str) -> None:
        """Delete a folder in it and what it holds."""
        if self.local:
            shutil.rmtree(self.local / name)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._ask(lambda: _opened(self.location)[0].delete_dir(self.path(name)), "written")

    def check(self, field: str = "data.cache") -> None:
        """Ask once whether a remote folder can be reached, so that nothing is computed in vain.

        Args:
            field: the setting or the option that names it.

        Raises:
            BadInputError: a scheme that pyarrow does not know, no such bucket, no credentials, nobody who answers.
        """
        if self.local:
            return
        filesystem, path = _opened(self.location, field)
        bucket = path.partition("/")[0]
        try:
            if filesystem.type_name in OBJECT_STORES:
                there = bool(bucket) and filesystem.get_file_info(bucket).type != fs.FileType.NotFound
            else:
                there = True  # folders are made as they are needed
            # to list is a right of its own; what is listed here is nothing, for the folder itself may hold millions
            filesystem.get_file_info(fs.FileSelector(f"{path}/.none", allow_not_found=True))
        except (OSError, pa.ArrowException) as error:
            raise _unusable(self.location, first_line(error), field) from None
        if not there:
            raise _unusable(self.location, f"there is no bucket {bucket!r}" if bucket else "it names no bucket", field)

    def _ask(self, work: Callable[[], _T], done: str) -> _T:
        try:
            return patiently(work, str(self))
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise CRMTError(f"{self} cannot be {done}: {first_line(error)}") from None


@contextlib.contextmanager
def saving(folder: Folder, last: str) -> Iterator[Path]:
    """A folder of this machine to save to: `folder` itself, or one whose files are uploaded to it when the block ends.

    Args:
        folder: where the files shall lie.
        last: the name of the file that says that the others are whole.
    """
    if folder.local:
        folder.make()
        yield folder.local
        return
    with tempfile.TemporaryDirectory() as copy:
        yield Path(copy)
        for file in sorted(Path(copy).iterdir(), key=lambda found: (found.name == last, found.name)):
            folder.upload(file)


Where = Path | Folder
"""Where a run lies: a folder of this machine (or mounted like one), or any other that pyarrow opens."""


def folder_at(location: str | Where, field: str = "data.cache") -> Folder:
    """The folder at a path or a URI.

    Args:
        location: as the user wrote it; a folder is given back.
        field: the setting or the option that an error names.

    Raises:
        BadInputError: a file URI that means no path.
    """
    if isinstance(location, Folder):
        return location
    if isinstance(location, Path):
        return Folder(str(location.absolute()))
    path = local_path(location, field)
    return Folder(str(path) if path else location)


def _opened(location: str, field: str = "data.cache") -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI and the path in it."""
    try:
        return _open(location)
    except (OSError, pa.ArrowException) as error:
        raise _unusable(location, first_line(error), field) from None


@cache
def _open(location: str) -> tuple[fs.FileSystem, str]:
    """Once a process, for it can cost a request."""
    filesystem, path = fs.FileSystem.from_uri(location)
    if isinstance(filesystem, fs.S3FileSystem):
        filesystem = _with_options(filesystem, allow_delayed_open=True)  # a small file is one request, not three
    return filesystem, path.strip("/") if filesystem.type_name in OBJECT_STORES else path


@cache
def _foreground(location: str) -> fs.FileSystem:
    """The filesystem of a URI for copies that pyarrow makes by several threads: those of its own that wait for S3's
    background writes would leave none to do them (Apache Arrow's issue 32372)."""
    filesystem = _opened(location)[0]
    if isinstance(filesystem, fs.S3FileSystem):
        return _with_options(filesystem, background_writes=False)
    return filesystem


def _with_options(filesystem: fs.S3FileSystem, **changed: bool) -> fs.S3FileSystem:
    """The same filesystem with options that a URI cannot say."""
    make, (options,) = filesystem.__reduce__()
    return make(options | changed)


def _unusable(location: str, why: str, field: str) -> BadInputError:
    return BadInputError(
        f"{field}: {location} cannot be used: {why}. Give {_ADMITTED}; credentials belong in the "
        "environment or the credentials file of every node"
    )
