"""Waiting for the agent: at the end of a run, so that its results are safe when it says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gpt_pipeline.mirror.order import agent_log, is_sending, read_order, read_state_of, start_anew
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.layout import ExperimentFolder

_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 2.0  # a wait that is not worth a word
_ASKING = "Asking the mirror what it has ..."
_AFTER_STOP_SECONDS = 20.0  # torchrun kills its workers 30 s after a signal


def wait_until_sent(
    folder: ExperimentFolder,
    *,
    say: Say,
    stopped: Callable[[], bool] = lambda: False,
    patience: float = math.inf,
) -> None:
    """Wait until the agent has sent everything, or says why it does not; after a stop for some seconds only.

    A mirror that has not said what it lacks after `patience` seconds is left to the agent.
    """
    order = read_order(folder)
    if order is None:
        return
    agent = None if is_sending(folder) else start_anew(folder, order)
    began, told = time.monotonic(), ""
    while is_sending(folder) or (agent is not None and agent.poll() is None):
        state, waited = read_state_of(folder), time.monotonic() - began
        if state is not None and state.problem:
            break
        if stopped() and waited > _AFTER_STOP_SECONDS:
            say("The rest is sent to the mirror in the background.")
            return
        if waited > patience and (state is None or not (state.waiting_files or state.complete_at)):
            say(
                f"The mirror has not answered for {patience:.0f} seconds; what it lacks is sent in the background, and "
                "gpt-pipeline status says if that fails."
            )
            return
        now = f"Sending to the mirror: {state.waiting}." if state is not None and state.waiting_files else _ASKING
        if waited > _QUIET_SECONDS and (not told or told == _ASKING != now):
            say(now)
            told = now
        time.sleep(_LOOK_SECONDS)
    state = read_state_of(folder)
    if state is not None and state.problem:
        remedy = "" if state.lost else " The next run sends it, or: gpt-pipeline mirror EXPERIMENT.yaml --send"
        say(f"{state.in_words}.{remedy}")
    elif state is not None and state.damaged:
        say(f"Not everything is in the mirror: {state.damaged}.")
    elif state is None or not state.complete_at:
        say(f"Not everything is in the mirror; {agent_log(folder)} may say why.")
    elif told:
        say(f"In the mirror: {state.in_words}." if state.written_by else "Everything is in the mirror.")
