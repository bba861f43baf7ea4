"""Evaluates an experiment's checkpoints as they appear: `python -m gpt_pipeline.orchestration.follower FILE`.

Ends when its standard input ends and every checkpoint has been evaluated, or after the current evaluation on SIGTERM.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.orchestration.driver import Session
from gpt_pipeline.orchestration.pending import pending_evaluations
from gpt_pipeline.orchestration.project import Project
from gpt_pipeline.training.signals import StopFlag, stop_on_signals

_LOOK_SECONDS = 1.0
_ATTEMPTS = 2


def main() -> int:
    """Follow the experiment file named on the command line."""
    experiment = load_experiment(Path(sys.argv[1]))
    last_call = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=[last_call], daemon=True).start()
    stop = StopFlag()
    with Session.open(Project.here(), experiment) as session, stop_on_signals(stop):
        follow(session, last_call=last_call, stop=stop)
    return 0


def follow(session: Session, *, last_call: threading.Event, stop: StopFlag) -> None:
    """Evaluate checkpoints one after the other until `last_call` is set and none is left, or a stop is requested."""
    attempts: dict[str, int] = {}
    while not stop.requested:
        # Asked before looking: a checkpoint written between the two is then seen in one more round.
        was_last = last_call.is_set()
        if not _evaluate_oldest(session, attempts):
            if was_last:
                return
            time.sleep(_LOOK_SECONDS)


def _evaluate_oldest(session: Session, attempts: dict[str, int]) -> bool:
    """Evaluate the oldest checkpoint that wants it and has not failed too often; False if there is none."""
    experiment = session.experiment
    if experiment.folder.root.is_dir():
        announce_evaluator(experiment.folder.root)
    for pending in pending_evaluations(experiment):
        if attempts.get(pending.fingerprint, 0) < _ATTEMPTS:
            attempts[pending.fingerprint] = attempts.get(pending.fingerprint, 0) + 1
            try:
                session.evaluate(pending)
            except UserError as error:
                print(f"evaluation of {pending.checkpoint.path.name}: {error}", file=sys.stderr)
            return True
    return False


def _wait_for_end_of_input(last_call: threading.Event) -> None:
    sys.stdin.buffer.read()
    last_call.set()


if __name__ == "__main__":
    sys.exit(main())
