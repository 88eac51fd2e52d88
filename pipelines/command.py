"""What every command shares: arguments that name a configuration, and one-line errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmt.doors import is_path
from crmt.errors import BadInputError, CRMTError
from pipelines.config.reading import CONFIG_DIR, read_file, read_override
from pipelines.infra.code import names_code, put_on_path
from pipelines.infra.entry import INTERRUPTED, typed
from pipelines.infra.files import check_place

if TYPE_CHECKING:  # imports torch, which neither --help nor a file that is not there should wait for
    from pipelines.config.run_config import RunConfig
    from pipelines.infra.storage import Folder


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser without arguments, whose usage and example are written as the user types the command.

    Args:
        name: of the command.
        doc: its module's, with an example that begins with `python pipelines/NAME.py`.
    """
    described = (doc or "").replace(f"python pipelines/{name}.py", typed(name))
    return argparse.ArgumentParser(
        prog=typed(name), description=described, formatter_class=argparse.RawTextHelpFormatter
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--dataset, --data-root, --config and --set."""
    from pipelines import sources

    dataset = parser.add_argument(
        "--dataset", help=f"one of {', '.join(sources.names())}, or package.module:Name of your own"
    )
    offer(dataset, sources.names)
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the clips (for manifest: the CSV) lie")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: tune_configs/<dataset>.yaml")
    add_set_argument(parser, "override a field, e.g. train.seed=1")
    add_code_argument(parser)


def add_set_argument(parser: argparse.ArgumentParser, meaning: str) -> None:
    """--set."""
    offer(parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=meaning), _settings)


def offer(argument: argparse.Action, names: Callable[[], Sequence[str]]) -> None:
    """Let the shell complete an argument's value, where argcomplete is installed; else it offers files."""
    argument.completer = lambda **_: names()  # type: ignore[attr-defined]


def field_names() -> list[str]:
    """Every field of the configuration, by its dotted path."""
    from pipelines.config.run_config import field_paths

    return list(field_paths())


def _settings() -> list[str]:
    return [f"{path}=" for path in field_names()]


def add_code_argument(parser: argparse.ArgumentParser) -> None:
    """--with."""
    parser.add_argument(
        "--with",
        dest="code",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with modules of your own that the configuration names (package.module:Name), sent to every "
        "worker; default: the configuration file's",
    )


def add_storage_argument(parser: argparse.ArgumentParser) -> None:
    """--storage."""
    parser.add_argument(
        "--storage",
        metavar="URI",
        help="where the run gets a folder of its own on a server, as s3://bucket/runs (gs://, abfs://, hdfs://); "
        "every node needs its credentials in the environment",
    )


def check_place_of(options: argparse.Namespace) -> None:
    """Refuse `--out` and `--storage` that cannot be, as far as can be told without a request.

    Raises:
        BadInputError: both, or `--out` is no folder for a run.
    """
    out, storage = getattr(options, "out", None), getattr(options, "storage", None)
    check_place(out)
    if out is not None and storage is not None:
        raise BadInputError("give --out or --storage: a run lies in a folder of a disk or on a server")


def storage_of(options: argparse.Namespace) -> Folder | None:
    """The folder of `--storage`, which answers; None where it is not given.

    Raises:
        BadInputError: nobody answers, or it is no URI.
    """
    from pipelines.runs.place import storage_at

    return None if options.storage is None else storage_at(options.storage)


def check_early(options: argparse.Namespace) -> None:
    """Refuse what can be told without torch: an unknown data set, a file that is not there or is not YAML, and --set.

    Raises:
        BadInputError: see above.
    """
    from pipelines import sources

    if getattr(options, "resume", None) is not None:
        return
    check_place_of(options)
    if options.dataset is None and options.config is None:
        raise BadInputError(f"give --dataset: one of {', '.join(sources.names())}")
    if options.dataset is not None:
        sources.check_name(options.dataset)
        if options.config is None and is_path(options.dataset):
            raise BadInputError(f"--dataset {options.dataset} needs --config FILE: tune_configs/ has none for it")
    for folder in options.code:
        if not folder.is_dir():
            raise BadInputError(f"there is no folder {folder} to import code from: name it with --with DIR")
    read_file(_file_of(options))
    for item in options.set:
        read_override(item)


def _file_of(options: argparse.Namespace) -> Path:
    """The configuration file that is meant; tune_configs/NAME.yaml is ours where this folder has none."""
    if options.config is None:
        return CONFIG_DIR / f"{options.dataset}.yaml"
    ours = CONFIG_DIR / options.config.name
    missing = options.config.parent == Path(CONFIG_DIR.name) and not options.config.exists()
    return ours if missing and ours.exists() else Path(options.config)


def config_from(options: argparse.Namespace, values: Mapping[str, Any] | None = None, trains: bool = True) -> RunConfig:
    """The configuration that `add_config_arguments` names. What can be told without torch and pandas is told first.

    Args:
        options: of the command.
        values: dotted path to what another argument says; None: nothing.
        trains: whether models are trained, so that settings must fit each other.

    Raises:
        BadInputError: no data set given, an unknown one, or a configuration that is not valid.
    """
    from pipelines import sources
    from pipelines.config.consistency import check_consistency
    from pipelines.config.run_config import load_config, with_values

    check_early(options)
    file = _file_of(options)
    config = load_config(file, options.set)
    changes = {name: value for name, value in (values or {}).items() if value is not None}
    if options.dataset is not None:
        changes["data.dataset"] = options.dataset
    if options.data_root is not None:
        changes["data.root"] = str(options.data_root.resolve())
    if changes:
        config = with_values(config, changes)
    if trains:
        check_consistency(config)
    if options.dataset is not None:
        sources.look(config.data)
    if not config.code and names_code(config.model_dump(mode="json")):
        config = with_values(config, {"code": [str(file.resolve().parent)]})
    return importing(config, options.code)


def importing(config: RunConfig, folders: Sequence[Path] = ()) -> RunConfig:
    """The configuration with the folders of `--with`, if any were given; its code can be imported from now on.

    Raises:
        BadInputError: no such folder.
    """
    from pipelines.config.run_config import with_values

    if folders:
        config = with_values(config, {"code": [str(folder.resolve()) for folder in folders]})
    put_on_path(config.code)
    return config


def config_from_card(card: dict[str, Any], overrides: list[str], root: Path | None) -> RunConfig:
    """The configuration in a saved model's card, with `--set` and `--data-root` applied.

    Raises:
        BadInputError: a card without one, or an override that is not valid.
    """
    from pipelines.config.run_config import parse, parse_overrides, with_values

    config = parse(card.get("config"), "the model's card")
    here: dict[str, Any] = {
        "sweep.gpus_per_worker": None,
        "sweep.workers": 1,
    }  # what this machine has, not what the training had
    values = here | parse_overrides(overrides)
    if root is not None:
        values["data.root"] = str(root.resolve())
    return with_values(config, values)


def run_command(body: Callable[[], int], after_interrupt: str = "") -> int:
    """Run a command's body: 2 and one line for bad input, 1 and one line for a failure, 130 after Ctrl-C."""
    try:
        return body()
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CRMTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped. {after_interrupt}".strip(), file=sys.stderr)
        return INTERRUPTED
