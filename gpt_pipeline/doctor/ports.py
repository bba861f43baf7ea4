"""The ports of the web pages, and who has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpt_pipeline.findings import Finding, note, ok
from gpt_pipeline.storage.lock import held_for
from gpt_pipeline.storage.ports import HOST, is_free

_LISTENING = "0A"  # in /proc/net/tcp
_SHOWN_LETTERS = 100


def look_at_port(port: int, *, page: str, pages: Path) -> Iterator[Finding]:
    """Look at whether `port` of this machine is free for `page`; `pages` is the folder that open pages hold locked."""
    if is_free(port):
        yield ok("ports", f"{port} is free for {page}")
        return
    if f"http://{HOST}:{port}" in (held_for(pages) or "").split():
        yield ok("ports", f"{page} is open already, at http://{HOST}:{port}")
        return
    holder = find_holder(port) or "another program"
    yield note("ports", f"{port} is taken by {holder}", f"`gpt-pipeline ui` takes the next free one for {page}")


def find_holder(port: int) -> str | None:
    """Return the process that listens on `port`, as its number and command; None where the system does not tell.

    Linux tells it of processes of the same user.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        if sockets.intersection(_handles(process)):
            return f"process {process.name} ({_command(process)})"
    return None


def _handles(process: Path) -> Iterator[str]:
    """Yield what the process has open; nothing of one that has ended or is another user's."""
    try:
        handles = list((process / "fd").iterdir())
    except OSError:
        return
    for handle in handles:
        with suppress(OSError):  # closed meanwhile
            yield os.readlink(handle)


def _listening(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on `port`."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.is_file():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "which has ended"
    return " ".join(filter(None, words))[:_SHOWN_LETTERS]
