"""Ray for a command: joined where a cluster runs, else started here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from crmt.errors import BadInputError, CRMTError
from pipelines.infra.code import runtime_env

_LONGEST_SOCKET = 107
"""Bytes of a socket's path, as Linux has it."""
_JOIN_SECONDS = "5"
"""How long Ray tries to be let in where something listens, unless the variable says otherwise; 20 by default."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""Where Ray puts its sockets below the folder for temporary files."""


def start_ray(address: str | None = None, *, dashboard: bool = True, code: Sequence[str] = ()) -> str | None:
    """Join the cluster at `address` (or $RAY_ADDRESS, or one on this machine), else start Ray here.

    Args:
        address: the address of a cluster.
        dashboard: whether a Ray that is started here has one.
        code: `config.code`: folders whose modules every worker of this job can import.

    Returns the dashboard's address, or None where there is none.

    Raises:
        BadInputError: more code than can be sent, or a folder for temporary files with too long a name.
        CRMTError: no cluster answers at `address`, or Ray does not start in time.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    url, sent = None, runtime_env(code)
    if not ray.is_initialized():
        if not address and not os.environ.get("RAY_ADDRESS"):
            check_sockets()
        joined = address or os.environ.get("RAY_ADDRESS", "")
        _check_answers(joined)
        if joined:  # something listens there: what refuses us, a token for one, does so at every one of Ray's attempts
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", _JOIN_SECONDS)
        try:
            context = ray.init(
                address=address,
                include_dashboard=dashboard if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=sent,
            )
        except ConnectionError:
            raise CRMTError(_not_let_in(address or os.environ.get("RAY_ADDRESS"))) from None
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


def _not_let_in(address: str | None) -> str:
    """What to do where something listens, and Ray gave up on it."""
    listens = ":" in (address or "")
    if not listens:
        return f"no Ray cluster answers at {address}: start one, or leave the address out"
    proxies = [name for name in ("http_proxy", "https_proxy", "grpc_proxy") if os.environ.get(name)]
    return (
        f"{address} answers, but not as a Ray cluster that lets us in: give the port of its GCS (6379 by default), the "
        "same version of Ray, and where it asks for a token (RAY_AUTH_MODE=token) the right one in RAY_AUTH_TOKEN"
        + (f"; or add its host to no_proxy, since {' and '.join(proxies)} is set" if proxies else "")
    )


def check_sockets() -> None:
    """Refuse a folder for temporary files in which Ray cannot make its sockets.

    Raises:
        BadInputError: names the variable to set.
    """
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), None)
    if name is None:
        return
    length = len(os.fsencode(os.environ[name].rstrip("/") + _SOCKET))
    if length > _LONGEST_SOCKET:
        raise BadInputError(
            f"{name}={os.environ[name]} is {length - _LONGEST_SOCKET} bytes too long for Ray's sockets, which have "
            f"{_LONGEST_SOCKET} bytes with the path: set RAY_TMPDIR to a shorter folder, such as /tmp"
        )


def _check_answers(address: str) -> None:
    """Refuse the address of a cluster where nothing listens: Ray itself tries for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError:
            raise CRMTError(f"no Ray cluster answers at {address}: start one, or leave the address out") from None
