"""Where the user says that a run lies, or shall lie: a folder or a URI, which answers."""

from __future__ import annotations

from pathlib import Path

from crmt.errors import BadInputError
from pipelines.infra.storage import Folder, Where, folder_at, holds_secret, is_uri, local_path


def storage_at(uri: str) -> Folder:
    """The folder of `--storage`, once it answers.

    Raises:
        BadInputError: not a URI, a secret in it, or nobody who answers.
    """
    if not is_uri(uri) or local_path(uri, "--storage") is not None:
        raise BadInputError(f"--storage {uri}: give a URI, as s3://bucket/runs; a folder of a disk is given to --out")
    return _answering(uri, "--storage")


def run_at(location: str, field: str) -> Where:
    """Where a run lies that a command is given: a folder, or its URI.

    Args:
        location: as the user wrote it.
        field: the option that names it, for errors.

    Raises:
        BadInputError: a URI with a secret in it, or nobody who answers.
    """
    if not is_uri(location):
        return Path(location).resolve()
    folder = _answering(location, field)
    return folder.local or folder


def _answering(uri: str, field: str) -> Folder:
    if holds_secret(uri):
        raise BadInputError(
            f"{field} holds a secret, which would end up in cards and logs: give it in the environment of every node"
        )
    folder = folder_at(uri, field)
    folder.check(field)
    return folder
