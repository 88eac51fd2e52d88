"""The results store: what is written is what is read, whole parts only, and nothing that the schema does not know."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmt.errors import BadInputError
from pipelines.runs.results import TABLES, ResultsStore, open_store

EPOCH = {"trial_id": "t", "epoch": 1, "name": "loss", "value": 0.5}


def test_an_unwritten_table_is_empty_with_all_columns(tmp_path: Path) -> None:
    for name, schema in TABLES.items():
        table = ResultsStore(tmp_path).read(name)
        assert table.empty and list(table) == schema.names


def test_parts_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write("epochs", "b", [{**EPOCH, "trial_id": "b"}])
    store.write("epochs", "a", [{**EPOCH, "trial_id": "a"}, {**EPOCH, "trial_id": "a", "epoch": 2}])
    assert list(store.read("epochs").trial_id) == ["a", "a", "b"]
    assert list(store.read("epochs", "b").trial_id) == ["b"]
    assert store.read("epochs", "c").empty


def test_writing_a_part_again_replaces_it(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write("trials", "t", [{"trial_id": "t", "status": "running"}])
    store.write("trials", "t", [{"trial_id": "t", "status": "finished", "epochs": 3}])
    rows = store.read("trials")
    assert list(rows.status) == ["finished"] and list(rows.epochs) == [3]


def test_missing_values_are_null_not_text(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    path = store.write("trials", "t", [{"trial_id": "t", "error": None, "selected_value": float("nan")}])
    table = pq.read_table(path)
    for name in ("error", "selected_value", "epochs", "method"):
        assert table[name].null_count == 1
    assert store.read("trials").isna().loc[0, ["error", "selected_value", "epochs"]].all()


def test_a_frame_and_rows_write_the_same(tmp_path: Path) -> None:
    rows = [EPOCH, {**EPOCH, "epoch": 2, "value": None}]
    one, two = ResultsStore(tmp_path / "1"), ResultsStore(tmp_path / "2")
    one.write("epochs", "t", rows)
    two.write("epochs", "t", pd.DataFrame(rows))
    pd.testing.assert_frame_equal(one.read("epochs"), two.read("epochs"))
    # and what was read can be written again: nulls have become NaN in between
    two.write("epochs", "t", two.read("epochs"))
    pd.testing.assert_frame_equal(one.read("epochs"), two.read("epochs"))


def test_integers_with_nulls_survive_a_frame(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write("trials", "t", [{"trial_id": "a", "epochs": 3}, {"trial_id": "b"}])
    store.write("trials", "t", store.read("trials"))
    epochs = store.read("trials").epochs
    assert epochs.iloc[0] == 3 and np.isnan(epochs.iloc[1])


def test_numpy_scalars_are_welcome(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    row = {"trial_id": "t", "label": np.int32(3), "radius": np.float32(0.5), "audited": np.bool_(True)}
    store.write("radii", "t", [row])
    read = store.read("radii").iloc[0]
    assert (read.label, read.radius, bool(read.audited)) == (3, 0.5, True)


def test_no_rows_are_a_part_too(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    assert store.write("quarantine", "ingest", []).exists()
    assert store.read("quarantine").empty


def test_an_unknown_column_or_table_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    with pytest.raises(KeyError, match="valeu"):
        store.write("epochs", "t", [{"trial_id": "t", "valeu": 1.0}])
    with pytest.raises(KeyError):
        store.write("epoch", "t", [EPOCH])
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_value_of_a_wrong_type_leaves_the_old_part(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write("epochs", "t", [EPOCH])
    with pytest.raises((TypeError, ValueError)):
        store.write("epochs", "t", [{**EPOCH, "epoch": "one"}])
    assert list(store.read("epochs").epoch) == [1]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_leftovers_of_a_killed_writer_are_not_read(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write("epochs", "t", [EPOCH])
    (tmp_path / "epochs" / ".abc.tmp").write_bytes(b"half of a parquet")
    assert len(store.read("epochs")) == 1


def test_a_reader_never_sees_half_a_part(tmp_path: Path) -> None:
    """One thread rewrites a part as fast as it can; every reading is one whole version of it."""
    store = ResultsStore(tmp_path)
    sizes = (10, 400)

    def rows(n: int) -> list[dict[str, Any]]:
        return [{**EPOCH, "epoch": i, "value": float(n)} for i in range(n)]

    store.write("epochs", "t", rows(sizes[0]))
    stop = threading.Event()

    def rewrite() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            store.write("epochs", "t", rows(sizes[i % 2]))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(60):
            table = store.read("epochs")
            assert len(table) in sizes and set(table.value) == {float(len(table))}
    finally:
        stop.set()
        writer.join()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "trial_id": st.text(st.characters(blacklist_categories=["Cs"]), max_size=8),
                "epoch": st.integers(-(2**40), 2**40),
                "name": st.one_of(st.none(), st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)),
                "value": st.one_of(st.none(), st.floats(allow_nan=False)),
            }
        ),
        max_size=6,
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    store = ResultsStore(tmp_path_factory.mktemp("store"))
    store.write("epochs", "t", rows)
    read = store.read("epochs")
    back = read.astype(object).where(read.notna(), None).to_dict("records")
    assert back == rows


def test_open_store(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no results"):
        open_store(tmp_path)
    with pytest.raises(BadInputError):
        open_store(tmp_path / "nowhere")
    ResultsStore(tmp_path / "results").write("epochs", "t", [EPOCH])
    assert len(open_store(tmp_path).read("epochs")) == 1
