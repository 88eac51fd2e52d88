"""Attack and certify a saved model, on the clips that its card names or on others.

python pipelines/evaluate.py runs/NAME/models/TRIAL --set attack.steps=50
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.command import (
    add_code_argument,
    add_set_argument,
    add_storage_argument,
    check_place_of,
    command_parser,
    config_from_card,
    importing,
    run_command,
    storage_of,
)

MEASURING = ("train.seed", "train.tau_samples")
"""The settings of `train` that matter to an evaluation."""


def _check_overrides(overrides: list[str]) -> None:
    """Refuse overrides of how the model was trained: its rows would describe a training that never happened."""
    from pipelines.config.run_config import parse_overrides

    for path in parse_overrides(overrides):
        if path.startswith(("train.", "model.")) and path not in MEASURING:
            raise BadInputError(f"{path} says how the model was trained: an evaluation cannot change it")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("model", help="the folder of a saved model or its URI: runs/NAME/models/TRIAL")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the clips lie now, if they were moved")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/<dataset>-evaluation-<time>")
    add_storage_argument(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with an evaluation (a folder or a URI)")
    add_set_argument(parser, "e.g. attack.restarts=5")
    parser.add_argument("--workers", type=int, help="sweep.workers: more than one share the clips; default 1")
    parser.add_argument(
        "--address", help="of a Ray cluster, whose workers measure; default: this process, this machine"
    )
    add_code_argument(parser)
    parser.add_argument(
        "--trust-code", action="store_true", help="import what the model's card names by package.module:Name"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    options = arguments().parse_args(argv)

    def body() -> int:
        if options.resume and any(getattr(options, name) for name in ("set", "out", "storage", "data_root", "workers")):
            raise BadInputError("--resume goes on with the settings that it began with: leave the other options out")
        if options.code and not options.trust_code:
            raise BadInputError("--with names code to import: add --trust-code where you trust it")
        from crmt.checkpoint import CARD, read_model_card
        from pipelines.config.run_config import with_values
        from pipelines.infra.storage import is_uri
        from pipelines.runs.place import run_at
        from pipelines.runs.run_folder import read_card
        from pipelines.sweeps.single import load_saved, run_evaluation

        check_place_of(options)
        where = run_at(options.model, "MODEL") if is_uri(options.model) else Path(options.model)
        resume = run_at(options.resume, "--resume") if options.resume else None
        if resume:
            config = read_card(resume)[1]
        else:
            _check_overrides(options.set)
            with nullcontext(where) if isinstance(where, Path) else where.here(CARD) as folder:
                card = read_model_card(folder)
            config = config_from_card(card, options.set, options.data_root)
        config = importing(config, options.code) if options.trust_code else config.model_copy(update={"code": []})
        model = load_saved(where, resume, trust_code=options.trust_code)
        if options.workers is not None:
            config = with_values(config, {"sweep.workers": options.workers})
        run_evaluation(model, config, options.out, resume, options.address, storage_of(options))
        return 0

    return run_command(body, "Go on with --resume and the folder of the evaluation.")
