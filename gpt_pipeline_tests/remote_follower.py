"""Follow a training on an engine: `python -m gpt_pipeline_tests.remote_follower JOB.json OUT SILENT_SECONDS`.

What the step would tell Dagster is written to the file OUT, a line of JSON each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dagster as dg

from gpt_pipeline.experiment.launching import launcher_of
from gpt_pipeline.orchestration.remote_training import Patience, train_remotely
from gpt_pipeline.training.job import TrainingJob


def main(job_file: Path, out: Path, silent: float) -> int:
    """Return 0 if the training ended in order, 1 if it failed, 130 if it was stopped."""
    job = TrainingJob.read(job_file)
    launcher = launcher_of(job.hardware)
    assert launcher is not None
    with out.open("a", buffering=1) as lines:

        def write(kind: str, value: object) -> None:
            lines.write(json.dumps({kind: value}) + "\n")

        try:
            train_remotely(
                job,
                launcher,
                run_id="the run",
                max_steps=job.training.max_steps or 0,
                receive=lambda message: write("message", dict(message)),
                say=lambda text: write("said", text),
                tell_job=lambda text: write("job", text),
                patience=Patience(look=0.1, ask=0.5, silent=silent),
            )
        except dg.DagsterExecutionInterruptedError:
            write("end", "stopped")
            return 130
        except dg.Failure as failure:
            write("end", failure.description)
            return 1
        write("end", "in order")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
