"""How many files this process may have open at a time, where the system counts them."""

from __future__ import annotations

import os

from gpt_pipeline.errors import UserError

_OTHERS = 256  # that the process may want to open beside: libraries, sockets, checkpoints
_OPEN_NOW = "/dev/fd"  # a name for each: Linux, macOS
_FEW = 64  # are open where the system does not tell


def allow_open_files(count: int) -> None:
    """Let this process open `count` more files: raises its own limit, which the system sets low (macOS: 256).

    Windows has no such limit for mapped files.

    Raises:
        UserError: the limit that only an administrator may raise is lower.
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
    except (ValueError, OSError):  # macOS refuses what is above a limit of its kernel
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
