"""Decoded clips on other filesystems: S3 holds what a folder holds, and what cannot work is said at once."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from crmt.errors import BadInputError, CRMTError
from pipelines import ingest as ingest_module
from pipelines import sources, train
from pipelines.clips import ingest as clips_ingest
from pipelines.clips.batches import Transform, read_table
from pipelines.clips.cache import ClipCache, load_cache
from pipelines.clips.ingest import ingest, look_ahead
from pipelines.clips.streaming import StreamClips, StreamIndex
from pipelines.config.paths import cache_root, clips_root
from pipelines.config.run_config import parse
from pipelines.config.schema import DataConfig
from pipelines.infra.storage import Folder, folder_at, holds_secret, write_remote
from pipelines.sources import manifest
from pipelines.sources.index import ClipIndex
from tests.pipelines.media import bad_files, make_media
from tests.pipelines.s3 import S3
from tests.pipelines.small import NAMES, Small, one_line

AUDIO = {"sample_rate": 8000, "seconds": 1.0, "n_fft": 512, "window": 400, "hop": 166, "mels": 16, "frames": 40}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    """Twelve good clips (8 train, 2 validation, 2 test) and the four bad ones, in train."""
    folder = tmp_path_factory.mktemp("clips")
    splits = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    rows: list[tuple[Any, ...]] = []
    for i, split in enumerate(splits):
        path = make_media(folder / f"good{i}.mp4", width=40 + 8 * i, tone=300.0 + 90 * i, seconds=1)
        rows.append((path.name, str(path), i % 2, split, str(i)))
    rows += [(path.name, str(path), 0, "train", reason) for reason, path in bad_files(folder).items()]
    return ClipIndex("manifest", ("dog", "cat"), pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"]))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default cache of this machine, and small shards."""
    monkeypatch.setenv("CRMT_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(clips_ingest, "_SHARD_CLIPS", 3)
    return tmp_path / "home"


def config(cache: Path | str, **changes: Any) -> DataConfig:
    video = {"frames": 2, "size": 32, "crop": 28}
    fixed: dict[str, Any] = {"dataset": "manifest", "max_failure_share": 0.5, "video": video, "audio": AUDIO}
    return DataConfig.model_validate({**fixed, "cache": cache, **changes})


def rows_of(cache: ClipCache) -> list[dict[str, Any]]:
    tables = (pq.read_table(part, filesystem=cache.folder.filesystem) for part in cache.parts)
    return [row for table in tables for row in table.to_pylist()]


# ---- the same as in a folder


def test_s3_holds_what_a_folder_holds(ray_cluster: None, s3: S3, clips: ClipIndex, tmp_path: Path, home: Path) -> None:
    data = config(s3.uri("clips/same"))
    here = ingest(clips, config(tmp_path / "here"), progress=False)
    there = ingest(clips, data, progress=False)
    assert there.key == here.key and there.counts == here.counts and there.failed == 4
    assert there.modalities == here.modalities and len(there.parts) == len(here.parts) == 6
    for name in ("cache.json", "quarantine.csv", *here.folder.names("part-*.json")):
        assert there.folder.read(name) == here.folder.read(name)
    assert rows_of(there) == rows_of(here) and len(rows_of(there)) == 12
    assert there.quarantine.equals(here.quarantine) and there.folder.read("quarantine.csv").count(b"\n") == 5
    assert str(there.folder) == s3.uri(f"clips/same/clips/manifest-{here.key[:16]}")
    assert not list(home.rglob("part-*")) and not list(tmp_path.glob("s3*"))

    tables = read_table(here, NAMES), read_table(there, NAMES)
    assert tables[0].ids.tolist() == tables[1].ids.tolist() and tables[0].labels.tolist() == tables[1].labels.tolist()
    for name, array in tables[0].arrays.items():
        np.testing.assert_array_equal(array, tables[1].arrays[name])

    streams = [StreamClips(StreamIndex.of(cache, NAMES), Transform.of(cache, data)) for cache in (here, there)]
    streams[1] = pickle.loads(pickle.dumps(streams[1]))  # as it reaches a trial
    for read in (lambda s: s.ordered("test"), lambda s: s.ordered("train", 5), lambda s: s.training(1, 4, 7)):
        batches = [list(read(stream)) for stream in streams]
        assert len(batches[0]) == len(batches[1]) > 0
        for one, other in zip(*batches, strict=True):
            assert one.ids == other.ids and one.labels.tolist() == other.labels.tolist()
            for name in NAMES:
                np.testing.assert_array_equal(one.inputs[name], other.inputs[name])


def test_a_finished_set_is_opened_and_a_half_written_one_goes_on(ray_cluster: None, s3: S3, clips: ClipIndex) -> None:
    data = config(s3.uri("clips/half"))
    cache = ingest(clips, data, progress=False)
    before, card = rows_of(cache), cache.folder.read("cache.json")
    asked = s3.during(lambda: ingest(clips, data, progress=False))
    assert not [r for r in asked if not r.startswith(("GET", "HEAD"))] and len(asked) <= 4
    assert len([r for r in asked if "list-type=2" in r]) == 1  # not a question for every part

    # as after a kill: no card of the whole, one part without its card, one whose card was begun, one lost
    filesystem, folder = s3.open(), cache.folder
    filesystem.delete_file(folder.path("cache.json"))
    filesystem.delete_file(folder.path("part-00001.json"))
    folder.write("part-00001.parquet", b"half")
    with filesystem.open_output_stream(folder.path("part-00002.json")):
        pass
    filesystem.delete_file(folder.path("part-00003.json"))
    filesystem.delete_file(folder.path("part-00003.parquet"))
    with pytest.raises(CRMTError, match="no finished set"):
        load_cache(folder)
    asked = s3.during(lambda: ingest(clips, data, progress=False))
    written = {r.split("?")[0].rpartition("/")[2] for r in asked if r.startswith(("PUT", "POST"))}
    shards = {f"part-0000{n}.{kind}" for n in (1, 2, 3) for kind in ("json", "parquet")}
    assert written == shards | {"cache.json", "clips.json", "quarantine.csv"}
    again = load_cache(folder)
    assert rows_of(again) == before and folder.read("cache.json") == card

    filesystem.delete_file(folder.path("part-00000.parquet"))
    with pytest.raises(CRMTError, match="has 5 of 6 parts"):
        load_cache(folder)


def test_training_from_s3_with_lists_that_are_read_once(
    small: Small, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, load = [], manifest.load
    counting = sources.Source(lambda data: reads.append(1) or load(data))
    monkeypatch.setattr(manifest, "SOURCE", counting)
    for mode in ("stream", "memory"):
        run = tmp_path / mode
        file = small.file(tmp_path / "c.json", data={"cache": s3.uri("clips/run"), "mode": mode}, train={"epochs": 1})
        assert train.main(["--config", str(file), "--out", str(run)]) == 0
        assert json.loads((run / "run.json").read_text())["config"]["data"]["cache"] == s3.uri("clips/run")
    assert len(reads) == 2


def test_a_file_uri_is_the_folder(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    data = config(folder.as_uri())
    cache = ingest(clips, data, progress=False)
    assert "%20" in str(data.cache) and cache_root(data) == folder
    assert Path(str(cache.folder)).parent == folder / "clips"
    opened = ingest(clips, config(folder), progress=False)
    assert opened.parts == cache.parts and len(rows_of(opened)) == 12


# ---- what cannot work


@pytest.fixture
def forbidding() -> Iterator[str]:
    """A server that refuses everybody."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_cannot_be_reached_is_one_line_before_ray_starts(
    s3: S3,
    forbidding: str,
    clips: ClipIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = clips.clips.assign(label=[clips.classes[i] for i in clips.clips["label"]])
    table[["path", "label", "split"]].to_csv(tmp_path / "manifest.csv", index=False)
    monkeypatch.setattr(ingest_module, "start_ray", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)
    for cache, message in {
        s3.uri("nowhere/folder"): "no bucket 'nowhere'",
        s3.uri(""): "bucket",
        "s3://clips/x?endpoint_override=127.0.0.1:9&scheme=http": "Could not connect",
        f"s3://clips/x?endpoint_override={forbidding}&scheme=http": "ACCESS_DENIED",
        "foo://bucket/folder": "Unrecognized filesystem type",
        "s3://clips/x?endpoint=here": "Unexpected query parameter",
        "file://host/folder": "hostname",
    }.items():
        arguments = ["--dataset", "manifest", "--data-root", str(tmp_path), "--set", f"data.cache={cache}"]
        assert ingest_module.main(arguments) == 2, cache
        line = one_line(capsys.readouterr().err)
        assert f"data.cache: {cache} cannot be used: " in line and message in line and "credentials" in line
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_store_that_fails_later_is_one_line(s3: S3, forbidding: str) -> None:
    folder = folder_at(f"s3://clips/x?endpoint_override={forbidding}&scheme=http")
    for work in (lambda: folder.write("a", b"x"), folder.names, lambda: folder.has("a"), lambda: folder.read("a")):
        with pytest.raises(CRMTError, match="ACCESS_DENIED") as caught:
            work()
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        folder_at(s3.uri("clips/none")).read("a")


SECRET = "Zq81/x?y"


@pytest.mark.parametrize(
    "cache",
    [
        f"s3://AKIA:{SECRET}@bucket/folder",
        "s3://AKIA:Zq81@bucket/folder?region=eu-west-1",
        "s3://bucket/folder?endpoint_override=http://me:Zq81@host",
        "s3://bucket/folder?secret_key=Zq81",
        "abfs://:Zq81@account.dfs.core.windows.net/folder",
        "abfs://folder@account.dfs.core.windows.net/x?client_secret=Zq81",
        "abfs://folder@account.dfs.core.windows.net/x?sv=2&sig=Zq81",
        "gs://bucket/folder?access_token=Zq81",
    ],
)
def test_a_secret_is_refused_and_not_repeated(cache: str) -> None:
    with pytest.raises(BadInputError, match="environment of every node") as caught:
        parse({"data": {"cache": cache}}, "a test")
    assert "Zq81" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cache",
    [
        "/folder/a:b@c",
        "s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http&region=eu-west-1",
        "gs://anonymous@bucket/folder",
        "hdfs://me@host:8020/folder?replication=2&kerb_ticket=/tmp/x",
        "abfs://folder@account.dfs.core.windows.net/x?tenant_id=1&credential_kind=cli",
    ],
)
def test_what_holds_no_secret_is_admitted(cache: str) -> None:
    assert not holds_secret(cache)
    assert parse({"data": {"cache": cache}}, "a test").data.cache == cache


def test_the_environment_names_a_folder_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    data = config("s3://bucket/folder")
    assert cache_root(data) == home and str(clips_root(data)) == "s3://bucket/folder/clips"
    assert clips_root(DataConfig()) == Folder(str(home / "clips")) == clips_root(config(home))
    monkeypatch.setenv("CRMT_CACHE", "s3://bucket/folder")
    with pytest.raises(BadInputError, match=r"data\.cache"):
        cache_root(DataConfig())
    assert cache_root(config(tmp_path)) == tmp_path


# ---- files


def test_names_of_what_is_below(s3: S3) -> None:
    folder = folder_at(s3.uri("clips/deep/")) / "a b"
    assert str(folder) == s3.uri("clips/deep/a%20b") and folder.path("x.json") == "clips/deep/a b/x.json"
    assert folder.names() == [] and not folder.has("x.json")
    folder.write("x.json", b"one")
    folder.write("x.json", b"two")
    (folder / "deeper").write("x.json", b"three")
    copy: Folder = pickle.loads(pickle.dumps(folder))
    assert copy.names() == copy.names("*.json") == ["x.json"] and copy.names("*.csv") == []
    assert copy.read("x.json") == b"two" and copy.has("x.json") and copy.read_all(["x.json"] * 3) == [b"two"] * 3
    assert folder_at("~/x").local == Path.home() / "x"


def test_where_an_upload_shows_before_it_is_done_it_is_moved_in(tmp_path: Path) -> None:
    """HDFS stands aside here; a local folder seen through pyarrow has the same habits."""
    filesystem, target = fs.LocalFileSystem(), tmp_path / "new" / "file.json"
    for content in (b"one", b"two" * 1000):
        write_remote(filesystem, str(target), content)
        assert target.read_bytes() == content and [p.name for p in target.parent.iterdir()] == ["file.json"]


def test_a_worker_opens_it_by_itself(ray_cluster: None, s3: S3) -> None:
    folder = folder_at(s3.uri("clips/worker"))

    @ray.remote
    def work(given: Folder) -> bytes:
        given.write("file", b"from a worker")
        return given.read("file")

    assert ray.get(work.remote(folder)) == folder.read("file") == b"from a worker"


def test_generated_sets_have_no_index_before_ray_starts() -> None:
    assert look_ahead(DataConfig()) is None
