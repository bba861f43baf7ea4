"""Python runs this at the start of each process that has this folder in PYTHONPATH: the trainer waits at a step.

Which step, and for what, a test says in the environment: see `gate.py`.
"""

import os
import sys
import time

_TRAINER = "gpt_pipeline.orchestration.trainer_pipes"


def _hold(at: int, reached: str, may_go_on: str) -> None:
    from gpt_pipeline.training.stopping import StopFlag, Watchdog

    beat, request = Watchdog.beat, StopFlag.request
    stopped: list[int] = []

    def noted_request(flag: StopFlag, number: int) -> None:
        request(flag, number)
        stopped.append(number)

    def waiting_beat(watchdog: Watchdog, step: int) -> None:
        beat(watchdog, step)
        if step < at:
            return
        with open(reached, "a"):
            pass
        while not os.path.exists(may_go_on) and not stopped:
            time.sleep(0.01)
            beat(watchdog, step)

    Watchdog.beat, StopFlag.request = waiting_beat, noted_request  # type: ignore[method-assign]


if "GATE_STEP" in os.environ and _TRAINER in sys.orig_argv:
    _hold(int(os.environ["GATE_STEP"]), os.environ["GATE_REACHED"], os.environ["GATE_OPEN"])
