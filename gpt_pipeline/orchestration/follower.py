"""Evaluate an experiment's checkpoints as they appear: `python -m gpt_pipeline.orchestration.follower FILE`.

It ends when every checkpoint is evaluated, once its standard input has given the last call or ended; or, at any other
byte there, after the current evaluation. It does not listen to signals: Dagster installs its own handlers.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.errors import StoppedError, UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.orchestration.driver import LAST_CALL, Session
from gpt_pipeline.progress.evaluations import pending_evaluations
from gpt_pipeline.project import Project
from gpt_pipeline.row import instead_of_row, show_each_warning_once
from gpt_pipeline.storage.process import give_way

_LOOK_SECONDS = 1.0
_ATTEMPTS = 2


def main() -> int:
    """Follow the experiment file named on the command line."""
    show_each_warning_once()
    give_way()  # to the training beside it
    experiment = load_experiment(Path(sys.argv[1]))
    orders = Orders()
    threading.Thread(target=orders.listen, args=[sys.stdin.fileno()], daemon=True).start()
    try:
        with Session.open(Project.here(), experiment, say=_say, stopped=orders.stop.is_set) as session:
            follow(session, orders)
    except UserError as error:  # the process that started this one evaluates what is left, or says the same
        print(f"evaluations beside the training: {error}", file=sys.stderr)
        return 1
    return 0


class Orders:
    """What the process that started this one asks for."""

    def __init__(self) -> None:
        self.last_call = threading.Event()
        """No more checkpoints will come."""

        self.stop = threading.Event()
        """Stop after the current evaluation."""

    def listen(self, descriptor: int) -> None:
        """Wait for the last call, which the end of the input is too, and for a byte that means to stop."""
        while (order := os.read(descriptor, 1)) == LAST_CALL:
            self.last_call.set()
        (self.stop if order else self.last_call).set()


def follow(session: Session, orders: Orders) -> None:
    """Evaluate checkpoints one after the other until no more will come and none is left, or `orders` say stop."""
    attempts: dict[str, int] = {}
    while not orders.stop.is_set():
        # Read before looking for checkpoints: one written in between is then found in one more round.
        was_last = orders.last_call.is_set()
        if not _evaluate_oldest(session, attempts, orders):
            if was_last:
                return
            orders.stop.wait(_LOOK_SECONDS)


def _evaluate_oldest(session: Session, attempts: dict[str, int], orders: Orders) -> bool:
    """Evaluate the oldest pending checkpoint that has not failed too often; return False if there is none."""
    experiment = session.experiment
    if experiment.folder.root.is_dir():
        announce_evaluator(experiment.folder.root)
    for pending in pending_evaluations(experiment):
        if attempts.get(pending.fingerprint, 0) < _ATTEMPTS:
            attempts[pending.fingerprint] = attempts.get(pending.fingerprint, 0) + 1
            try:
                session.evaluate(pending)
            except UserError as error:
                _say(f"evaluation of {pending.checkpoint.path.name}: {error}")
            except StoppedError:  # by an order, or terminated on Dagster's pages: then not at once again
                attempts[pending.fingerprint] = _ATTEMPTS
            return True
    return False


def _say(text: str) -> None:
    print(instead_of_row(sys.stderr, text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
