"""The study's report: answers, tables and pictures in one Markdown file, with where they come from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.study.answers import DIFFERENCE_RULE, answers
from benchmarks.study.data import FEWER, Study, title
from benchmarks.study.figures import Picture, draw_all
from benchmarks.study.plan import BY_NAME, TRIALS, WIDER_TRIALS
from benchmarks.study.setup import epochs_text, setup_differences, setup_table
from benchmarks.study.summary import NEXT_HEADING, summarise
from benchmarks.study.tables import FOOTNOTE, all_tables, listed, settings_text

TITLE = "# The study: what CRMT does on avdigits"
SPACE = "ℓ2 distances in video pixels in [0, 1] and standardised log-mel"


def build(study: Study, results: Path | None) -> str:
    """The report as Markdown.

    Args:
        study: what has run so far.
        results: a folder that gets study.md, study/*.png and study/*.csv, in place of those of an earlier report; None
            writes nothing.
    """
    tables = all_tables(study)
    pictures: list[Picture] = []
    if results is not None:
        folder = results / "study"
        _clear(folder)
        pictures = draw_all(study, folder)
        for table in tables:
            table.raw.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g")
    parts = [TITLE, summarise({t.name: t.raw for t in tables}), _what_was_run(study), _missing(study)]
    if found := answers(study):
        footnote = f" {FOOTNOTE}" if any(FEWER in line for _, lines in found for line in lines) else ""
        parts.append(f"## Answers\n\nMade by rule from the numbers below. {DIFFERENCE_RULE}{footnote}")
        parts += [f"### {question}\n\n" + "\n".join(f"- {line}" for line in lines) for question, lines in found]
    if tables:
        parts += ["## Tables\n\nMean ± deviation over seeds.", *(table.markdown().rstrip() for table in tables)]
    if pictures:
        parts.append("## Pictures")
        parts += [f"![{p.name}](study/{p.name}.png)\n\n{p.caption}" for p in pictures]
    parts += [_how_it_was_measured(study), _provenance(study)]
    text = "\n\n".join(p for p in parts if p) + "\n"
    if results is not None:
        (results / "study.md").write_text(text)
    return text


def _clear(folder: Path) -> None:
    """Delete the pictures and tables of an earlier report."""
    for old in [*folder.glob("*.csv"), *folder.glob("*.png")]:
        old.unlink()


def _what_was_run(study: Study) -> str:
    options, epochs = study.options, epochs_text(study)
    return (
        f"{NEXT_HEADING}\n\n"
        f"`{options.command()}`: {len(options.methods)} training methods, {epochs + ', ' if epochs else ''}seeds "
        f"{', '.join(map(str, options.seeds))}; attacks on {options.samples} test clips, "
        f"radii of all of them; budgets and radii are {SPACE}."
        + (f" Only {options.limit} clips of each split were used." if options.limit else "")
    )


def _missing(study: Study) -> str:
    """A list of what the study has not measured, with the errors of failed trials; empty for a complete study."""
    lines = []
    for name, run in study.runs.items():
        planned, there = len(run.planned), len(run.trials)
        if run.card is None:
            lines.append(f"- {name} ({run.phase.question}) has not begun")
            continue
        if there < planned:
            lines.append(f"- {name} ({run.phase.question}): {there} of {planned} trials finished")
        for failure in run.failed:
            point = failure.point
            who = f"{title(point['train.method'])}, seed {point['train.seed']}, {settings_text(point)}"
            lines.append(f"  - failed: {who}: {' '.join(failure.error.split())}")
        if run.phase.needs and (lost := _unchosen(study, name)):
            lines.append(f"- {name}: no trial of the search finished for {listed(lost)}")
    left_out = [phase for name, phase in BY_NAME.items() if name not in study.runs]
    lines += [f"- {phase.name} ({phase.question}) was left out" for phase in left_out]
    return "**This study is not complete.** Missing:\n\n" + "\n".join(lines) if lines else ""


def _unchosen(study: Study, phase: str) -> list[str]:
    run = study.runs[phase]
    chosen = study.chosen.get(str(run.phase.needs), {})
    return [title(m) for m in run.phase.methods_of(study.options) if m not in chosen]


def _how_it_was_measured(study: Study) -> str:
    parts = ["## How it was measured"]
    if table := setup_table(study):
        parts += ["How each phase trained, from its run card:", table]
    return "\n\n".join([*parts, "".join(f"- {sentence}\n" for sentence in setup_differences(study)) + _rules()])


def _rules() -> str:
    return (
        "- Within a phase every method has the same number of epochs, optimiser, encoders and augmentation, and in a "
        f"search the same number of trials: {TRIALS} learning rates, or learning rates times values of its own "
        f"hyperparameter where it has one worth searching, then {WIDER_TRIALS} more learning rates, beyond the edge of "
        "its grid where its best one lies there, else between its neighbours. The validation split alone "
        "decides, by accuracy under PGD in the joint ball of ε .5, with one seed; ties go to the earlier point. The "
        "final models are trained anew with each seed.\n"
        "- Methods that train on adversarial inputs have the same grid of ε.\n"
        "- `auto` runs all attacks cheapest first and drops clips as they fall; a model with step 2 is measured after "
        "each step.\n"
        "- Smoothing trains with Gaussian noise, its deviation in the table, with the hyperparameters of the main "
        "search, and certifies with the same noise.\n"
        "- What is called estimated is no certificate; what is called certified is proven (smoothing: with 99.9 % a "
        "clip)."
    )


def _provenance(study: Study) -> str:
    sweeps = [(name, card, run.trials) for run in study.runs.values() for name, card in run.cards.items()]
    if not sweeps:
        return ""
    last = sweeps[-1][1]
    rows = ["| phase | trials | seconds of trials | wall, minutes | commit |", "| --- | ---: | ---: | ---: | --- |"]
    for name, card, of_phase in sweeps:
        trials = of_phase[of_phase.sweep == name] if len(of_phase) else of_phase
        seconds = float(trials.seconds.sum()) if len(trials) else 0.0
        rows.append(f"| {name} | {len(trials)} | {seconds:.0f} | {_wall(card, trials)} | {commits(card)} |")
    hardware, versions = last["hardware"], last["versions"]
    return (
        "## Where it comes from\n\n" + "\n".join(rows) + "\n\n"
        f"{last['started'][:10]}, {hardware['cpus']} cores, {hardware['gpus']} GPUs, "
        f"{', '.join(f'{k} {v}' for k, v in versions.items() if k in ('python', 'torch', 'ray', 'numpy'))}; clip list "
        f"{str(last['clips_sha256'])[:12]}, {last['clips'].get('test', 0)} test clips."
    )


def commits(card: dict[str, Any]) -> str:
    """The commits that a run's sessions started from, each once."""
    sessions = [card, *card.get("sessions", [])]
    return ", ".join(
        dict.fromkeys(str(s["commit"])[:12] + (" with changes" if s.get("dirty") else "") for s in sessions)
    )


def _wall(card: dict[str, Any], trials: pd.DataFrame) -> str:
    """Minutes from the first trial's start to the last one's end; a pause between sessions counts, and is named."""
    if not len(trials):
        return "–"
    starts = [datetime.fromisoformat(str(s)).timestamp() for s in trials.started]
    ends = [s + float(t) for s, t in zip(starts, trials.seconds, strict=True)]
    paused = " with a pause" if card.get("sessions") else ""
    return f"{(max(ends) - min(starts)) / 60:.0f}{paused}"
