"""How hard is avdigits for plain joint training, on one modality and on both? Three seeds, by the project's own sweep.

python benchmarks/calibration.py     9 trials of JT, about 7 minutes on 2 cores

Prints mean ± deviation of every measured number and writes them to benchmarks/results/calibration.md with the commit,
the hardware and the time it took. The run is kept under runs/; an interrupted one goes on with --resume DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from crmt.errors import BadInputError
from pipelines.command import run_command
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import RunConfig, load_config, with_values
from pipelines.reporting.names import names_of
from pipelines.runs.results import ResultsStore, open_store
from pipelines.runs.run_folder import read_card
from pipelines.sweeps.run import run_sweep

RESULTS = Path(__file__).resolve().parent / "results"
SEED = "train.seed"
ENCODER = "small_resnet"


SEEDS = (0, 1, 2)
VALUES: dict[str, Any] = {
    "search": {},
    "sweep.algorithm": "grid",
    "sweep.scheduler": "none",
    "sweep.start_with": [],
    "train.method": "jt",
    "attack.names": ["pgd"],
    "attack.steps": 20,
    "attack.samples": None,
    "attack.epsilons": [0.25, 0.5, 1.0, 2.0, 4.0],
    "certify.audit_samples": 0,
}
GRID: dict[str, list[Any]] = {
    "model.encoders": [{"video": ENCODER}, {"audio": ENCODER}, {"video": ENCODER, "audio": ENCODER}],
    SEED: list(SEEDS),
}


def configuration() -> RunConfig:
    """avdigits' own configuration with the grid in place of its search."""
    plain = with_values(load_config(CONFIG_DIR / "avdigits.yaml"), VALUES)
    return with_values(plain, {"search": {path: {"grid": values} for path, values in GRID.items()}})


def setting_name(params: dict[str, Any]) -> str:
    """The searched parameters in a few words, without the seed."""
    words = []
    for path, value in params.items():
        if path != SEED:
            words.append(" + ".join(value) if isinstance(value, dict) else str(value))
    return ", ".join(words)


def numbers(store: ResultsStore) -> pd.DataFrame:
    """The numbers of all finished trials: columns trial_id, number, value and setting."""
    trials = store.read("trials")
    trials = trials[trials.status == "finished"]
    params = {t: json.loads(p) for t, p in zip(trials.trial_id, trials.params, strict=True)}
    metrics, curves = store.read("metrics"), store.read("curves")
    metrics = metrics[metrics.final & (metrics.split == "test") & metrics.name.isin(list(SHOWN))]
    curves = curves[curves.final & (curves.split == "test")]
    rows = []
    for row in metrics.itertuples():
        name = SHOWN[str(row.name)].format(radius=radius_name(row.certificate))
        name += f" {row.modality}" if isinstance(row.modality, str) else ""
        rows.append((row.trial_id, name, row.value * (100 if row.name in SHARES else 1)))
    for row in curves.itertuples():
        budgets = json.loads(row.budgets) if isinstance(row.budgets, str) else {}
        budget = ", ".join(f"{m} {e:g}" for m, e in budgets.items()) or f"{row.epsilon:g}"
        rows.append((row.trial_id, f"{row.attack} {row.ball} {budget}", 100 * row.accuracy))
    table = pd.DataFrame(rows, columns=["trial_id", "number", "value"])
    table["setting"] = [setting_name(params[t]) for t in table.trial_id]
    return table


SHARES = {"clean_accuracy", "unimodal_accuracy", "missing_accuracy"}
SHOWN = {
    "clean_accuracy": "clean",
    "unimodal_accuracy": "by scores of",
    "missing_accuracy": "without",
    "mean_radius": "mean {radius} radius",
    "audit_violations": "violated {radius} radii",
    "indicator_ratio": "indicator video / audio ({radius})",
}


def radius_name(certificate: object) -> str:
    """What a radius is called; older runs had the estimate alone and did not say so."""
    return names_of().certificate(certificate if isinstance(certificate, str) else "estimate").word


def markdown(store: ResultsStore) -> str:
    """A Markdown table of mean ± deviation over seeds: one row a number, one column a setting."""
    table = numbers(store)
    order = list(dict.fromkeys(table.number))
    settings = list(dict.fromkeys(table.sort_values("setting").setting))
    grouped = table.groupby(["number", "setting"]).value.agg(["mean", "std", "count"])
    lines = ["| | " + " | ".join(settings) + " |", "| --- |" + " --- |" * len(settings)]
    for number in order:
        cells = []
        for setting in settings:
            if (number, setting) in grouped.index:
                cell = grouped.loc[(number, setting)]
                digits = 1 if abs(cell["mean"]) >= 5 or number.partition(" ")[0] in names_of().attacks else 2
                cells.append(f"{cell['mean']:.{digits}f} ± {cell['std']:.{digits}f}")
            else:
                cells.append("–")
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trial_minutes(folder: Path) -> float:
    """Minutes that the trials took, summed over all of them."""
    return float(open_store(folder).read("trials").seconds.sum()) / 60


def run(out: Path | None, resume: Path | None) -> int:
    """Run the trials, or go on with them, and write the table."""
    wanted = configuration().model_dump(mode="json")["search"]
    if resume and read_card(resume)[0]["config"]["search"] != wanted:
        raise BadInputError(f"{resume} is not a run of the calibration")
    config = read_card(resume)[1] if resume else configuration()
    folder = (resume or out or Path("runs") / f"calibration-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    code = run_sweep(config, None if resume else folder, folder if resume else None, False, None)
    if code:
        return code
    card, _ = read_card(folder)
    text = "\n".join(
        [
            "# How hard is avdigits for JT on one modality and on both?",
            "",
            f"`python benchmarks/calibration.py`: JT at learning rate {card['config']['train']['lr']:g}, mean",
            f"± deviation over {len(SEEDS)} seeds; accuracies in % of the 597 test clips; PGD-20 (margin",
            "loss), ℓ2 budgets (video: pixels in [0, 1]; audio: standardised log-mel).",
            "",
            markdown(open_store(folder)),
            "",
            f"{card['started'][:10]}, commit {str(card['commit'])[:12]}{' with changes' if card['dirty'] else ''}, "
            f"{card['hardware']['cpus']} cores, {card['hardware']['gpus']} GPUs, torch {card['versions']['torch']}, "
            f"{trial_minutes(folder):.0f} minutes of trials, two at a time; clip list {card['clips_sha256'][:12]}.",
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibration.md").write_text(text)
    print(text)
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--resume", type=Path, metavar="DIR")
    options = parser.parse_args()
    return run_command(lambda: run(options.out, options.resume))


if __name__ == "__main__":
    sys.exit(main())
