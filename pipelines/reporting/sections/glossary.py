"""The terms that the report uses, explained."""

from __future__ import annotations

from markupsafe import Markup

from pipelines.reporting.data import RunData, has_product
from pipelines.reporting.names import OURS
from pipelines.reporting.render import render


def glossary(data: RunData) -> Markup:
    """Definitions, certificates of the user's own among them, and where the tables lie."""
    foreign = [data.names.certificate(c) for c in data.certificates if c not in OURS["certificates"]]
    tables = ("summary", *data.tables, *(["product"] if has_product(data) else []))
    return render("glossary", data, foreign=[c for c in foreign if c.meaning], tables=tables)
