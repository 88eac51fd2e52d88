"""The study's answers: sentences made from its numbers by fixed rules, so that none can drift from the tables."""

from __future__ import annotations

import statistics

from benchmarks.study.data import Difference, Study, audits, difference, smoothing_audits, title
from benchmarks.study.setup import training_advantage
from benchmarks.study.tables import CONTRAST_NUMBERS, MODALITIES, STEP_NUMBERS, listed, rate, signed

FLOOR = {"0.5": 81.0, "1": 61.0}
"""Certified accuracy, %, of the project's prototype, by joint radius."""
COSTLY = 1.5
"""A method that takes this many times as long to train as JT is named."""
DIFFERENCE_RULE = (
    "A difference is called one when it is beyond two deviations of itself, taken seed by seed; with three seeds that "
    "is a two-sided t-test at about 7 %, and many differences are looked at: single ones just beyond it prove little."
)


def difference_text(study: Study, found: Difference, digits: int = 1, unit: str = " points") -> str:
    """A difference in words: `+4.5 ± 0.6 points`, or that it is within two deviations.

    Args:
        study: says how many seeds were planned.
        found: the difference.
        digits: after the decimal point.
        unit: follows the number.
    """
    text = signed(found.mean, found.deviation, digits) + study.mark(found.seeds) + unit
    if found.seeds < 2:
        return f"{text} (one seed)"
    return text if found.beyond_two_deviations else f"no difference beyond two deviations ({text})"


def comparison_sentence(study: Study, phase: str, ours: str, theirs: str, numbers: dict[str, str]) -> str | None:
    """One sentence on two methods: where the first is higher, where lower, and where neither can be said.

    Args:
        study: what has run so far.
        phase: the phase whose models are compared.
        ours: the first method.
        theirs: the second method.
        numbers: number to its name in the sentence.

    Returns: None where the two share no number.
    """
    higher, lower, neither, single = [], [], [], []
    for number, name in numbers.items():
        found = difference(study.values(phase, ours, number), study.values(phase, theirs, number))
        if found is None:
            continue
        text = f"{name} {signed(found.mean, found.deviation)}{study.mark(found.seeds)}"
        if found.seeds == 1:
            single.append(text)
        else:
            (neither if not found.beyond_two_deviations else higher if found.mean > 0 else lower).append(text)
    if not (higher or lower or neither or single):
        return None
    parts = [f"higher in {listed(higher)}"] * bool(higher) + [f"lower in {listed(lower)}"] * bool(lower)
    parts += [f"no difference beyond two deviations in {listed(neither)}"] * bool(neither)
    parts += [f"with one seed, so without a deviation, {listed(single)}"] * bool(single)
    return f"**{title(ours)} against {title(theirs)}**: {'; '.join(parts)}."


def highest_mean(study: Study, phase: str, number: str) -> tuple[str, float, str] | None:
    """The method with the highest mean of a number.

    Returns: the method, its mean, and a mark where it rests on fewer seeds than planned; None without a value.
    """
    found = {m: v for m in study.methods(phase) if len(v := study.values(phase, m, number))}
    if not found:
        return None
    first = max(found, key=lambda m: found[m].mean())
    return first, float(found[first].mean()), study.mark(len(found[first]))


def crmt_against_baselines(study: Study) -> list[str]:
    """Each variant of CRMT against the method that it extends, and the best method for each number."""
    pairs = (("crmt_jt", "jt"), ("crmt_mix", "mixup"), ("crmt_at", "mmat"), ("crmt_gradient", "crmt_jt"))
    lines = [c for ours, theirs in pairs if (c := comparison_sentence(study, "final", ours, theirs, CONTRAST_NUMBERS))]
    ratios = difference(*(study.values("final", m, "indicator_ratio:estimate") for m in ("crmt_jt", "jt")))
    if ratios is not None:
        means = [study.values("final", m, "indicator_ratio:estimate").mean() for m in ("jt", "crmt_jt")]
        lines.append(
            f"Vulnerability indicators, video ÷ audio: JT {means[0]:.2f}, CRMT-JT {means[1]:.2f}: "
            f"{difference_text(study, ratios, 2, '')}."
        )
    fronts = []
    for number, name in CONTRAST_NUMBERS.items():
        if found := highest_mean(study, "final", number):
            fronts.append(f"{name} {title(found[0])} ({found[1]:.1f}{found[2]})")
    if fronts:
        lines.append(f"Highest mean of all methods: {', '.join(fronts)}.")
    return lines


