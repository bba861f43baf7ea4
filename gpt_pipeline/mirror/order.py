"""What an experiment's folder holds for the mirror: what is to be sent, who this writer is, and how far it is.

`mirror/order.json` is the queue. It names the work, not its pieces: what of that is finished here and not in the
mirror is found by comparing the two, so that nothing is lost with a process, and what was deleted here meanwhile is
not missed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.mirror import names
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json, write_text
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import is_held, is_locked

_FOLDER = "mirror"
_AGENT = "gpt_pipeline.mirror.agent"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What of an experiment is to be in the mirror."""

    mirror: str
    """Its address."""

    keep_last: int
    """Checkpoints to keep there, besides the best."""

    fingerprint: str = ""
    """Of the training; empty before there is one."""

    term: int = 0
    """The newest term that a trainer of this folder has written; 0: none."""

    stages: tuple[str, ...] = ()
    """Folders of finished stages, and of what is known of sources, relative to the base folder."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Order:
        """Return what was written as JSON; raises KeyError, TypeError or ValueError for anything else."""
        known = known_fields(cls, value)
        return cls(**{**known, "stages": tuple(known.get("stages", ()))})


@dataclass(frozen=True, kw_only=True)
class State:
    """How far the agent is, as it last said."""

    mirror: str
    waiting_files: int = 0
    waiting_bytes: int = 0
    sent_files: int = 0
    """Since the agent started."""

    sent_bytes: int = 0
    problem: str = ""
    """Why nothing is sent at the moment; empty: all is well."""

    problem_since: str = ""
    """UTC, ISO 8601."""

    damaged: str = ""
    """What is not sent because it is damaged here, while the rest is; empty: nothing."""

    lost: bool = False
    """Whether another machine writes this training now, so that nothing is sent any more."""

    written_by: str = ""
    """The other machine that writes the training now, which is finished here; nothing of it is sent any more."""

    complete_at: str = ""
    """When everything was in the mirror last: UTC, ISO 8601; empty if it never was, or is not now."""

    @property
    def waiting(self) -> str:
        """What is still to be sent, for a person."""
        if not self.waiting_files:
            return "nothing to be sent"
        return f"{counted(self.waiting_files, 'file')} to be sent, {self.waiting_bytes / 1e6:,.1f} MB"

    @property
    def in_words(self) -> str:
        """For a person, in a line."""
        if self.problem:
            known = f"; {self.waiting}" if self.waiting_files else ""
            return f"{self.problem} (since {self.problem_since}){known}"
        if self.damaged:
            return f"not all can be sent: {self.damaged}; {self.waiting if self.waiting_files else 'all else is there'}"
        done = f"complete at {self.complete_at}" if self.complete_at else self.waiting
        return f"{done}; the training is now written by {self.written_by}" if self.written_by else done


def write_order(folder: ExperimentFolder, order: Order) -> None:
    """Keep the order; stages that an earlier one named stay in it while they exist.

    While a trainer is at work, only the trainer itself, whose order has a term, orders another training or mirror: the
    agent of its lease would leave it otherwise.
    """
    before = read_order(folder)
    if before is not None and before.term and not order.term and is_locked(folder.root):
        if order.mirror != before.mirror:
            return
        order = dataclasses.replace(order, fingerprint=before.fingerprint)
    stages = order.stages
    if before is not None and before.mirror == order.mirror:
        stages = (*before.stages, *stages)
        if not order.fingerprint:
            order = dataclasses.replace(order, fingerprint=before.fingerprint)
        if not order.term and order.fingerprint == before.fingerprint:
            order = dataclasses.replace(order, term=before.term)
    present = [each for each in dict.fromkeys(stages) if (folder.base / each).is_dir()]
    new = dataclasses.replace(order, stages=tuple(present))
    if new != before:
        write_json(_path(folder, "order.json"), dataclasses.asdict(new))


def read_order(folder: ExperimentFolder) -> Order | None:
    """Return the order in an experiment's folder; None if there is none."""
    return read_kept(_path(folder, "order.json"), Order.from_json, otherwise="the next run writes it anew")


def held_training(folder: ExperimentFolder) -> str | None:
    """Return the fingerprint of the training whose files an experiment's folder holds; None if that is not known.

    The experiment file may have been changed since, for the next one.
    """
    parse = lambda value: str(value["fingerprint"])  # noqa: E731
    return read_kept(folder.root / names.STARTED, parse, otherwise="the experiment file says which training it is")


def is_finished(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether an experiment's folder holds the training `fingerprint`, finished."""
    parse = lambda value: str(value["fingerprint"])  # noqa: E731
    return read_kept(folder.training, parse, otherwise="the training counts as unfinished") == fingerprint


def write_state(folder: ExperimentFolder, state: State) -> None:
    """Say how far the agent is."""
    write_json(_path(folder, "state.json"), dataclasses.asdict(state))


def read_state_of(folder: ExperimentFolder) -> State | None:
    """Return what the agent of an experiment's folder said last; None if none ever did."""
    parse = lambda value: State(**known_fields(State, value))  # noqa: E731
    return read_kept(_path(folder, "state.json"), parse, otherwise="the agent writes it anew")


def state_for(folder: ExperimentFolder, url: str) -> State | None:
    """Return the same if that was of the mirror at `url`; else None, as after the file was given another mirror."""
    state = read_state_of(folder)
    return state if state is not None and state.mirror == url else None


def owner_of(folder: ExperimentFolder) -> str:
    """Return the id of this folder as a writer, made at the first call; a copy of the folder elsewhere has another."""
    path = _path(folder, "owner")
    try:
        own = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        own = uuid.uuid4().hex
        write_text(path, f"{own}\n")
    place = hashlib.sha256(os.fsencode(folder.root.absolute())).hexdigest()
    return f"{own}-{place[:SHORT]}"


def agent_lock(folder: ExperimentFolder) -> Path:
    """Return the file that the agent of an experiment's folder holds the lock of."""
    return _path(folder, "lock")


def agent_log(folder: ExperimentFolder) -> Path:
    """Return the file that the agent of an experiment's folder writes its warnings to."""
    return _path(folder, "agent.log")


def is_sending(folder: ExperimentFolder) -> bool:
    """Whether an agent is at work for an experiment's folder."""
    return is_held(agent_lock(folder))


def start_agent(folder: ExperimentFolder) -> subprocess.Popen[bytes]:
    """Start what sends, apart from this process, which may end before it; one that is not needed ends by itself."""
    log = agent_log(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    apart: dict[str, Any] = (
        {"creationflags": 0x00000200 | 0x00000008}  # CREATE_NEW_PROCESS_GROUP, DETACHED_PROCESS
        if os.name == "nt"
        else {"start_new_session": True}
    )
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", _AGENT, str(folder.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **apart,
        )


def start_anew(folder: ExperimentFolder, order: Order) -> subprocess.Popen[bytes]:
    """Start what sends, and forget what an earlier one said, such as why it gave up, unless that is still at work."""
    if not is_sending(folder):
        write_state(folder, State(mirror=order.mirror))
    return start_agent(folder)


def _path(folder: ExperimentFolder, name: str) -> Path:
    return folder.root / _FOLDER / name
