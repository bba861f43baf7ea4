"""The local ports that the web pages are served on."""

from __future__ import annotations

import errno
import os
import socket

from gpt_pipeline.errors import UserError

HOST = "127.0.0.1"
"""The address that the pages listen on; only this machine can reach it."""

_PORTS_TRIED = 50
_OF_ONE_PORT = (errno.EADDRINUSE, errno.EACCES)  # other refusals are of the host, and so of every port


def choose_port(wanted: int | None, *, usual: int, option: str, host: str = HOST) -> int:
    """Return a free port of `host`: the wanted one, else the first from the usual one on.

    Raises:
        UserError: there is none, or the system refuses them; says why, and names the `option` by which one is wanted.
    """
    candidates = range(usual, usual + _PORTS_TRIED) if wanted is None else (wanted,)
    other: OSError | None = None
    for port in candidates:
        refusal = find_refusal(port, host=host)
        if refusal is None:
            return port
        other = other if is_taken(refusal) else refusal
        if refusal.errno not in _OF_ONE_PORT:
            break
    found = f"port {wanted}" if wanted is not None else f"ports {usual} to {usual + _PORTS_TRIED - 1}"
    if other is not None:
        raise UserError(
            f"{option}: found {found} of {host}, which the system refuses ({other.strerror}), need an address of this "
            "machine and a port that this user may open; name another"
        )
    raise UserError(f"{option}: found {found} in use by another program, need a free port; name another")


def find_refusal(port: int, *, host: str = HOST) -> OSError | None:
    """Return why no server can listen on `port` of `host`, in the system's words; None if one can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as own:
        if os.name != "nt":  # where it would let two programs share a port
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((host, port))
        except OSError as error:
            return error
    return None


def is_taken(refusal: OSError) -> bool:
    """Whether the port is refused because a program listens on it."""
    return refusal.errno == errno.EADDRINUSE
