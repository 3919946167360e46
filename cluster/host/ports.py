"""TCP ports of this machine."""

from __future__ import annotations

import socket

from wmpo_ray.core.errors import UserError

LOCALHOST = "127.0.0.1"


def free_port(host: str = LOCALHOST) -> int:
    """A free port; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(port: int, knob: str = "--port") -> None:
    """Raises UserError for a port that is taken, by whatever is listening on any interface; `knob` sets another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError as error:
            raise UserError(
                f"{LOCALHOST}:{port} is taken ({error.strerror}): choose another one with {knob}"
            ) from error