def controls(study: Study) -> list[str]:
    """CRMT against control methods that have only one of its parts."""
    pairs = (
        ("jt_log_term", "jt"), ("crmt_step1", "jt_log_term"), ("ojt", "jt"), ("ojt_unimodal_ce", "ojt"),
        ("crmt_step1", "ojt_unimodal_ce"),
    )  # fmt: skip
    return [c for ours, theirs in pairs if (c := comparison_sentence(study, "final", ours, theirs, CONTRAST_NUMBERS))]


def effect_of_step2(study: Study) -> list[str]:
    """Each model after step 2 against the same model before it."""
    lines = []
    for method in study.methods("final"):
        parts = []
        for number, (name, digits) in STEP_NUMBERS.items():
            after = study.values("final", method, number, "step2")
            found = difference(after, study.values("final", method, number, "step1"))
            if found is not None:
                parts.append(f"{name} {difference_text(study, found, digits, '' if 'radius' in number else ' points')}")
        if parts:
            lines.append(f"**{title(method)}**: {'; '.join(parts)}.")
    return lines


def certified_accuracy(study: Study) -> list[str]:
    """Certified accuracy of CRMT against other methods, the prototype, and adversarial training under attack."""
    lines = []
    numbers = {f"certified:lipschitz:joint:{e}": f"certified joint {e}" for e in ("0.5", "1")}
    numbers |= {f"certified:lipschitz:{m}:0.5": f"certified {m} 0.5" for m in MODALITIES} | {"clean": "clean"}
    for ours, theirs in (("crmt_jt", "ojt"), ("crmt_jt", "jt"), ("radius_loss", "crmt_jt"), ("radius_loss", "ojt")):
        if text := comparison_sentence(study, "lipschitz", ours, theirs, numbers):
            lines.append(f"1-Lipschitz encoders, {text}")
    for method in study.methods("lipschitz"):
        parts = []
        for name, number in (("at 0.5", "certified:lipschitz:joint:0.5"), ("at 1", "certified:lipschitz:joint:1")):
            before = study.values("lipschitz", method, number, "step1")
            found = difference(study.values("lipschitz", method, number, "step2"), before)
            if found is not None:
                parts.append(f"{name} {difference_text(study, found)}")
        if parts:
            lines.append(f"Step 2 on certified accuracy, **{title(method)}**: {'; '.join(parts)}.")
    lines += _against_reference_points(study)
    numbers = {f"certified:smoothing:joint:{e}": f"certified joint {e}" for e in ("0.25", "0.5")} | {"clean": "clean"}
    for ours in ("crmt_step1", "crmt_jt"):
        if text := comparison_sentence(study, "smoothing", ours, "jt", numbers):
            lines.append(f"Smoothing, all trained with noise, {text}")
    return lines


def _against_reference_points(study: Study) -> list[str]:
    lines = []
    budget = training_advantage(study, "lipschitz", "final")
    for e, floor in FLOOR.items():
        found = highest_mean(study, "lipschitz", f"certified:lipschitz:joint:{e}")
        if found is None:
            continue
        side = "above" if found[1] > floor else "at" if found[1] == floor else "below"
        text = f"At joint radius {e} the best certified accuracy is {found[1]:.1f}{found[2]} % ({title(found[0])}), "
        text += f"{side} the floor of {floor:.0f} %"
        attacked = study.values("final", "mmat", f"auto:joint:{e}")
        if len(attacked):
            gap = found[1] - attacked.mean()
            text += "; MMAT's accuracy under attack, which proves nothing, is "
            text += f"{attacked.mean():.1f}{study.mark(len(attacked))} % there, {abs(gap):.1f} points "
            text += "below the certificate" if gap > 0 else "above it"
            text += f" (the certified models {budget}: no comparison of equal budgets)" if budget else ""
        lines.append(text + ".")
    return lines


