"""How many files this process may have open at a time, where the system counts them."""

from __future__ import annotations

import os

from gpt_pipeline.errors import UserError

_OTHERS = 256  # that the process may want to open beside: libraries, sockets, checkpoints
_OPEN_NOW = "/dev/fd"  # a name for each: Linux, macOS


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
    needed = len(os.listdir(_OPEN_NOW)) + count + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"this process may have {hard} files open, need {needed} for {count} files of tokens; "
            f"raise the hard limit (ulimit -Hn, LimitNOFILE of systemd, nofile in /etc/security/limits.conf)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
