"""The results store of a run: small Parquet parts, one file a trial and table, written atomically as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crmt.errors import BadInputError
from pipelines.infra.storage import Folder, Where, folder_at

_S, _F, _I, _B = pa.string(), pa.float64(), pa.int64(), pa.bool_()

TABLES: dict[str, pa.Schema] = {
    # one row a trial; written when it starts, when it reports and when it ends
    "trials": pa.schema(
        {
            "trial_id": _S,
            "status": _S,  # running | finished | stopped | failed
            "error": _S,
            "method": _S,
            "params": _S,  # JSON of what was searched; a parameter that has no effect on the method is null
            "config": _S,  # JSON of the whole configuration
            "seed": _I,
            "epochs": _I,
            "workers": _I,
            "seconds": _F,
            "started": _S,  # ISO 8601, UTC
            "selected_by": _S,  # name of the validation metric
            "selected_value": _F,
            "clips_sha256": _S,  # of the clip list
            "commit": _S,
            "weights_sha256": _S,
            "model": _S,  # path of the saved model, relative to the run
        }
    ),
    # learning curves: one row a trial, epoch and name
    "epochs": pa.schema({"trial_id": _S, "epoch": _I, "name": _S, "value": _F}),
    # plain numbers: clean_accuracy, unimodal_accuracy, missing_accuracy, mean_radius, audit_violations ...
    "metrics": pa.schema(
        {
            "trial_id": _S,
            "stage": _S,  # step1 | step2
            "final": _B,  # the stage whose model is saved
            "split": _S,
            "name": _S,
            "modality": _S,  # null: joint
            "certificate": _S,  # of radii and audits; null elsewhere
            "value": _F,
            "low": _F,  # 95 % Wilson interval where the value is a share
            "high": _F,
            "n": _I,
        }
    ),
    # accuracy under attack: one row a trial, stage, attack, ball and budget
    "curves": pa.schema(
        {
            "trial_id": _S,
            "stage": _S,
            "final": _B,
            "split": _S,
            "attack": _S,  # fgm | pgd | apgd_ce | apgd_dlr | minimal_norm | square | noise | auto
            "ball": _S,  # joint | <modality> | product
            "norm": _S,
            "space": _S,
            "epsilon": _F,  # null in the product ball
            "budgets": _S,  # product: JSON, modality to ε; null elsewhere
            "accuracy": _F,
            "low": _F,
            "high": _F,
            "n": _I,
            "settings": _S,  # JSON: steps, restarts, loss, seed ...
        }
    ),
    # one row a trial, stage, test clip, certificate and ball
    "radii": pa.schema(
        {
            "trial_id": _S,
            "stage": _S,
            "final": _B,
            "clip_id": _S,
            "label": _I,
            "predicted": _I,  # -1: the smoothed classifier abstained
            "certificate": _S,  # estimate | lipschitz | smoothing
            "ball": _S,
            "space": _S,
            "radius": _F,  # 0 where the prediction is wrong
            "indicator": _F,  # η of this modality at the attaining class; null for joint
            "audited": _B,
            "violated": _B,  # an attack strictly inside the radius changed the prediction
            "settings": _S,  # JSON: what the radius rests on (τ's samples, constants, σ, n, α) and the audit's attack
        }
    ),
    # what certificates of single clips have found, so that an interrupted run goes on from there
    "certified_clips": pa.schema(
        {
            "trial_id": _S,
            "certificate": _S,
            "weights_sha256": _S,
            "settings": _S,
            "clip_id": _S,
            "result": _S,  # JSON: the certificate's own numbers
        }
    ),
    "quarantine": pa.schema({"clip_id": _S, "path": _S, "split": _S, "reason": _S, "detail": _S}),
}


class ResultsStore:
    """Tables under `root`, each the union of its parts; writing a part again replaces it."""

    def __init__(self, root: Where) -> None:
        self.root = root

    def write(self, table: str, part: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> Where:
        """Write one part; a reader sees the old part or the new one, never half of it.

        Args:
            table: a key of `TABLES`.
            part: its name; a trial's part is named after the trial.
            rows: column to value; a column that a row lacks is null.

        Raises:
            KeyError: a column that the table does not have.
        """
        schema = TABLES[table]
        records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else [dict(row) for row in rows]
        unknown = {str(key) for row in records for key in row} - set(schema.names)
        if unknown:
            raise KeyError(f"table {table!r} has no column {', '.join(sorted(unknown))}")
        columns = {f.name: pa.array([row.get(f.name) for row in records], f.type, from_pandas=True) for f in schema}
        content = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=schema), content, compression="zstd")
        folder = self._folder(table)
        folder.make()
        folder.write(f"{part}.parquet", content.getvalue().to_pybytes(), durable=False)
        return self.root / table / f"{part}.parquet"

    def read(self, table: str, part: str | None = None) -> pd.DataFrame:
        """The whole table (or one part of it), parts in the order of their names; empty where nothing was written."""
        folder = self._folder(table)
        if part is None:
            return joined(table, folder.read_all(folder.names("*.parquet")))
        try:
            return joined(table, [folder.read(f"{part}.parquet")])
        except FileNotFoundError:
            return joined(table, [])

    def forget(self, trials: set[str]) -> None:
        """Delete every part of some trials."""
        for table in TABLES if trials else ():
            folder = self._folder(table)
            for name in folder.names("*.parquet"):
                if name.partition(".")[0] in trials:
                    folder.remove(name)

    def _folder(self, table: str) -> Folder:
        return folder_at(self.root) / table


def joined(table: str, parts: Iterable[bytes]) -> pd.DataFrame:
    """The rows of a table's parts, which are given as their files' contents."""
    schema = TABLES[table]
    tables = [pq.read_table(pa.BufferReader(part), schema=schema) for part in parts]
    return (pa.concat_tables(tables) if tables else schema.empty_table()).to_pandas()


def open_store(run: Where) -> ResultsStore:
    """The store of a run folder.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    if not folder_at(run).folders("results"):
        raise BadInputError(
            f"{run} holds no results. Give the folder of a run, as printed at its end (it contains `results/`)"
        )
    return ResultsStore(run / "results")
