"""Attack and certify a saved model, on the clips that its card names or on others.

python pipelines/evaluate.py runs/NAME/models/TRIAL --set attack.steps=50
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from crmt.certificates.estimate import gradient_constants
from crmt.checkpoint import load_model, read_model_card
from crmt.errors import BadInputError, CRMTError
from crmt.methods import method_class
from crmt.model import ModelSpec, MultiModalModel
from crmt.predictions import predict
from pipelines.clips.batches import Clips, Placement, modalities_of
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import look_ahead
from pipelines.clips.prepare import prepare
from pipelines.command import add_code_argument, config_from_card, importing, run_command, start_ray
from pipelines.config.run_config import RunConfig, parse_overrides
from pipelines.infra.ray_errors import first_line
from pipelines.reporting.build import build_report
from pipelines.reporting.summary import print_summary
from pipelines.runs.live import LiveTable
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import check_free, now, open_run, read_card
from pipelines.runs.trial_rows import trial_row, updated_row
from pipelines.sweeps.preflight import check_settings, settled
from pipelines.trials.certify import ClipStore, exact_arithmetic
from pipelines.trials.launch import device_of
from pipelines.trials.measure import Measured, Measurement
from pipelines.trials.sessions import LocalSession
from pipelines.trials.trial import stage_of

TRIAL = "evaluation"
MEASURING = ("train.seed", "train.tau_samples")
"""Of `train`, what evaluation takes notice of."""


def _check_same_task(spec: ModelSpec, cache: ClipCache, config: RunConfig) -> None:
    """A model can only be measured on clips of its own classes and shapes."""
    if spec.classes != cache.classes:
        raise BadInputError(
            f"the model knows {len(spec.classes)} classes ({', '.join(spec.classes[:5])} …), the clips have "
            f"{len(cache.classes)} ({', '.join(cache.classes[:5])} …): give the data set that it was trained on"
        )
    names = [m.name for m in spec.modalities]
    for model, clips in zip(spec.modalities, modalities_of(cache, config.data, names), strict=True):
        if model.shape != clips.shape:
            raise BadInputError(f"the model takes {model.name} of shape {model.shape}, the clips give {clips.shape}")


def _check_overrides(overrides: list[str]) -> None:
    """What trained the model is a fact: rows that say otherwise would be of a model that never was."""
    for path in parse_overrides(overrides):
        if path.startswith(("train.", "model.")) and path not in MEASURING:
            raise BadInputError(f"{path} says how the model was trained: evaluate.py cannot change it")


def _check_same_model(run: Path, card: dict[str, Any]) -> None:
    stored = ResultsStore(run / "results").read("trials", TRIAL)
    if len(stored) and stored.weights_sha256.iloc[0] != card["weights_sha256"]:
        raise BadInputError(f"{run} evaluates another model ({stored.model.iloc[0]}): give that one to go on with it")


def _stage_of(card: dict[str, Any], config: RunConfig) -> str:
    """Whether the model went through step 2; cards that do not say so are of methods of ours."""
    return str(card.get("stage") or stage_of(method_class(config.train.method)))


def run_evaluation(
    folder: Path,
    overrides: list[str],
    root: Path | None,
    out: Path | None,
    resume: Path | None = None,
    *,
    trust_code: bool = False,
    code: Sequence[Path] = (),
) -> Path:
    """Measure a saved model; returns the folder with results and report.

    τ̂ is estimated anew on training clips, standardised as the model's own training clips were.

    Args:
        resume: the folder of an evaluation that was stopped; clips that it had smoothed are not smoothed again.
        trust_code: import what the model's card names by path.
        code: folders to import it from; default: those of the card.

    Raises:
        BadInputError: not a saved model, or clips that it cannot take.
    """
    console, started = Console(), perf_counter()
    config = read_card(resume)[1] if resume else config_from_card(read_model_card(folder), overrides, root)
    config = importing(config, code) if trust_code else config.model_copy(update={"code": []})
    model, spec, card = load_model(folder, trust_code=trust_code)
    if resume:
        _check_same_model(resume, card)
    else:
        _check_overrides(overrides)
        check_free(out)
    check_settings(config, spec)
    index = look_ahead(config.data)
    start_ray(dashboard=False, code=config.code)
    config = settled(config)
    prepared = prepare(config, lambda text: console.print(text, highlight=False), index)
    _check_same_task(spec, prepared.cache, config)
    given = open_run(config, prepared, spec.modalities, "evaluation", folder=out, resume=resume)
    run = given.run
    store = ResultsStore(run / "results")
    known = {"weights_sha256": card["weights_sha256"], "model": str(folder.resolve()), "epochs": config.train.epochs}
    row = trial_row(TRIAL, config, {}, given.provenance, now(), resolved=True) | known
    store.write("trials", TRIAL, [row])
    place = Placement(device=device_of(config.sweep.gpus_per_worker or 0))
    session = LocalSession(TRIAL, run, place)
    transform = prepared.source.transform.with_front_end(card["front_end"])
    clips = replace(prepared.source, transform=transform).open(place)
    model = model.to(place.device)
    exact_arithmetic(config)
    stage = _stage_of(card, config)
    try:
        measured = _measured(model, config, clips, session, store, console, run, stage)
    except CRMTError as error:
        store.write("trials", TRIAL, [row | {"status": "failed", "error": first_line(error)}])
        raise
    for table in ("metrics", "curves", "radii"):
        rows = [{"trial_id": TRIAL, **r} for r in getattr(measured, table)]
        store.write(table, f"{TRIAL}.{stage}", rows)
    done = {"finished": True, "epoch": config.train.epochs, **known}
    store.write("trials", TRIAL, [updated_row(row, done, perf_counter() - started)])
    build_report(run)
    print_summary(run, console)
    return run


def _measured(
    model: MultiModalModel,
    config: RunConfig,
    clips: Clips,
    session: LocalSession,
    store: ResultsStore,
    console: Console,
    run: Path,
    stage: str,
) -> Measured:
    with LiveTable(run, 1, console):
        session.progress("τ", 0.0)
        constants = gradient_constants(model, clips.ordered("train", config.train.tau_samples, config.train.seed))
        training = predict(model, clips.ordered("train"), missing=False)
        reference = training.mean_contributions(model.head)
        stored = ClipStore(store, TRIAL, session.place.rank)
        measure = Measurement(config, clips, session.gather, session.progress, stored=stored)
        return measure(model, constants, reference, stage, True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the folder of a saved model: runs/NAME/models/TRIAL")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the clips lie now, if they were moved")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/<dataset>-evaluation-<time>")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with an evaluation that was stopped")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="e.g. attack.restarts=5")
    add_code_argument(parser)
    parser.add_argument(
        "--trust-code", action="store_true", help="import what the model's card names by package.module:Name"
    )
    options = parser.parse_args(argv)

    def body() -> int:
        if options.code and not options.trust_code:
            raise BadInputError("--with names code to import: add --trust-code where you trust it")
        if options.resume and (options.set or options.out or options.data_root):
            raise BadInputError("--resume goes on with the settings that it began with: leave the other options out")
        run_evaluation(
            options.model,
            options.set,
            options.data_root,
            options.out,
            options.resume,
            trust_code=options.trust_code,
            code=options.code,
        )
        return 0

    return run_command(body, "Go on with --resume and the folder of the evaluation.")
