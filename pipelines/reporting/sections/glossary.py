"""The words that the report uses, explained."""

from __future__ import annotations

from html import escape

from pipelines.reporting.data import RunData, has_product
from pipelines.reporting.html import section
from pipelines.reporting.names import JOINT


def words(data: RunData) -> str:
    """Definitions, and where the tables lie."""
    space = escape(data.space_of(JOINT)) or "see the axis labels"
    items = [
        (
            "Ball",
            "The set of changed inputs that is considered. <b>Joint</b>: one ℓ2 budget ε over all modalities together, "
            "Σ ‖δ‖² ≤ ε². <b>One modality</b>: the whole budget on it, the others untouched. <b>Product</b>: every "
            "modality within a budget of its own, all at once.",
        ),
        (
            "Space",
            f"Budgets and radii are ℓ2 distances in: {space}. Normalisation is part of the model. A video radius of 1 "
            "in ImageNet-normalised units, as papers often give it, is about 0.226 in pixel units.",
        ),
        (
            "Attacked accuracy",
            "Share of test clips that the model still gets right after the attack. FGM: one step; PGD: many, with the "
            "best point kept; APGD: PGD that finds its own steps, on cross-entropy (CE) or difference of logits (DLR); "
            "minimal-norm: the smallest change that breaks a clip; Square: queries alone, no gradients; auto: a clip "
            "counts as kept where none of these breaks it; noise: random, no attack. It can only overstate "
            "robustness: another attack may find more.",
        ),
        (
            "Estimated radius",
            "Margin divided by a Lipschitz constant <b>estimated</b> from gradients on training clips; 0 where "
            "the prediction is wrong. It is not a certificate, and the audit counts how often an attack refutes it.",
        ),
        (
            "Certified radius",
            "The same from a constant that holds by construction; or, with the probability that its name gives, by "
            "randomised smoothing, which vouches for the smoothed classifier: no change within it alters the "
            "prediction. Radii of different kinds never share a column or a line.",
        ),
        (
            "Intervals",
            "95 %: Wilson for shares, normal for mean radii. They cover the choice of test clips, not the chance in "
            "training: another seed may give another model.",
        ),
        (
            "One modality alone, missing",
            "Alone: the other modalities' scores held at their mean over training clips. Missing: the modality's input "
            "replaced by its mean. A model that ignores a modality looks robust to attacks on it: read these beside "
            "the attacks on one modality.",
        ),
        (
            "Choice",
            "Hyperparameters and trials are chosen on the validation split, carved from train by source video. The "
            "test split is used once, for the numbers on this page.",
        ),
    ]
    html = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in items)
    names = ("summary", *data.tables, *(["product"] if has_product(data) else []))
    links = ", ".join(f'<a href="tables/{n}.csv">{n}</a>' for n in names)
    return section(
        "words",
        "How to read this page",
        f'<dl class="words">{html}</dl><p class="small muted" style="margin-top:16px">All numbers as CSV: {links}.</p>',
    )
