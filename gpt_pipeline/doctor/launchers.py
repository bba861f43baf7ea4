"""The engines that experiments name in `hardware.launcher`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.launching import launcher_of
from gpt_pipeline.findings import Finding, ok, problem_of
from gpt_pipeline.training.config import HardwareConfig


def check_launchers(blocks: Iterable[HardwareConfig]) -> Iterator[Finding]:
    """Check that each engine takes jobs, as the blocks configure it; nothing where all trainings stay here."""
    for hardware in dict.fromkeys(blocks):
        launcher = launcher_of(hardware)
        if launcher is None:
            continue
        try:
            yield ok(launcher.name, launcher.check())
        except UserError as error:
            yield problem_of(error, launcher.name)
