"""Python runs this at the start of each process that has this folder in PYTHONPATH: the trainer waits at a step.

Which step, and for what, a test says in the environment: see `gate.py`. A test may also set the clock by the file
CLOCK: of processes that start later, and of a trainer once it may go on. Each process writes the stacks of its threads
into a file of the folder STACKS when it gets SIGQUIT: see `hangs.py`.
"""

import faulthandler
import os
import signal
import sys
import time

_TRAINERS = {"gpt_pipeline.orchestration.trainer_pipes", "gpt_pipeline.training"}


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
        waited = False
        while not os.path.exists(may_go_on) and not stopped:
            waited = True
            time.sleep(0.01)
            beat(watchdog, step)
        if waited:
            _set_the_clock()

    Watchdog.beat, StopFlag.request = waiting_beat, noted_request  # type: ignore[method-assign]


def _set_the_clock() -> None:
    path = os.environ.get("CLOCK", "")
    if os.path.exists(path):
        import time_machine

        with open(path) as file:
            time_machine.travel(time.time() + float(file.read()), tick=True).start()


def _show_stacks(folder: str) -> None:
    if os.path.isdir(folder) and hasattr(signal, "SIGQUIT"):
        file = open(os.path.join(folder, str(os.getpid())), "a")  # noqa: SIM115 - for as long as the process lives
        faulthandler.register(signal.SIGQUIT, file=file, all_threads=True)


_show_stacks(os.environ.get("STACKS", ""))
_set_the_clock()
if "GATE_STEP" in os.environ and not _TRAINERS.isdisjoint(sys.orig_argv):
    _hold(int(os.environ["GATE_STEP"]), os.environ["GATE_REACHED"], os.environ["GATE_OPEN"])
