"""Ray for a command: joined where a cluster runs, else started here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from crmt.errors import CRMTError
from pipelines.infra.code import runtime_env


def start_ray(address: str | None = None, *, dashboard: bool = True, code: Sequence[str] = ()) -> str | None:
    """Join the cluster at `address` (or $RAY_ADDRESS, or one on this machine), else start Ray here.

    Args:
        address: the address of a cluster.
        dashboard: whether a Ray that is started here has one.
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
