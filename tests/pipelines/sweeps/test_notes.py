"""What is said of a list of clips before anything is started."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crmt.errors import CRMTError
from pipelines.config.run_config import parse
from pipelines.sweeps import prepare
from pipelines.sweeps.prepare import RunRequest, prepare_run


def test_labels_that_differ_in_case_alone_are_said_before_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["a.mp4,dog,train", "b.mp4,Dog,train", "c.mp4,dog,train", "d.mp4,Dog,train", "e.mp4,dog,test"]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,split", *rows]))

    def no_ray(*_: Any, **__: Any) -> None:
        raise CRMTError("no Ray here")

    monkeypatch.setattr(prepare, "start_ray", no_ray)
    data = {"dataset": "manifest", "root": str(tmp_path), "cache": str(tmp_path / "cache"), "validation_share": 0.4}
    config = parse({"data": data, "model": {"encoders": {"video": "small_resnet"}}, "train": {"batch_size": 1}}, "here")
    console = Console(file=io.StringIO(), width=200)
    with ExitStack() as held, pytest.raises(CRMTError, match="no Ray here"):
        prepare_run(config, RunRequest("train", folder=tmp_path / "out"), console, held)
    assert isinstance(console.file, io.StringIO)
    assert "note: labels 'Dog' and 'dog' differ in case alone: they are 2 classes" in console.file.getvalue()
