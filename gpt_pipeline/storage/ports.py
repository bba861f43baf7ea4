"""The local ports that the web pages are served on."""

from __future__ import annotations

import os
import socket

from gpt_pipeline.errors import UserError

HOST = "127.0.0.1"
"""The address that the pages listen on; only this machine can reach it."""

_PORTS_TRIED = 50


def choose_port(wanted: int | None, *, usual: int, option: str, host: str = HOST) -> int:
    """Return a free port of `host`: the wanted one, else the first from the usual one on.

    Raises:
        UserError: there is none; names the `option` by which one is wanted.
    """
    candidates = range(usual, usual + _PORTS_TRIED) if wanted is None else (wanted,)
    for port in candidates:
        if is_free(port, host=host):
            return port
    found = f"port {wanted}" if wanted is not None else f"ports {usual} to {usual + _PORTS_TRIED - 1}"
    raise UserError(f"{option}: found {found} in use by another program, need a free port; name another")


def is_free(port: int, *, host: str = HOST) -> bool:
    """Whether no program listens on `port` of `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as own:
        if os.name != "nt":  # where it would let two programs share a port
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((host, port))
        except OSError:
            return False
    return True
