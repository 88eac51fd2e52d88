"""What the study runs: its phases, the list of points of each, and the choice of hyperparameters between them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crmt.encoders import encoder_names
from crmt.errors import BadInputError, CRMTError
from crmt.methods import method_class, method_names
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import RunConfig, load_config, with_values
from pipelines.config.trial_schema import METHOD_FIELDS

Point = dict[str, Any]
"""The settings of one trial: dotted path to value."""

CARD = "study.json"
EPSILONS = (0.1, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""The radii of the paper's Figure 1, and 0.5."""
SIGMAS = {"video": 0.5, "audio": 0.5}
"""Smoothing's noise, in training and certification."""
ALPHA = 0.001
"""Probability, a clip, that smoothing's radius is wrong."""
RHOS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
PAIR_BUDGETS = (0.25, 0.5, 1.0, 1.5, 2.0)
QUERIES = 100
"""Queries of the Square attack for each clip and ball: enough to notice masked gradients, too few for a search."""
TEST_CLIPS = 597
TRIALS = 4
"""Trials of the search, the same for every method."""
WIDER_TRIALS = 2
"""Trials of the wider search, the same for every method: see `wider_points`."""

RATES = (0.02, 0.05, 0.1, 0.2)
TWO_RATES = (0.05, 0.1)
LIPSCHITZ_RATES = (0.002, 0.005, 0.01, 0.02)
TWO_LIPSCHITZ_RATES = (0.005, 0.01)

OTHER_AXIS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "mmat": ("epsilon", (0.35, 0.7)),
    "msefm": ("epsilon", (0.35, 0.7)),
    "crmt_at": ("epsilon", (0.35, 0.7)),
    "crmt_gradient": ("epsilon", (0.35, 0.7)),
    "crmt_step1": ("rho", (2.0, 5.0)),
    "crmt_jt": ("rho", (2.0, 5.0)),
    "crmt_mix": ("rho", (2.0, 5.0)),
    "jt_log_term": ("rho", (2.0, 5.0)),
    "ojt_unimodal_ce": ("unimodal_weight", (0.5, 1.0)),
    "mixup": ("mixup_alpha", (0.2, 1.0)),
    "gb": ("gb_super_epoch", (5, 10)),
    "ogm_ge": ("ogm_alpha", (0.3, 0.8)),
    "pmr": ("pmr_alpha", (0.5, 1.0)),
}
"""method: the hyperparameter searched besides the learning rate; a method that is not here gets four learning rates."""
LIPSCHITZ_AXIS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "radius_loss": ("shift", (3.0, 5.0)),
    "crmt_jt": ("rho", (2.0, 5.0)),
}

LIPSCHITZ_ONLY = ("radius_loss",)
LIPSCHITZ_METHODS = ("jt", "ojt", "crmt_jt", "radius_loss")
SMOOTHING_METHODS = ("jt", "crmt_step1", "crmt_jt")
CURVE_METHODS = ("jt", "ojt", "mmat", "crmt_step1", "crmt_jt", "crmt_mix", "crmt_at", "crmt_gradient")


