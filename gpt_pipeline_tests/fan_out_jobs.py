"""For tests of the fan-out: every file a step of its own, however small, and workers that die when they are told.

`python -m gpt_pipeline_tests.fan_out_jobs JOB [RUN]` executes a job of the project in the working directory with a
process for each step, from the failure of RUN if it is given, and prints the run's id.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from gpt_pipeline.data import stage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.orchestration import rebuild
from gpt_pipeline.orchestration.history import open_instance
from gpt_pipeline.project import Project

KILL_ONCE = "GPT_PIPELINE_TESTS_KILL_ONCE"
"""Names a file; the first worker that is to encode the second source file writes it and kills itself."""


def job(name: str) -> dg.JobDefinition:
    """Return the job `name` of the project in the working directory."""
    stage.UNIT_BYTES = 1
    ShardsStage.make = _make_or_die  # type: ignore[method-assign]
    return rebuild.job(name, str(Project.here().experiments))


_make = ShardsStage.make


def _make_or_die(self: ShardsStage, names: Iterable[str], *, force: bool = False, say: stage.Say) -> dict[str, Any]:
    marker = os.environ.get(KILL_ONCE)
    if marker and "synth_002.parquet" in names and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _make(self, names, force=force, say=say)


def execute(name: str, after: str | None) -> str:
    """Execute the job `name` in worker processes and return the run's id."""
    project = Project.here()
    project.enter()
    job = dg.build_reconstructable_job("gpt_pipeline_tests.fan_out_jobs", "job", reconstructable_args=(name,))
    run_config: dict[str, Any] = {"loggers": {"plain": {"config": {}}}}
    with open_instance(project) as instance:
        options = dg.ReexecutionOptions.from_failure(after, instance) if after else None
        with dg.execute_job(job, instance, run_config=run_config, reexecution_options=options) as result:
            return result.run_id


if __name__ == "__main__":
    print(execute(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
