"""Whether the Ray cluster that is named answers at all: Ray itself asks for minutes, without a word."""

import os
import socket

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
