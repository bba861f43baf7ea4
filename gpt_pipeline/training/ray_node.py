"""The training's processes on one node of a Ray cluster: a Ray actor makes one `NodeTrainers` there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt_pipeline.launchers.submission import tail
from gpt_pipeline.training.launch import VARIABLES

_SUPERVISOR = "gpt_pipeline.training.supervise"


class NodeTrainers:
    """Starts the node's trainers, says whether they still run, and stops them in a way that lets them save."""

    def __init__(self, log: Path) -> None:
        """Their output goes to the end of `log`."""
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Return the node's address in the cluster."""
        from ray.util import get_node_ip_address

        return str(get_node_ip_address())

    def free_port(self) -> int:
        """Return a TCP port of this node that nothing listens on."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
            return port

    def start(self, command: Sequence[str]) -> None:
        """Start them by `command`, whose first word is a Python interpreter.

        In a process group of their own: Ray kills the group of an actor's process together with the actor, and a
        trainer has to save first. Their supervisor asks it to, and by the trainer's `--stop-with-parent` the kernel.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [command[0], "-m", _SUPERVISOR, str(os.getpid()), *command],
                env={**inherited, "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Return how they ended, as shells say it (128 and the signal's number); None while they run."""
        assert self._child is not None
        code = self._child.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self) -> None:
        """Ask them to save and leave."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End them at once."""
        self._signal(signal.SIGKILL)

    def last_lines(self, count: int) -> str:
        """Return the end of their output."""
        return tail(self._log, count)

    def note(self, text: str) -> None:
        """Add a paragraph to their output."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\n{text}\n")

    def _signal(self, number: int) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(self._child.pid, number)
