"""The set that makes its clips: it lists them before they are made, and makes none that are decoded."""

from __future__ import annotations

import pytest

from pipelines import sources
from pipelines.clips import ingest
from pipelines.clips.lookup import Lookup
from pipelines.infra.storage import folder_at
from pipelines.sources import avdigits
from tests.pipelines.small import Small


def test_decoded_clips_are_not_made_again(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that joins a cluster whose clips are decoded in a bucket."""
    data = small.config().data.model_copy(update={"dataset": "avdigits", "root": None})
    made = avdigits.generate(small.cache_root, images=3, progress=False)
    listed = sources.load(data, make=False)
    assert (listed.clips.path.iloc[:3] == made.clips.path).all()
    assert (listed.clips.fingerprint.iloc[:3] == made.clips.fingerprint).all() and len(listed) == 1797
    monkeypatch.setattr(avdigits, "_make", lambda *_: pytest.fail("clips were made"))
    monkeypatch.setattr(ingest, "look_up", lambda *_: Lookup(folder_at("/somewhere")))
    assert ingest.clips_of(data, ("video", "audio")).sha256 == listed.sha256
    monkeypatch.setattr(ingest, "look_up", lambda *_: Lookup(None))
    monkeypatch.setattr(avdigits, "_missing", lambda *_: [7])
    with pytest.raises(pytest.fail.Exception, match="clips were made"):
        ingest.clips_of(data, ("video", "audio"))
