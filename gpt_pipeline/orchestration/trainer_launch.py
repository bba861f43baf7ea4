"""Run the trainer as a child process: pass on its messages, and stop it in a way that lets it save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from gpt_pipeline.launchers.protocol import SHUTDOWN_SECONDS, TORCHRUN_VARIABLES
from gpt_pipeline.orchestration.trainer_pipes import DIE_WITH_PARENT
from gpt_pipeline.orchestration.whole_lines import WholeLineReader
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.process_group import ask_to_stop, kill, own_group
from gpt_pipeline.training.heartbeat import RUN_VARIABLE
from gpt_pipeline.training.launch import VARIABLES as LAUNCH_VARIABLES
from gpt_pipeline.training.stopping import StopFlag, stop_on_signals

PROGRESS_DESCRIPTOR = "GPT_PIPELINE_PROGRESS_FD"
_GRACE_SECONDS = SHUTDOWN_SECONDS + 20.0  # the trainers' supervisor kills them first
_POLL_SECONDS = 0.2
STOPPED_CODES = (130, 143)
"""Exit codes of a trainer that SIGINT or SIGTERM stopped, with a checkpoint saved."""

_TRAINER = "gpt_pipeline.orchestration.trainer_pipes"

Message = Mapping[str, Any]


def train_in_child(
    context: dg.AssetExecutionContext,
    job_file: Path,
    log_file: Path,
    *,
    processes: int,
    receive: Callable[[Message], None],
) -> None:
    """Run the trainer on `job_file` until it ends, at its last step or stopped by a signal sent to it.

    `receive` gets each message as it arrives. The trainer's output goes to the terminal if someone watches there, else
    to the end of `log_file`. A stop request (a terminated run, Ctrl+C) reaches the trainer as one signal; it saves and
    exits. Dagster would raise its interrupt at any line, twice within milliseconds if a terminal and a parent process
    both pass Ctrl+C on; here a signal only sets a flag.

    Raises:
        DagsterExecutionInterruptedError: the run was asked to stop; the trainer has exited.
        dagster.Failure: the trainer failed; with its own message if it left one.
    """
    stop = StopFlag()
    with (
        stop_on_signals(stop),
        warnings.catch_warnings(action="ignore", category=dg.PreviewWarning),  # about a detail inside the session
        dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=WholeLineReader(),
        ) as session,
    ):
        child = _start(
            job_file,
            log_file,
            processes=processes,
            environment={**session.get_bootstrap_env_vars(), RUN_VARIABLE: context.run.run_id},
        )
        context.log.info(f"The trainer is process {child.pid}.")
        received = 0
        try:
            while child.poll() is None and not stop.requested:
                time.sleep(_POLL_SECONDS)
                received = _pass_on(session.get_custom_messages(), received, receive)
        finally:  # also if a message could not be passed on: no trainer is left behind
            _stop(child, context.log.info)
    messages = session.get_custom_messages()
    _pass_on(messages, received, receive)
    codes = (0, *STOPPED_CODES) if processes == 1 else (0,)  # torchrun tells of a stop by a signal as of a failure
    _check_end(child.returncode, messages, log_file, stopped=stop.requested, good=codes)


def _start(
    job_file: Path, log_file: Path, *, processes: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, *(_torchrun(processes) if processes > 1 else []), "-m", _TRAINER, str(job_file)]
    terminal = os.environ.get(PROGRESS_DESCRIPTOR)
    # What a cluster set for this process is not for the trainer's: alone, or those that torchrun starts.
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    with log_file.open("ab") as log:
        output = int(terminal) if terminal else log
        return subprocess.Popen(
            command,
            env={
                **inherited,
                **TORCHRUN_VARIABLES,
                "PYTHONUTF8": "1",
                **environment,
                DIE_WITH_PARENT: str(os.getpid()),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **own_group(),
        )


def _torchrun(processes: int) -> list[str]:
    """Return what stands between the interpreter and the trainer where several of them train together."""
    # Without a log folder of its own, torchrun leaves one among the temporary files, at each start.
    options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={os.devnull}"]
    return [
        "-m",
        "gpt_pipeline.training.supervise",
        str(os.getpid()),
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
    ]


def _stop(child: subprocess.Popen[bytes], say: Say) -> None:
    """Ask the trainer, if it still runs, to save and exit; kill it only if it does not."""
    if child.poll() is not None:
        return
    say("Stopping: the trainer saves a checkpoint at the next step and exits.")
    ask_to_stop(child, signal.SIGTERM)
    try:
        child.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        say(f"The trainer did not exit within {_GRACE_SECONDS:.0f} s and is killed.")
        kill(child)
        child.wait()


def _pass_on(messages: Any, received: int, receive: Callable[[Message], None]) -> int:
    for message in messages[received:]:
        receive(message)
    return len(messages)


def _check_end(
    exit_code: int, messages: Sequence[Message], log_file: Path, *, stopped: bool, good: Sequence[int]
) -> None:
    if stopped:
        raise dg.DagsterExecutionInterruptedError
    errors = [message["text"] for message in messages if message["kind"] == "error"]
    if errors:
        raise dg.Failure(description=str(errors[-1]), allow_retries=False)
    if exit_code not in good:
        raise dg.Failure(
            description=f"The trainer ended with exit code {exit_code}; its last output is in {log_file}. "
            "Materialize training again: it continues from the last checkpoint."
        )
