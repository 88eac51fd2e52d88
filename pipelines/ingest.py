"""Decode a data set into the cache, and no more.

python pipelines/ingest.py --dataset X
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import sources
from pipelines.command import add_config_arguments, check_early, command_parser, config_from, run_command
from pipelines.infra.cluster import start_ray

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.clips.cache import ClipCache
    from pipelines.config.run_config import RunConfig

_OPENED = 100
"""How many clips `--check` opens to say which tracks are taken."""


def _summary(cache: ClipCache, seconds: float) -> Table:
    from rich.table import Table

    from pipelines.clips.ingest import by_reason
    from pipelines.clips.loudness import in_words
    from pipelines.sources.index import SPLITS

    table = Table("", "", show_header=False, title=f"{cache.name}: {sum(cache.counts.values())} clips decoded")
    for split in SPLITS:
        table.add_row(split, f"{cache.counts[split]} clips")
    table.add_row("quarantined", f"{cache.failed}" + (f" ({by_reason(cache)})" if cache.failed else ""))
    for name, lacking in cache.incomplete.items():
        table.add_row(f"without {name}", f"{lacking} clips")
    for track, clips in cache.tracks.items():
        table.add_row("track taken", f"{track}: {clips} clips")
    for name, meta in cache.modalities.items():
        table.add_row(name, f"{' × '.join(map(str, meta.shape))} {meta.dtype}")
    for name, words in in_words(cache.loudness):
        table.add_row(f"loudness of {name}", words)
    table.add_row("decoded size", f"{cache.nbytes / 2**20:.0f} MiB")
    table.add_row("clip list", cache.clips_sha256[:16])
    table.add_row("folder", str(cache.folder))
    table.add_row("took", f"{seconds:.1f} s")
    return table


def _print_contents(config: RunConfig) -> None:
    """For `--check`: which of several tracks is taken, and how loud the sound is, as far as a finished cache knows.

    Without such a cache some clips' containers are opened for their tracks; none is decoded.
    """
    from pipelines.clips.ingest import decoded_before
    from pipelines.clips.kinds import kinds_of
    from pipelines.clips.loudness import far_apart, in_words
    from pipelines.clips.reading import tracks_taken

    kinds = {name: kind for name, kind in kinds_of(config.data).items() if name in config.model.encoders}
    cache = decoded_before(config.data, list(kinds))
    if cache is None:
        index = sources.load(config.data)
        found = index.clips[~index.clips["id"].isin(index.listing.missing_in())].to_dict("records")
        opened = found[:: max(len(found) // _OPENED, 1)][:_OPENED]
        for track, clips in tracks_taken(opened, kinds, config.data).items():
            print(f"track taken: {track}: {clips} of {len(opened)} clips that were opened")
        if any(kind.sound for kind in kinds.values()):
            print("loudness: said here once the clips are decoded")
        return
    for track, clips in cache.tracks.items():
        print(f"track taken: {track}: {clips} clips")
    for name, words in in_words(cache.loudness):
        print(f"loudness of {name}: {words}")
    for line in far_apart(cache.loudness):
        print(f"note: {line}")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("ingest", __doc__)
    add_config_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--retry",
        action="store_true",
        help="also decode once more what was unreadable, ran into the time limit or failed, with its whole part",
    )
    what.add_argument(
        "--check",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="decode nothing: say what is there and what is missing; every misfit goes to FILE (default: in the cache)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    options = arguments().parse_args(argv)

    def body() -> int:
        started = time.monotonic()
        check_early(options)
        config = config_from(options, trains=False)
        if options.check is not None:
            from pipelines.sources.check import check

            code = check(config.data, None if options.check == Path() else options.check)
            if code == 0:
                _print_contents(config)
            return code
        from rich.console import Console

        from pipelines.clips.ingest import clips_of, ingest, look_ahead
        from pipelines.clips.loudness import far_apart

        index = look_ahead(config.data, config.model.encoders)
        start_ray(dashboard=False, code=config.code)
        if index is None:
            names = tuple(config.model.encoders)
            index = sources.load(config.data, or_decoded=True) if options.retry else clips_of(config.data, names)
        if str(index.listing):
            print(f"lists and files differ: {index.listing}; --check says which", file=sys.stderr)
        names = tuple(config.model.encoders)
        cache = ingest(index, config.data, names, retry=options.retry, say=lambda text: print(text, file=sys.stderr))
        Console().print(_summary(cache, time.monotonic() - started))
        for line in far_apart(cache.loudness):
            print(line, file=sys.stderr)
        return 0

    return run_command(body, "The same command goes on where this one was.")
