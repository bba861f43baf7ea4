"""What Dagster shows of a step that cannot go on: one clear line, without a traceback of ours and without retries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.events import DagsterEvent
from dagster_shared.error import SerializableErrorInfo

from gpt_pipeline.errors import UserError
from gpt_pipeline.orchestration import keys

STOPPED = "Stopped; what is finished is kept, and the next run continues from there."
CRASHED = (
    "its process ended without a word: it crashed, or was killed, as happens where memory runs out (the run's log has "
    "the signal or exit code); what is finished is kept, and the next run continues from there"
)
_CRASH = "ChildProcessCrashException"  # Dagster's word for a step whose process ended without one
_TOLD_TO_END = re.compile(r"terminated by signal \d+ \(SIG(TERM|INT|HUP|BREAK)\)")  # in what it says of such a process


class StoppedRunError(dg.DagsterExecutionInterruptedError, DagsterUserCodeProcessError):
    """A stop that the user asked for. Like Dagster's own interruption it ends the run, but leaves `text` alone.

    Of any other exception Dagster records the traceback. Of an error that another process has sent, which this one
    claims to be, it takes what was sent.
    """

    def __init__(self, text: str) -> None:
        info = SerializableErrorInfo(text, stack=[], cls_name=dg.DagsterExecutionInterruptedError.__name__)
        super().__init__(text, user_code_process_error_infos=[info])  # type: ignore[no-untyped-call]


def is_stop(error: SerializableErrorInfo | None) -> bool:
    """Whether an error in Dagster's records is a stop that the user asked for."""
    return error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__


def stop_text(error: SerializableErrorInfo) -> str:
    """Return what a stop says: ours as it is, and in our words one that met Dagster's own code, which has no text."""
    return STOPPED if dg.DagsterExecutionInterruptedError.__name__ in error.message else error.message


def is_crash(error: SerializableErrorInfo) -> bool:
    """Whether an error in Dagster's records is the end of a step's process that said nothing."""
    return error.cls_name == _CRASH


def crash_by_a_stop(event: DagsterEvent) -> bool | None:
    """Whether a step's process, whose crash the event tells of, was asked to stop before it could heed that.

    None: the event tells of no crash.
    """
    error = event.engine_event_data.error if event.is_engine_event else None
    if error is None or not is_crash(error):
        return None
    return _TOLD_TO_END.search(event.message or "") is not None


def failure_text(event: DagsterEvent) -> str:
    """Return why a step failed: in our own words as it is, an unforeseen error by its last line."""
    data = event.step_failure_data
    error = data.error.cause or data.error if data.error else None
    described = data.user_failure_data.description if data.user_failure_data else None
    if error is not None and is_crash(error):
        described = CRASHED
    reason = described or (error.message.strip() if error else "failed")
    return f"{keys.stage_of(event.step_key or 'run')}: {reason}"


@contextmanager
def explained(*, stopped: str = STOPPED, told: Callable[[str], str] = str) -> Iterator[None]:
    """Turn a `UserError` raised in the block into `dagster.Failure` with the same text, as it is to be `told`, and an
    interruption into `StoppedRunError` with the text `stopped`."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=told(str(error)), allow_retries=False) from None
    except StoppedRunError:
        raise
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        raise StoppedRunError(stopped) from None
