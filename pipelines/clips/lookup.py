"""Which finished set of decoded clips there is for a list and its settings, and how the nearest one differs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from crmt.errors import CRMTError
from pipelines.clips.cache import CARD, CLIPS
from pipelines.clips.contents import ABSENT, FORMAT, MadeOf
from pipelines.infra.storage import Folder

_SHOWN = 3


@dataclass(frozen=True)
class Lookup:
    """`folder`: of the finished set that these clips and settings made; None where there is none.

    `gone`: how many of its clips have no file any more. `said`: in a line, what differs from the nearest set of that
    data set, or that clips' files are gone; empty where there is nothing to say.
    """

    folder: Folder | None
    gone: int = 0
    said: str = ""


@dataclass(frozen=True)
class _Finished:
    folder: Folder
    name: str
    card: dict[str, Any]

    def clips(self) -> dict[str, list[list[str]]]:
        """By id, as `MadeOf.rows`; none where they cannot be read."""
        try:
            rows: dict[str, list[list[str]]] = json.loads(self.folder.read(CLIPS))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return rows


def look_up(root: Folder, made: MadeOf) -> Lookup:
    """Find the finished set of these clips and settings below `root`.

    Decoded is decoded: where files are gone, a set fits that was made with the same settings of the same list, and of
    the same content of every file that is still there.

    Raises:
        CRMTError: two sets fit that hold different clips.
    """
    own = root / folder_name(made)
    if own.has(CARD):
        return Lookup(own)
    finished = _finished(root, made.index.name)
    rows, gone = made.rows(), made.absent
    alike = [f for f in finished if _same_but_files(f.card, made)] if gone else []
    fitting = [(f, clips) for f in alike if _fits(clips := f.clips(), rows)]
    if fitting:
        fitting.sort(key=lambda pair: sum(ABSENT in contents for _, contents in pair[1].values()))
        best, clips = fitting[0]
        other = next((f for f, others in fitting[1:] if not _fits(clips, others)), None)
        if other:
            raise CRMTError(
                f"clips of {made.index.name} have no file any more, and two decoded sets fit that hold different "
                f"ones: {best.folder} and {other.folder}. Delete one, or bring the files back"
            )
        return Lookup(best.folder, gone, f"{gone} of {len(rows)} clips have no file any more; decoded in {best.folder}")
    if not finished:
        return Lookup(None)
    nearest = min(finished, key=lambda f: (len(_settings(f.card, made)), f.card["clips_sha256"] != made.index.sha256))
    return Lookup(None, 0, f"decoded anew: the nearest set, {nearest.name}, differs in {_difference(nearest, made)}")


def folder_name(made: MadeOf) -> str:
    """Of the set's folder: the data set and the beginning of its key."""
    return f"{made.index.name}-{made.key[:16]}"


def _finished(root: Folder, name: str) -> list[_Finished]:
    """The finished sets of a data set."""
    found = []
    for folder in root.folders(f"{name}-{'[0-9a-f]' * 16}"):
        try:
            card = json.loads((root / folder).read(CARD))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if isinstance(card, dict) and "clips_sha256" in card:
            found.append(_Finished(root / folder, folder, card))
    return found


def _same_but_files(card: dict[str, Any], made: MadeOf) -> bool:
    return not _settings(card, made) and card["clips_sha256"] == made.index.sha256


def _fits(clips: dict[str, list[list[str]]], now: dict[str, list[list[str]]]) -> bool:
    """Whether the list is the same, and what is there now is what the set was made of."""
    return clips.keys() == now.keys() and all(
        clips[i][0] == says and all(b in (a, ABSENT) for a, b in zip(clips[i][1], contents, strict=True))
        for i, (says, contents) in now.items()
    )


def _settings(card: dict[str, Any], made: MadeOf) -> list[str]:
    """The settings that differ, in words."""
    if card.get("format") != FORMAT:
        return ["the version of the decoding"] * (len(made.settings) + 1)  # the last that is called near
    before, now = card["settings"], made.settings
    one_has = set(before["modalities"]) ^ set(now["modalities"])
    names = {n for n in before.keys() & now.keys() if before[n] != now[n]}
    names |= {n for n in before.keys() ^ now.keys() if n.partition(".")[0] not in one_has}
    return [f"{n} ({_value(before.get(n))}, now {_value(now.get(n))})" for n in sorted(names)]


def _value(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)


def _difference(nearest: _Finished, made: MadeOf) -> str:
    settings = list(dict.fromkeys(_settings(nearest.card, made)))
    words = settings[:_SHOWN]
    if len(settings) > _SHOWN:
        words.append(f"{len(settings) - _SHOWN} more settings")
    if nearest.card.get("format") == FORMAT:
        words += _clips(nearest.clips(), made.rows())
    return ", ".join(words) or "the order of the classes"


def _clips(before: dict[str, list[list[str]]], now: dict[str, list[list[str]]]) -> list[str]:
    counts = Counter(added=len(now.keys() - before.keys()), gone=len(before.keys() - now.keys()))
    examples: list[str] = [*sorted(now.keys() ^ before.keys())[:1]]
    for clip in now.keys() & before.keys():
        if before[clip][0] != now[clip][0]:
            kind = "of another label, split or group"
        elif before[clip][1] != now[clip][1] and ABSENT not in now[clip][1]:
            kind = "of other content"
        else:
            continue
        counts[kind] += 1
        examples.append(clip)
    said = [f"{count} of {len(now)} clips {kind}" for kind, count in counts.items() if count]
    if said:
        said[-1] += f" ({min(examples)!a} for one)"
    return said
