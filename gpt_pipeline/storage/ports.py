"""The local ports that the web pages are served on."""

from __future__ import annotations

import os
import socket

HOST = "127.0.0.1"
"""The address that the pages listen on; only this machine can reach it."""


def is_free(port: int) -> bool:
    """Whether no program listens on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        if os.name != "nt":  # where it would let two programs share a port
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((HOST, port))
        except OSError:
            return False
    return True
