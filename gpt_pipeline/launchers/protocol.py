"""What an engine that runs trainings must provide, and what it is asked to run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from gpt_pipeline.errors import UserError

JobState = Literal["waiting", "running", "succeeded", "failed", "cancelled", "timed_out", "unknown"]
"""`timed_out`: the engine took its place away (time limit, preemption, a lost node), through no fault of the trainer.
`unknown`: the engine has forgotten the job."""

ALIVE: tuple[JobState, ...] = ("waiting", "running")

TRAINER = "gpt_pipeline.training"
SHUTDOWN_SECONDS = 100
"""How long torchrun lets its processes save after SIGTERM before it kills them."""

TORCHRUN_VARIABLES = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}
"""How it is told: torch 2.11, whose torchrun always waits 30 seconds, refuses the option and ignores the variable."""

END_SECONDS = SHUTDOWN_SECONDS + 90.0
"""From the request to stop to the job's end; longer than Ray's own, after which it kills."""


class LauncherError(UserError):
    """An engine refused what it was asked; in its own words, with the remedy."""


class UnreachableError(LauncherError):
    """An engine does not answer now. This says nothing of its jobs."""


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """A training, as an engine is asked to run it: one torchrun a node, or the trainer alone for a single process."""

    name: str
    """Of the job; no other submission bears it. Letters, digits and `-` only."""

    job_file: Path
    """What the trainer is to do; in the experiment's folder, which all nodes see."""

    log_file: Path
    """Where the job's output goes: to its end, also when the job is started again under the same id."""

    nodes: int
    processes: int
    """On each node."""

    python: str = sys.executable
    """The interpreter on the nodes."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """What the trainer finds in its environment beside what the nodes give it."""

    @property
    def folder(self) -> Path:
        """The experiment's."""
        return self.job_file.parent

    @property
    def variables(self) -> Mapping[str, str]:
        """Return what each node's environment gets, for torchrun and the trainers."""
        return {**TORCHRUN_VARIABLES, **self.environment}

    def arguments(self, *, endpoint: str, rendezvous: str, options: Sequence[str] = ()) -> list[str]:
        """Return what each node runs.

        `endpoint` is `host:port` on one of the nodes, where they meet; `rendezvous` tells this start of the job from
        others that may meet there. `options` are further ones of torchrun, for one node.
        """
        trainer = ["-m", TRAINER, str(self.job_file)]
        if self.nodes * self.processes == 1:
            return [self.python, *trainer]
        torchrun = [
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.nodes}",
            f"--nproc-per-node={self.processes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            f"--rdzv-id={rendezvous}",
            "--log-dir=/dev/null",  # else each start leaves a folder among the node's temporary files
            *options,
        ]
        return [self.python, *torchrun, *trainer]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What an engine says of a job."""

    state: JobState
    reason: str = ""
    """In the engine's words: where it runs, what it waits for, or why it ended."""

    exit_code: int | None = None


class Launcher(Protocol):
    """An engine. Each call asks it once and returns; nothing is kept between calls.

    An engine that was set up anew gives an id to another job. So whoever knows the `name` of the job says it: a job
    of that id and of another name is then `unknown`, and left alone.

    Every method raises `UnreachableError` where the engine does not answer, `LauncherError` where it refuses.
    """

    @property
    def name(self) -> str:
        """Return the word of `hardware.launcher`."""

    @property
    def where(self) -> str:
        """Return which cluster it is, as the config names it; empty: the one that is reached from here."""

    def check(self) -> str:
        """Return in words that the engine can take jobs as it is configured; it refuses where it cannot."""

    def submit(self, command: TrainingCommand) -> str:
        """Hand the job over; return its id, under which the engine knows it until it has forgotten it."""

    def find(self, name: str) -> str | None:
        """Return the id of the newest job of this name, one that has ended included; None if the engine knows none."""

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        """Return how the job is."""

    def cancel(self, job_id: str, *, name: str | None = None) -> None:
        """Ask the job to end: SIGTERM to the trainer, which saves; one that waits is withdrawn. Does not wait."""

    def kill(self, job_id: str, *, name: str | None = None) -> None:
        """End the job now."""