def audit_results(study: Study) -> list[str]:
    """How often attacks broke the radii of each certificate."""
    lines = []
    for phase, certificate, name in (
        ("final", "estimate", "The estimated radius"),
        ("lipschitz", "lipschitz", "The certified radius of 1-Lipschitz encoders"),
        ("smoothing", "smoothing", "The certified radius (99.9 %) of smoothing"),
    ):
        found = audits(study, phase)
        found = found[found.certificate == certificate]
        audited, violated = int(found.audited.sum()), int(found.violated.sum())
        if not audited:
            continue
        text = f"{name} was broken inside itself in {rate(violated, audited)} of the audits"
        if violated:
            balls = found.groupby("ball")[["violated", "audited"]].sum()
            text += ": " + ", ".join(f"{b} {rate(r.violated, r.audited)}" for b, r in balls.iterrows())
            worst = found.groupby("method")[["violated", "audited"]].sum()
            worst = (worst.violated / worst.audited).sort_values(ascending=False)
            text += f"; of {title(str(worst.index[0]))}'s in {100 * worst.iloc[0]:.1f} %, the most of any method"
        if violated and certificate == "lipschitz":
            text += ". **A proven radius must have none: this is a bug**"
        if violated and certificate == "smoothing":
            text += _smoothing_violations(study)
        if not violated and certificate == "estimate":
            text += "; that it held does not make it a certificate"
        lines.append(text + ".")
    return lines


def _smoothing_violations(study: Study) -> str:
    found = smoothing_audits(study)
    beyond = found[found.violated > found.allowed]
    if len(beyond):
        words = [
            f"{title(r.method)} {r.ball} {r.violated}, where chance allows {r.allowed} of {r.clips} clips"
            for r in beyond.itertuples()
        ]
        return f". **More than chance explains: {'; '.join(words)}: this is a bug**"
    most = found.loc[found.violated.idxmax()]
    text = f"; no method has more in a ball than chance explains ({title(most.method)} {most.ball} has the most, "
    return text + f"{most.violated}, where {most.allowed} of {most.clips} clips are allowed)"


def attack_strength(study: Study) -> list[str]:
    """`auto` against PGD: by how much the weaker attack overstates robustness."""
    gaps = {}
    for method in study.methods("final"):
        for e in ("0.5", "1"):
            found = difference(
                study.values("final", method, f"pgd:joint:{e}"), study.values("final", method, f"auto:joint:{e}")
            )
            if found is not None:
                gaps[f"{title(method)} at {e}"] = found.mean
    if not gaps:
        return []
    where = max(gaps, key=lambda name: gaps[name])
    mean = sum(gaps.values()) / len(gaps)
    text = f"PGD-20 leaves {mean:.1f} points more than `auto` on average, {gaps[where]:.1f} at most ({where})"
    if min(gaps.values()) < 0:
        text += ". **`auto` is above one of its parts: this is a bug**"
    return [text + "."]


def training_cost(study: Study) -> list[str]:
    """Training time against JT's.

    From the search, where all methods train for the same epochs. The median, since other work on the machine slows
    some trials.
    """
    seconds: dict[str, list[float]] = {}
    for tried in study.tried.get("search", []):
        if tried.value is not None:
            seconds.setdefault(tried.point["train.method"], []).append(tried.seconds)
    median = {method: statistics.median(found) for method, found in seconds.items()}
    base = median.pop("jt", 0.0)
    if not median or not base:
        return []
    dear = sorted(median.items(), key=lambda item: -item[1])
    words = [f"{title(m)} {s / base:.1f} times as long ({s:.0f} s)" for m, s in dear if s > COSTLY * base]
    text = f"In the search all methods train for the same number of epochs. A trial of it takes JT {base:.0f} s"
    return [f"{text}, and {listed(words)}." if words else f"{text}, and no method {COSTLY:g} times as long."]


def answers(study: Study) -> list[tuple[str, list[str]]]:
    """Each question with its sentences; a question that no number answers yet is left out."""
    found = [
        ("Does CRMT help, where, and by how much?", crmt_against_baselines(study)),
        ("Where does a gain come from?", controls(study)),
        ("What does step 2 change?", effect_of_step2(study)),
        ("Does it help where the radius is proven?", certified_accuracy(study)),
        ("How often do radii break under attack?", audit_results(study)),
        ("How strong are the attacks?", attack_strength(study)),
        ("What does it cost?", training_cost(study)),
    ]
    return [(question, lines) for question, lines in found if lines]