@dataclass(frozen=True)
class Options:
    """The size of a study. Kept in its folder, so that a resumed study is the same one."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 20
    samples: int = 64
    """Test clips that are attacked."""
    audited: int = 20
    """Test clips whose estimated and smoothed radii are audited."""
    sound_audited: int = 40
    """Test clips whose Lipschitz radii are audited."""
    limit: int | None = None
    """data.limit: clips of each split, for a first look."""
    phases: tuple[str, ...] = ()

    @property
    def shrunken(self) -> bool:
        """Whether a method, seed, phase, epoch or clip of the whole study is missing; its report is not published."""
        whole = Options(tuple(method_names()))
        return (
            not set(whole.methods) <= set(self.methods)
            or len(self.seeds) < len(whole.seeds)
            or self.epochs < whole.epochs
            or self.limit is not None
            or len(phases_of(self)) < len(PHASES)
        )

    def command(self) -> str:
        """The command line that runs this study, with every option that is not the default."""
        whole, words = Options(tuple(method_names())), ["python -m benchmarks.study"]
        for name, value in asdict(self).items():
            if value == getattr(whole, name) or (name == "methods" and set(value) == set(whole.methods)):
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {text}")
        return " ".join(words)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def read(folder: Path) -> Options:
        """The options of a study folder.

        Raises:
            BadInputError: not the folder of a study.
        """
        try:
            raw = json.loads((folder / CARD).read_text())
            return Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
        except (OSError, ValueError, TypeError):
            raise BadInputError(f"{folder} is not the folder of a study: it has no readable {CARD}") from None


@dataclass(frozen=True)
class Phase:
    """One sweep of the study."""

    name: str
    question: str
    methods: tuple[str, ...]
    """Which methods take part, of those that the study is asked for; empty: all of them."""
    needs: str | None
    """The search whose choice it uses."""
    search: str | None
    """The search that its trials belong to; None: its models are measured."""
    values: dict[str, Any]
    """Configuration fields that differ from those of tune_configs/avdigits.yaml."""

    def methods_of(self, options: Options) -> tuple[str, ...]:
        """The methods that take part in this phase of a study with these options."""
        if self.methods:
            return tuple(m for m in self.methods if m in options.methods)
        return tuple(m for m in options.methods if m not in LIPSCHITZ_ONLY)


_SEARCH = {
    "attack.names": ["fgm"],
    "attack.epsilons": [0.5],
    "attack.balls": ["joint"],
    "attack.samples": 1,
    "certify.audit_samples": 0,
}
_PGD = {"attack.names": ["pgd"]}
_LIPSCHITZ = {
    "model.encoders": {"video": "lipschitz_conv", "audio": "lipschitz_conv"},
    "model.features": 128,
    "train.optimizer": "adam",
    "train.weight_decay": 0.0,
    "data.augment.pad": 2,
    "data.augment.time_shift": 6,
}
"""The same for all methods of the Lipschitz phases. Other phases train otherwise: the report states the difference,
which `setup.py` reads from the run cards."""
_LIPSCHITZ_SEARCH = _SEARCH | _LIPSCHITZ | {"certify.certificates": ["lipschitz"]}
"""The certificate decides what step 2 maximises: the choice is made on the pipeline that is measured."""
LIPSCHITZ_EPOCHS = 1.6
"""Epochs of the Lipschitz phases, as a multiple of the other phases'."""
PHASES = (
    Phase("search", "hyperparameters, on the validation split", (), None, "search", _SEARCH),
    Phase("search_wider", "two more learning rates around or beyond the best one", (), "search", "search", _SEARCH),
    Phase(
        "final",
        "every method with the values chosen",
        (),
        "search",
        None,
        {
            "attack.names": ["fgm", "pgd", "auto"],
            "attack.epsilons": [0.5, 1.0],
            "certify.certificates": ["estimate"],
        },
    ),
    Phase(
        "lipschitz_search",
        "hyperparameters for 1-Lipschitz encoders",
        LIPSCHITZ_METHODS,
        None,
        "lipschitz_search",
        _LIPSCHITZ_SEARCH,
    ),
    Phase(
        "lipschitz_search_wider",
        "two more learning rates for 1-Lipschitz encoders",
        LIPSCHITZ_METHODS,
        "lipschitz_search",
        "lipschitz_search",
        _LIPSCHITZ_SEARCH,
    ),
    Phase(
        "lipschitz",
        "1-Lipschitz encoders: certified radii",
        LIPSCHITZ_METHODS,
        "lipschitz_search",
        None,
        _LIPSCHITZ
        | {
            "attack.names": ["pgd", "auto"],
            "attack.epsilons": [0.5, 1.0],
            "attack.balls": ["joint"],
            "certify.certificates": ["lipschitz"],
        },
    ),
    Phase(
        "smoothing",
        "randomised smoothing: certified radii (99.9 %)",
        SMOOTHING_METHODS,
        "search",
        None,
        {
            "train.noise": SIGMAS,
            "attack.names": ["pgd"],
            "attack.epsilons": [0.25, 0.5, 1.0],
            "attack.balls": ["joint"],
            "certify.certificates": ["smoothing"],
            "certify.smoothing.sigmas": SIGMAS,
            "certify.smoothing.n": 1000,
            "certify.smoothing.alpha": ALPHA,
            "certify.smoothing.samples": 100,
        },
    ),
    Phase(
        "rho",
        "how strong the regulariser should be",
        ("crmt_jt",),
        "search",
        None,
        _PGD | {"attack.epsilons": [0.5, 1.0]},
    ),
    Phase(
        "curves",
        "accuracy against the radius, and over pairs of budgets",
        CURVE_METHODS,
        "search",
        None,
        _PGD | {"attack.product": {"video": list(PAIR_BUDGETS), "audio": list(PAIR_BUDGETS)}},
    ),
)
BY_NAME = {phase.name: phase for phase in PHASES}
UNAUDITED = ("rho", "curves")


