"""Train without Dagster: `python -m gpt_pipeline.training JOB.json`, or the same under torchrun.

Exit codes: 0 finished; 2 something for the user to mend, said in one line; 130 or 143 stopped by a signal, saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_pipeline.errors import UserError
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import console_observer
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import stop_when_parent_dies

_EXIT_MISUSE = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpt_pipeline.training", description="Train what a job file says.")
    parser.add_argument("job", type=Path, help="a job file, such as <experiment folder>/job.json")
    parser.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="save and leave when the process that started this one ends (Linux)",
    )
    options = parser.parse_args(arguments)
    if options.stop_with_parent:
        stop_when_parent_dies()
    try:
        with console_observer(sys.stdout) as observer:
            return run_job(TrainingJob.read(options.job), observer).exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_MISUSE
    except KeyboardInterrupt:  # before the training's handlers were in place, or after them: nothing is unsaved
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
