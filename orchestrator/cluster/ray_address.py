"""Before Ray is asked for anything: whether a cluster that is named answers, and what one of our own is started with."""

import os
import secrets
import socket
import sys

from configs.errors import UserError

PROBE_S = 5.0
_NOT_ADDRESSES = ("auto", "local")


def check_ray_address(configured: str) -> None:
    """Raises UserError that names `cluster.address` or RAY_ADDRESS when nothing listens there, within seconds.

    `configured` is `cluster.address`, empty when RAY_ADDRESS counts. Names such as `auto` are left to Ray.
    """
    address = configured or os.environ.get("RAY_ADDRESS", "")
    setting = "cluster.address" if configured else "RAY_ADDRESS"
    if not address or address in _NOT_ADDRESSES:
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if "://" in host or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{setting}: expected host:port, ray://host:port, auto or local, found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError as error:
        raise UserError(
            f"{setting}: expected a Ray cluster at {address}, which does not answer ({error}); "
            "leave it empty to start one here"
        ) from error


def prepare_own_cluster() -> None:
    """Variables of a cluster that a run starts for itself; those that are set already stay.

    Ray reads those of authentication when it is imported, so the command line calls this before.
    """
    # Ray's workers run at niceness 15 unless told otherwise; here they are the ones that matter.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Metrics have no token, and nothing collects them of a cluster that ends with its run.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Actors have environments, so processes, of their own: those that Ray starts ahead are never used.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):
        os.environ.setdefault(name, "-1")
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # Ray's servers listen on every address of the machine: without the token nobody is heard. It is made anew each time
        # and stays in the environment; Ray's own would lie in a file that every user here may read.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def names_cluster(configured: str) -> bool:
    """Whether a run joins a cluster instead of starting one."""
    address = configured or os.environ.get("RAY_ADDRESS", "")
    return bool(address) and address != "local"
