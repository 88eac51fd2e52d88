"""`vggsound`: VGGSound, 309 classes of sounding objects, about 200,000 clips of ten seconds from YouTube.

Layout: `--data-root DIR` with `vggsound.csv` (headerless `youtube_id,start_seconds,label,split`) and the clips, named
`{youtube_id}_{start:06d}.mp4`. Origin: Chen, Xie, Vedaldi and Zisserman, "VGGSound: a large-scale audio-visual dataset"
(ICASSP 2020); the list is CC BY 4.0, the clips are their uploaders'. Reading the layout is not built yet: `load` says
what is needed, and how to train on these clips through `manifest` meanwhile.
"""

from __future__ import annotations

from crmt.errors import BadInputError
from pipelines.datasets.index import ClipIndex
from pipelines.schema import DataConfig

_LAYOUT = (
    "DIR holds vggsound.csv (the authors' list: youtube_id,start_seconds,label,split) and the clips, named "
    "{youtube_id}_{start:06d}.mp4, for example ---g-f_I2yQ_000001.mp4"
)
_MEANWHILE = (
    "Reading this layout is not built yet: write a CSV with the header `path,label,split` (path relative to the CSV, "
    "split train or test) and run with `--dataset manifest --data-root FILE.csv`"
)


def load(data: DataConfig) -> ClipIndex:
    """Say what VGGSound needs.

    Raises:
        BadInputError: always, until the layout is read.
    """
    if data.root is None:
        raise BadInputError(f"vggsound needs its clips on disk: give --data-root DIR, where {_LAYOUT}. {_MEANWHILE}")
    root = data.root.expanduser().absolute()
    if not (root / "vggsound.csv").is_file():
        raise BadInputError(f"vggsound: no file {root / 'vggsound.csv'}; {_LAYOUT}. {_MEANWHILE}")
    raise BadInputError(f"vggsound: {root} was found. {_MEANWHILE}")