def study_methods(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The methods that are asked for, or all.

    Args:
        wanted: names; None or empty means all methods.

    Raises:
        BadInputError: no such method.
    """
    for name in wanted or ():
        method_class(name)
    return tuple(wanted or method_names())


def phases_of(options: Options) -> list[Phase]:
    """The phases of a study, in order: those that are asked for, or all, as far as a method takes part in them.

    Raises:
        BadInputError: an unknown phase, or one without the search that it needs.
    """
    asked = options.phases or tuple(BY_NAME)
    for name in asked:
        if name not in BY_NAME:
            raise BadInputError(f"no phase {name!r}. Valid: {', '.join(BY_NAME)}")
        needs = BY_NAME[name].needs
        if needs and needs not in asked:
            raise BadInputError(f"phase {name!r} needs the choice made in {needs!r}: add it to --phases")
    return [p for p in PHASES if p.name in asked and p.methods_of(options)]


def search_points(phase: Phase, method: str) -> list[Point]:
    """The points tried for one method: the same number for every method."""
    lipschitz = "lipschitz" in phase.name
    rates, two = (LIPSCHITZ_RATES, TWO_LIPSCHITZ_RATES) if lipschitz else (RATES, TWO_RATES)
    axis = (LIPSCHITZ_AXIS if lipschitz else OTHER_AXIS).get(method)
    if axis is None:
        return [{"train.method": method, "train.lr": lr} for lr in rates]
    name, values = axis
    return [{"train.method": method, "train.lr": lr, f"train.{name}": value} for lr in two for value in values]


def wider_points(phase: Phase, best: Point) -> list[Point]:
    """Two more learning rates for the best point of a search.

    They lie beyond the edge of the grid where the best one is at that edge, so that no method is judged by where its
    grid happened to end; otherwise they lie between the best one's neighbours.
    """
    grid = [point["train.lr"] for point in search_points(phase, best["train.method"])]
    lr = best["train.lr"]
    factors = (2.0, 4.0) if lr == max(grid) else (0.5, 0.25) if lr == min(grid) else (2**-0.5, 2**0.5)
    return [{**best, "train.lr": float(f"{lr * factor:.3g}")} for factor in factors]


def points_of(phase: Phase, options: Options, chosen: dict[str, Point]) -> list[Point]:
    """The points of a phase, each with the same fields; null where a method has no such field.

    Args:
        chosen: method to the point that its search chose; not used by a first search.
    """
    found: list[Point] = []
    for method in phase.methods_of(options):
        if phase.needs is None:
            found += [{**point, "train.seed": options.seeds[0]} for point in search_points(phase, method)]
        elif method in chosen and phase.search:
            found += [{**point, "train.seed": options.seeds[0]} for point in wider_points(phase, chosen[method])]
        elif method in chosen:
            variants = [{"train.rho": rho} for rho in RHOS] if phase.name == "rho" else [{}]
            found += [{**chosen[method], **v, "train.seed": seed} for v in variants for seed in options.seeds]
    fields = list(dict.fromkeys(path for point in found for path in point))
    return [{path: point.get(path) for path in fields} for point in found]


def configuration(phase: Phase, options: Options, points: list[Point]) -> RunConfig:
    """The configuration of a phase's sweep, which tries every point once and nothing else.

    Raises:
        BadInputError: a value that the configuration does not admit.
    """
    limited = {} if options.limit is None else {"data.limit": options.limit}
    values: dict[str, Any] = {
        "search": {},
        "sweep.start_with": [],
        "sweep.scheduler": "none",
        "sweep.algorithm": "points",
        "sweep.trials": len(points),
        "train.epochs": options.epochs,
        **{f"train.{name}": None for name in METHOD_FIELDS},
        "select.steps": 10,
        "select.samples": 180,
        "select.every": 10,
        "attack.epsilons": list(EPSILONS),
        "attack.balls": ["joint", "each"],
        "attack.steps": 20,
        "attack.samples": options.samples,
        "attack.queries": QUERIES,
        "certify.audit_samples": 0 if phase.name in UNAUDITED else options.audited,
    }
    if phase.name == "lipschitz":
        values["certify.audit_samples"] = options.sound_audited
    if "lipschitz" in phase.name:
        values["train.epochs"] = round(LIPSCHITZ_EPOCHS * options.epochs)
    plain = with_values(load_config(CONFIG_DIR / "avdigits.yaml"), values | phase.values | limited)
    fields = list(points[0])
    search = {path: {"choice": _distinct([point[path] for point in points])} for path in fields}
    searched = with_values(plain, {"search": search})
    return with_values(searched, {"sweep.start_with": points})


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def matches(config: dict[str, Any], point: Point) -> bool:
    """Whether a trial's configuration is that of a point; a null leaves the field to the method."""
    for path, value in point.items():
        section, _, name = path.partition(".")
        if value is not None and config[section].get(name) != value:
            return False
    return True


@dataclass(frozen=True)
class Tried:
    """One point of a search and what it reached on the validation split."""

    point: Point
    value: float | None
    seconds: float


def search_results(trials: pd.DataFrame, points: list[Point]) -> list[Tried]:
    """What each point of a search reached on the validation split.

    Only the `trials` table is read, so numbers of the test split cannot decide anything.

    Raises:
        CRMTError: a trial was not judged on the validation split.
    """
    rows = [(row, json.loads(str(row.config))) for row in trials.itertuples() if row.status == "finished"]
    found = []
    for point in points:
        mine = [row for row, config in rows if matches(config, point)]
        if mine and not str(mine[0].selected_by).startswith("val_"):
            raise CRMTError(
                f"trial {mine[0].trial_id} was judged by {mine[0].selected_by}, not on the validation split"
            )
        value = float(mine[0].selected_value) if mine else math.nan
        found.append(Tried(point, None if math.isnan(value) else value, float(mine[0].seconds) if mine else 0.0))
    return found


def chosen_points(found: Sequence[Tried]) -> dict[str, Point]:
    """Each method's best point on the validation split, without its seed; of equal ones the first."""
    best: dict[str, Tried] = {}
    for tried in found:
        method = tried.point["train.method"]
        if tried.value is not None and (method not in best or tried.value > (best[method].value or 0.0)):
            best[method] = tried
    return {
        method: {path: value for path, value in tried.point.items() if path != "train.seed" and value is not None}
        for method, tried in best.items()
    }


def points_in(config: RunConfig) -> list[Point]:
    """The points of a sweep that was started."""
    return config.start_points()


def points_of_new_methods(points: list[Point], planned: list[Point]) -> list[Point]:
    """The points of methods that joined the study after a phase had been planned.

    Args:
        points: all points of the phase.
        planned: the points that its sweeps already have.

    Returns: those of methods that no sweep has, each with only the fields that one of them uses.
    """
    known = {point["train.method"] for point in planned}
    new = [point for point in points if point["train.method"] not in known]
    fields = [path for path in (new[0] if new else {}) if any(point[path] is not None for point in new)]
    return [{path: point[path] for path in fields} for point in new]


def missing_encoders(phase: Phase) -> list[str]:
    """Encoders that a phase asks for and that are not there."""
    return [name for name in phase.values.get("model.encoders", {}).values() if name not in encoder_names()]
