"""The study: all training methods on avdigits, each searched alike, three seeds, by the project's sweep.

python -m benchmarks.study                    run everything: three hours and a half on 2 cores
python -m benchmarks.study --dry-run          the plan with an estimate of the time
python -m benchmarks.study --resume DIR       go on after Ctrl-C, a crash or a reboot; failed trials stay failed
python -m benchmarks.study --resume DIR --also my_method
                                              search, train and measure one more method as the others were
python -m benchmarks.study report DIR         print answers and tables of any study folder, also of an unfinished one
python -m benchmarks.study summary            make the summary of benchmarks/results/study.md anew from its CSV files

A study folder holds one run folder a phase (search, search_wider, final, lipschitz_search, lipschitz_search_wider,
lipschitz, smoothing, rho, curves; final-2 and so on for methods that joined later). At its end the report goes to
benchmarks/results/study.md, its pictures and CSV files to benchmarks/results/study/. The report of a study with fewer
methods, seeds, phases, epochs or clips goes to report/ in its folder, unless --results is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.cost import cores, seconds_a_trial
from benchmarks.study.data import has_ended, read_study, sweeps_of
from benchmarks.study.plan import (
    Options,
    Phase,
    Point,
    Tried,
    chosen_points,
    configuration,
    missing_encoders,
    phases_of,
    points_in,
    points_of,
    points_of_new_methods,
    search_points,
    search_results,
    study_methods,
)
from benchmarks.study.report import build
from benchmarks.study.summary import read_raw_tables, summarise, with_summary
from crmt.errors import BadInputError, CRMTError
from pipelines.command import run_command
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import check_free, read_card
from pipelines.sweeps.preflight import check_settings
from pipelines.sweeps.run import run_sweep

RESULTS = Path(__file__).resolve().parents[1] / "results"


def run(options: Options, folder: Path, results: Path) -> int:
    """Run the phases of a study that are not finished, then write its report; returns the exit code."""
    tried: dict[str, list[Tried]] = {}
    phases = phases_of(options)
    for place, phase in enumerate(phases, 1):
        print(f"\n=== {phase.name} ({place} of {len(phases)}): {phase.question}", flush=True)
        code = run_phase(phase, options, folder, chosen_points(tried.get(phase.needs or "", [])))
        if code:
            print(f"the study goes on with: python -m benchmarks.study --resume {folder}", file=sys.stderr)
            return code
        if phase.search:
            for where in sweeps_of(folder, phase):
                found = search_results(ResultsStore(where / "results").read("trials"), points_in(read_card(where)[1]))
                tried[phase.search] = tried.get(phase.search, []) + found
    print("\n" + build(read_study(folder), results))
    print(f"written: {results / 'study.md'}")
    return 0


def run_phase(phase: Phase, options: Options, folder: Path, chosen: dict[str, Point]) -> int:
    """Go on with the sweeps of a phase that began, then run it for methods that joined later; returns the exit code."""
    sweeps, planned = sweeps_of(folder, phase), []
    for where in sweeps:
        config = read_card(where)[1]
        planned += points_in(config)
        over = has_ended(ResultsStore(where / "results"), points_in(config))
        if not over and (code := run_sweep(config, None, where, False, None)):
            return code
    points = points_of_new_methods(points_of(phase, options, chosen), planned)
    if not points and not sweeps:
        raise CRMTError(f"phase {phase.name!r} has nothing to run: no trial of {phase.needs!r} finished")
    if not points:
        print("done")
        return 0
    where = folder / (f"{phase.name}-{len(sweeps) + 1}" if sweeps else phase.name)
    if where.exists():  # killed before its card was written: nothing in it yet
        shutil.rmtree(where)
    return run_sweep(configuration(phase, options, points), where, None, False, None)


def check(options: Options) -> None:
    """Refuse what would fail hours later.

    Raises:
        BadInputError: an encoder that is not there, or a setting that no trial can run with.
    """
    for phase in phases_of(options):
        if missing := missing_encoders(phase):
            raise BadInputError(f"phase {phase.name!r} needs the encoder {missing[0]!r}: leave it out with --phases")
        chosen = {m: search_points(phase, m)[0] for m in phase.methods_of(options)}
        check_settings(configuration(phase, options, points_of(phase, options, chosen)))


def plan_text(options: Options) -> str:
    """One line a phase: its trials, a rough time, and the question that it answers."""
    lines, total = [], 0.0
    for phase in phases_of(options):
        chosen = {m: search_points(phase, m)[0] for m in phase.methods_of(options)}
        points = points_of(phase, options, chosen)
        each = {method: seconds_a_trial(phase, method, options) for method in chosen}
        seconds = sum(each[point["train.method"]] for point in points) / cores()
        total += seconds
        lines.append(f"{phase.name:<23}{len(points):>4} trials {seconds / 60:>5.0f} min  {phase.question}")
    lines.append(f"{'in all':<23}{'':>11} {total / 60:>5.0f} min  on {cores()} cores, one trial on each")
    return "\n".join(lines)


def remake_summary(results: Path) -> None:
    """Write the summary of a published report anew, from the CSV files beside it, and print it.

    Args:
        results: the folder with study.md and study/*.csv.

    Raises:
        BadInputError: no such report there, or one without the tables that the summary needs.
    """
    page, tables = results / "study.md", read_raw_tables(results / "study")
    if not page.exists():
        raise BadInputError(f"{page} is not there: make it with python -m benchmarks.study report DIR --results DIR")
    page.write_text(with_summary(page.read_text(), tables))
    print(summarise(tables))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas, not {text!r}") from None
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("each seed once")
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="study.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("run", "report", "summary"), default="run")
    parser.add_argument("study", nargs="?", type=Path, metavar="DIR", help="report: the study's folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the study's folder; default runs/study-<time>")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a study; it keeps its own options")
    parser.add_argument("--also", type=_words, metavar="METHODS", help="with --resume: methods that join the study")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, and stop")
    parser.add_argument("--methods", type=_words, help="with commas; default: all")
    parser.add_argument("--phases", type=_words, help="with commas; default: all")
    parser.add_argument("--seeds", type=_numbers, help="with commas; default 0,1,2; the search has the first")
    parser.add_argument("--epochs", type=_positive, help="default 20")
    parser.add_argument("--samples", type=_positive, help="test clips that are attacked; default 64")
    parser.add_argument("--audited", type=_positive, help="test clips whose estimated radius is audited; default 20")
    parser.add_argument("--sound-audited", type=_positive, help="the same for Lipschitz radii; default 40, all: 597")
    parser.add_argument("--limit", type=_positive, help="use this many clips of each split; default: all")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="where the report goes (see above); `report` writes only with it; `summary`: the folder of study.md",
    )
    return parser


SHRINKING = ("methods", "phases", "seeds", "epochs", "samples", "audited", "sound_audited", "limit")


def options_of(given: argparse.Namespace) -> Options:
    """The study that the arguments ask for.

    Raises:
        BadInputError: an unknown method or phase.
    """
    values = {k: v for k in SHRINKING if (v := getattr(given, k)) is not None}
    return Options(**(values | {"methods": study_methods(given.methods)}))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    given = arguments().parse_args(argv)

    def body() -> int:
        if given.action == "report":
            if given.study is None:
                raise BadInputError("report needs the study's folder: python -m benchmarks.study report DIR")
            print(build(read_study(given.study), given.results))
            return 0
        if given.action == "summary":
            remake_summary(given.results or RESULTS)
            return 0
        if given.study is not None:
            raise BadInputError(f"give the folder of a new study as --out {given.study}, of an old one as --resume")
        if given.resume:
            if given.out or any(getattr(given, name) is not None for name in SHRINKING):
                raise BadInputError("--resume takes the study's own options: leave out the others, but for --also")
            folder, options = given.resume.resolve(), Options.read(given.resume)
            joined = tuple(dict.fromkeys([*options.methods, *study_methods(given.also or options.methods)]))
            options = dataclasses.replace(options, methods=joined)
        elif given.also:
            raise BadInputError("--also goes with --resume; a new study has the methods of --methods")
        else:
            folder = (given.out or Path("runs") / f"study-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
            options = options_of(given)
            check_free(folder)
        check(options)
        print(plan_text(options), flush=True)
        if given.dry_run:
            return 0
        if given.also or not given.resume:
            options.write(folder)
        return run(options, folder, given.results or (folder / "report" if options.shrunken else RESULTS))

    return run_command(body, "The study goes on with: python -m benchmarks.study --resume DIR")


if __name__ == "__main__":
    sys.exit(main())
