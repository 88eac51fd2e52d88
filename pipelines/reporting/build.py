"""A run folder to report.html and tables/*.csv."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from markupsafe import Markup

from pipelines.infra.storage import Where, folder_at, saving
from pipelines.reporting.data import PAGE, RunData, has_product, load_run
from pipelines.reporting.render import page
from pipelines.reporting.sections.audit import audit
from pipelines.reporting.sections.comparison import comparison
from pipelines.reporting.sections.glossary import glossary
from pipelines.reporting.sections.header import header
from pipelines.reporting.sections.learning import learning
from pipelines.reporting.sections.product import product, product_table
from pipelines.reporting.sections.quarantine import quarantine
from pipelines.reporting.sections.robustness import robustness
from pipelines.reporting.sections.search import search
from pipelines.reporting.sections.step2 import step2
from pipelines.reporting.sections.trials import trials

SECTIONS = (header, comparison, robustness, product, audit, learning, search, step2, trials, quarantine, glossary)


def build_report(run: Where, out: Path | None = None) -> Where:
    """Write report.html and tables/*.csv of a run; return the path of the page.

    Args:
        run: its folder, here or on a server.
        out: the folder to write to, made where there is none; None: the run's own.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    data, target = load_run(run), out or run
    folder = folder_at(target)
    folder.make()
    with saving(folder / "tables", "summary.csv") as tables:
        write_tables(data, tables)
    name = data.provenance.get("name") or folder_at(data.run).name
    body = Markup("\n").join(section(data) for section in SECTIONS)
    folder.write(PAGE, page(f"CRMT sweep: {name}", body).encode(), durable=False)
    return target / PAGE


def write_tables(data: RunData, folder: Path) -> None:
    """Every table of the run, the summary and the budget grid as CSV."""
    product_tables = {"product": product_table(data)} if has_product(data) else {}
    tables = {**data.tables, "summary": data.summary, **product_tables}
    for name, table in tables.items():
        # pyarrow: a big run has millions of radii, which pandas would write for minutes
        pyarrow.csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), folder / f"{name}.csv")
