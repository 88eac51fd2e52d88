"""The section of the budget grid: each modality attacked within a budget of its own."""

from __future__ import annotations

from html import escape

from pipelines.figures_product import (
    Plane,
    budgets_text,
    modalities_of,
    planes,
    product_figure,
    product_table,
    shown_rows,
)
from pipelines.report_data import RunData, distinct
from pipelines.report_html import figure_block, method_label, section
from pipelines.report_names import attack_name

TITLE = "A budget for each modality"


def product(data: RunData) -> str:
    """A heat map a method; nothing where no grid was attacked."""
    table = product_table(data)
    names = modalities_of(table)
    blocks: dict[str, list[str]] = {}
    attacks: set[str] = set()
    for norm in sorted(distinct(table.norm), key=lambda n: (n != "l2", n)):
        for method, trial_id in data.best.items():
            rows = shown_rows(data, table, trial_id, norm)
            for plane in planes(rows, names):
                attacks |= distinct(rows.attack)
                name = f"product-{norm}-{len(blocks.get(norm, []))}"
                caption = method_label(method) + _caption(plane, norm)
                figure = product_figure(data, method, plane, norm)
                blocks.setdefault(norm, []).append(figure_block(name, caption, figure, method=method))
    if not blocks:
        return ""
    words = " or ".join(attack_name(a) for a in sorted(attacks))
    text = (
        "<p class=muted>Accuracy on the test split of the best trial of each method where an attack may change "
        f"<b>every</b> modality, each within a budget of its own (product ball): to the right and upwards the attack "
        f"may do more. Attack: {escape(words)}. All heat maps share one colour scale; budgets are steps, not to scale. "
        f"The numbers with their intervals: "
        '<a href="tables/product.csv">tables/product.csv</a>.</p>'
    )
    for norm, found in blocks.items():
        text += f"<h3>{escape(norm)} attacks</h3>" if len(blocks) > 1 else ""
        text += f'<div class="grid">{"".join(found)}</div>'
    return section("product", TITLE, text)


def _caption(plane: Plane, norm: str) -> str:
    over = f"{escape(plane.x)} × {escape(plane.y)}" if plane.y else escape(plane.x)
    fixed = f"; {escape(budgets_text(plane.fixed))} held" if plane.fixed else ""
    sign = {"l2": "ℓ2", "linf": "ℓ∞"}.get(norm, escape(norm))
    return f" <span>· {over}, {sign}{fixed}</span>"
