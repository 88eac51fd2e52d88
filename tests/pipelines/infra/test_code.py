"""Code of the user's own: what counts as code, what is sent to workers, and what they import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crmt.errors import BadInputError
from pipelines.infra import code
from pipelines.infra.cluster import start_ray
from pipelines.infra.code import modules_in, names_code, put_on_path, runtime_env

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two modules and a package among what is not code."""
    for name in ("mynet.py", "datasets.py", "net/__init__.py", "net/deep/layers.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("WIDTH = 5\n")
    for name in ("config.yaml", "clip.mp4", "runs/old.py", ".venv/x.py", "env/pyvenv.cfg", "env/y.py", "my-notes.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "net" / "clip.mp4").write_bytes(bytes(1000))
    return tmp_path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"model": {"encoders": {"video": "mynet:VideoNet"}}}, True),
        ({"model": {"encoders": {"video": {"path": "a.b_c:Net", "depth": 3}}}}, True),
        ({"search": {"train.method": {"choice": ["jt", "mine:Method"]}}}, True),
        ({"model": {"encoders": {"video": "timm:resnet18"}}}, False),
        ({"data": {"root": "s3://bucket/clips", "cache": "C:/x"}, "train": {"method": "jt", "lr": 0.1}}, False),
    ],
)
def test_which_configurations_name_code(raw: dict[str, object], expected: bool) -> None:
    assert names_code(raw) is expected


def test_modules_and_packages_are_sent_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [p.name for p in modules_in(folder)] == ["datasets.py", "mynet.py", "net"]
    sent = runtime_env([str(folder)])
    assert sent is not None and [Path(p).name for p in sent["py_modules"]] == ["datasets.py", "mynet.py", "net"]
    assert runtime_env([]) is None and runtime_env([str(ROOT / "tune_configs")]) is None
    monkeypatch.setattr(code, "LARGEST", 500)  # the clip in the package is not counted, since it is not sent
    assert runtime_env([str(folder)])
    (folder / "net" / "table.bin").write_bytes(bytes(600))
    with pytest.raises(BadInputError, match=r"most of it in .*net; .* name a smaller folder with --with DIR") as caught:
        runtime_env([str(folder)])
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"there is no folder .*nowhere to import code from: name it with --with DIR"
    ):
        put_on_path([str(tmp_path / "nowhere")])


def test_workers_import_what_was_sent_and_not_the_folder(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: Ray's runtime environment is that of the whole job."""
    script = f"""
import sys
import ray
from pipelines.infra.cluster import start_ray
start_ray(dashboard=False, code=[{str(folder)!r}])

@ray.remote
def where():
    import datasets, mynet, net.deep.layers
    import os
    return [m.__file__ for m in (datasets, mynet, net.deep.layers)], "clip.mp4" in os.listdir(net.__path__[0])

found, clip = ray.get(where.remote())
assert all("py_modules_files" in f for f in found), found
assert not clip
print("sent")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path.parent,
        env=environment,
        timeout=500,
    )
    assert done.stdout.strip().endswith("sent"), done.stderr


def test_a_ray_that_runs_already_is_joined_as_it_is(ray_cluster: None, folder: Path) -> None:
    assert start_ray(dashboard=False, code=[str(folder)]) is None
