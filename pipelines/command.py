"""What every command shares: arguments that name a configuration, one-line errors, and a local or joined Ray."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crmt.errors import BadInputError, CRMTError
from pipelines.config.run_config import CONFIG_DIR, RunConfig, load_config, parse, parse_overrides, with_values
from pipelines.infra.code import names_code, put_on_path, runtime_env

INTERRUPTED = 130


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--dataset, --data-root, --config and --set."""
    from pipelines import sources

    parser.add_argument("--dataset", help=f"one of {', '.join(sources.names())}")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the clips (for manifest: the CSV) lie")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: tune_configs/<dataset>.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, e.g. train.epochs=5"
    )
    add_code_argument(parser)


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


def config_from(options: argparse.Namespace) -> RunConfig:
    """The configuration that `add_config_arguments` names.

    Raises:
        BadInputError: no data set given, an unknown one, or a configuration that is not valid.
    """
    from pipelines import sources

    if options.dataset is None and options.config is None:
        raise BadInputError(f"give --dataset: one of {', '.join(sources.names())}")
    if options.dataset is not None:
        sources.check_name(options.dataset)
    file = options.config or CONFIG_DIR / f"{options.dataset}.yaml"
    config = load_config(file, options.set)
    values: dict[str, object] = {}
    if options.dataset is not None:
        values["data.dataset"] = options.dataset
    if options.data_root is not None:
        values["data.root"] = str(options.data_root.resolve())
    if values:
        config = with_values(config, values)
    if not config.code and names_code(config.model_dump(mode="json")):
        config = with_values(config, {"code": [str(file.resolve().parent)]})
    return importing(config, options.code)


def importing(config: RunConfig, folders: Sequence[Path] = ()) -> RunConfig:
    """The configuration with the folders of `--with`, if any were given; its code can be imported from now on.

    Raises:
        BadInputError: no such folder.
    """
    if folders:
        config = with_values(config, {"code": [str(folder.resolve()) for folder in folders]})
    put_on_path(config.code)
    return config


def config_from_card(card: dict[str, Any], overrides: list[str], root: Path | None) -> RunConfig:
    """The configuration in a saved model's card, with `--set` and `--data-root` applied.

    Raises:
        BadInputError: a card without one, or an override that is not valid.
    """
    config = parse(card.get("config"), "the model's card")
    here: dict[str, Any] = {"sweep.gpus_per_worker": None}  # what this machine has, not the one that trained
    values = here | parse_overrides(overrides)
    if root is not None:
        values["data.root"] = str(root.resolve())
    return with_values(config, values)


def start_ray(address: str | None = None, *, dashboard: bool = True, code: Sequence[str] = ()) -> str | None:
    """Join the cluster at `address` (or $RAY_ADDRESS, or one on this machine), else start Ray here.

    Args:
        code: `config.code`: folders whose modules every worker of this job can import.

    Returns the dashboard's address, or None where there is none.

    Raises:
        BadInputError: more code than can be sent.
        CRMTError: no cluster answers at `address`, or Ray does not start in time.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    url, sent = None, runtime_env(code)
    if not ray.is_initialized():
        _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
        try:
            context = ray.init(
                address=address,
                include_dashboard=dashboard if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=sent,
            )
        except ConnectionError:
            where = address or os.environ.get("RAY_ADDRESS")
            raise CRMTError(f"no Ray cluster answers at {where}: start one, or leave the address out") from None
        except Exception as error:  # Ray's own, of no class
            if "timed out during startup" not in str(error):
                raise
            raise CRMTError(
                "Ray did not start within 30 s: this machine is too busy. Try again when it is not"
            ) from None
        url = getattr(context, "dashboard_url", None)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return url and f"http://{url.removeprefix('http://')}"


def _check_answers(address: str) -> None:
    """Refuse the address of a cluster where nothing listens: Ray itself tries for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError:
            raise CRMTError(f"no Ray cluster answers at {address}: start one, or leave the address out") from None


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
