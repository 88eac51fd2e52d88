"""Where generated clips, decoded clips and reports of checks lie."""

from __future__ import annotations

import os
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.config.schema import DataConfig
from pipelines.infra.storage import Folder, folder_at, local_path


def clips_root(data: DataConfig) -> Folder:
    """The folder of decoded sets: in data.cache, be that a folder or a URI, or in the default cache."""
    return folder_at(data.cache or str(cache_root(data))) / "clips"


def cache_root(data: DataConfig) -> Path:
    """Where what must lie on a disk is kept (generated clips, reports of checks, locks), and decoded clips by default.

    data.cache where that is a folder, else $CRMT_CACHE, else ~/.cache/crmt-sweep.

    Raises:
        BadInputError: $CRMT_CACHE is no folder.
    """
    here = local_path(data.cache) if data.cache else None
    default = os.environ.get("CRMT_CACHE") or str(Path.home() / ".cache" / "crmt-sweep")
    path = here or local_path(default)
    if path is None:
        raise BadInputError("$CRMT_CACHE must be a folder: give the URI to data.cache")
    return path
