"""How many files this process may open at the same time, where the system limits them."""

from __future__ import annotations

import os

from gpt_pipeline.errors import UserError

_OTHERS = 256  # other files that the process may open: libraries, sockets, checkpoints
_OPEN_NOW = "/dev/fd"  # lists them on Linux and macOS
_FEW = 64  # assumed open where the system does not report them


def allow_open_files(count: int) -> None:
    """Let this process open `count` more files by raising its own limit, which is low by default (macOS: 256).

    Windows has no such limit for mapped files.

    Raises:
        UserError: the limit that only an administrator can raise is too low.
    """
    try:
        import resource
    except ImportError:
        return
    needed = _open_now() + count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed + _OTHERS:
        return
    wanted = needed + _OTHERS if hard == resource.RLIM_INFINITY else min(needed + _OTHERS, hard)
    try:
        if wanted < needed:
            raise ValueError
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # macOS refuses a value above its kernel's limit
        raise UserError(
            f"this process may have {hard if wanted < needed else soft} files open, need {needed} for {count} files of "
            "tokens; raise the limit (Linux: ulimit -Hn, LimitNOFILE of systemd, nofile in /etc/security/limits.conf; "
            "macOS: launchctl limit maxfiles)"
        ) from None


def _open_now() -> int:
    try:
        return len(os.listdir(_OPEN_NOW))
    except OSError:  # a container without it
        return _FEW
