"""A trainer that waits at a step until the test lets it go on or stops it, so that no test races against a training."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from gpt_pipeline_tests.hangs import PATIENCE_SECONDS, WAITING, output_of, report


class Gate:
    """Stands before the end of the training's step `step`, for commands that are started with its `variables`."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self._reached, self._open = folder / "gate_reached", folder / "gate_open"
        self._step = step

    @property
    def variables(self) -> Mapping[str, str]:
        path = os.pathsep.join(filter(None, [str(WAITING), os.environ.get("PYTHONPATH", "")]))
        return {
            "PYTHONPATH": path,
            "GATE_STEP": str(self._step),
            "GATE_REACHED": str(self._reached),
            "GATE_OPEN": str(self._open),
        }

    def wait(self, process: subprocess.Popen[str]) -> None:
        """Return when the trainer that `process` has started stands at the gate."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._reached.is_file():
            assert process.poll() is None, output_of(process)
            assert time.monotonic() < deadline, f"the training does not reach step {self._step}. {report()}"
            time.sleep(0.02)

    def open(self) -> None:
        """Let the trainer go on."""
        self._open.touch()
