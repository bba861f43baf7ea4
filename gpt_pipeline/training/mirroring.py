"""A training and its mirror: the lease, what is brought before the first step, the agent that sends, and its end."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import best_checkpoint, checkpoint_path, list_checkpoints, manifest_path
from gpt_pipeline.mirror import names
from gpt_pipeline.mirror.bring import bring_training, look
from gpt_pipeline.mirror.lease import LeaseHeldError, acquire
from gpt_pipeline.mirror.order import (
    Order,
    State,
    agent_log,
    is_sending,
    owner_of,
    read_order,
    read_state_of,
    start_agent,
    write_order,
    write_state,
)
from gpt_pipeline.mirror.store import MirrorError, Store, open_store
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import PARTIAL_SUFFIX, fsync_folder, parse_json, remove_leftovers
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import beside
from gpt_pipeline.training.decision import MARKER_NAME, Demand, decide_start
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.start import move_aside
from gpt_pipeline.training.stopping import StopFlag

_WATCH_SECONDS = 2.0
_BEGUN_SECONDS = 0.2
_RESTART_SECONDS = 30.0  # between two starts of an agent that ended by itself
_CONTINUED = "it was continued on another machine, whose newer state the mirror has"
_OTHER = "the mirror has the training that is asked for now"


@contextmanager
def mirrored(job: TrainingJob, *, stop: StopFlag, say: Say) -> Iterator[None]:
    """Hold the training's lease during the block, which begins with the newest state and sends what becomes finished.

    Needs the lock of the experiment's folder. If another machine takes the lease over, `stop` is asked to stop.

    Raises:
        LeaseHeldError: another machine writes this training.
        MirrorError: the mirror cannot be reached, and nothing of the training is here; or, after the block, the lease
            was lost.
    """
    order = job.mirror
    if order is None:
        yield
        return
    term = _begin(job, order, stop=stop, say=say)
    if stop.requested:
        yield
        return
    write_state(job.folder, State(mirror=order.mirror))
    watch = _AgentWatch(job, dataclasses.replace(order, term=term), stop=stop, say=say)
    with beside(watch.run, name="mirror"):
        yield
    if watch.lost:
        raise MirrorError(f"{watch.lost}. What was trained until now is saved here")


def _begin(job: TrainingJob, order: Order, *, stop: StopFlag, say: Say) -> int:
    """Take the lease and bring what is newer; return the term, 0 if the mirror is down and training goes on without."""
    try:
        store = open_store(order.mirror)
        training = names.training_prefix(job.folder.root.name, job.fingerprint)
        asks, fresh = _asks_anew(job), _begins_anew(job, store, training)
        if fresh:
            decide_start(job)  # a demand that cannot be met must not leave what the mirror has out
        lease = acquire(
            store, training, owner=owner_of(job.folder), fresh=fresh, say=say, stopped=lambda: stop.requested
        )
        if not fresh:
            bring_newer(store, job.folder, job.fingerprint, is_other=asks, say=say)
    except LeaseHeldError:
        raise
    except MirrorError as error:
        if stop.requested:
            return 0
        if _asks_anew(job):
            raise MirrorError(
                f"{error}. It cannot be told that this training starts over, so what it has would come back later: "
                "mend it and run again, or set storage.mirror: null to train without it"
            ) from error
        before = read_order(job.folder)
        is_same = before is not None and (before.mirror, before.fingerprint) == (order.mirror, job.fingerprint)
        if before is None or not is_same or not before.term or _newest_step(job.folder, job.fingerprint) < 0:
            raise MirrorError(
                f"{error}. Whether it has this training is not known, so it is not begun: mend it and run again, or "
                "set storage.mirror: null to train without it"
            ) from error
        say(f"{error}. Training goes on with what is here; what is finished is sent when the mirror is back.")
        return before.term
    return lease.term


def _asks_anew(job: TrainingJob) -> bool:
    """Whether the job asks for a start from scratch, or from a named checkpoint, that was not carried out here."""
    return Demand.of(job).is_open(job.folder)


def _begins_anew(job: TrainingJob, store: Store, training: str) -> bool:
    """Whether the job asks for such a start, and it was not carried out on another machine either."""
    if not _asks_anew(job):
        return False
    for kept in look(store, training).checkpoints[:1]:
        content = store.get_bytes(f"{names.term_prefix(training, kept.term)}/{MARKER_NAME}")
        return not Demand.of(job).is_met_by(_demand(content))
    return True


def _demand(content: bytes | None) -> Demand | None:
    try:
        return Demand.from_json(parse_json(content or b""))
    except (ValueError, KeyError, TypeError):
        return None


def bring_newer(store: Store, folder: ExperimentFolder, fingerprint: str, *, is_other: bool = False, say: Say) -> bool:
    """Bring the mirror's newest valid checkpoint of a training, if it is newer than what is here; return whether it is.

    Any is newer if what is here `is_other`: of a start before the one that the mirror has. So is what was trained here
    before a term in which another machine started over. What is here is moved aside, once the newer one has arrived
    whole. Needs the lock of the experiment's folder.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    copy = look(store, names.training_prefix(folder.root.name, fingerprint))
    is_other = is_other or _is_outdated(folder, fingerprint, copy.first_term)
    step = -1 if is_other else _newest_step(folder, fingerprint)
    incoming = ExperimentFolder(root=folder.root / "mirror" / "incoming")
    if copy.newest_step <= step:
        shutil.rmtree(incoming.root, ignore_errors=True)  # of an attempt that was cut off, and is no longer needed
        return False
    _remove_but_data(incoming)
    if bring_training(store, copy, incoming, fingerprint, newer_than=step, say=say) is None:
        say(f"The mirror {store.url} has no valid checkpoint of this training that is newer than what is here.")
        return False
    before = Demand.read(folder)
    is_other = is_other or (before is not None and before.fingerprint != fingerprint)
    move_aside(folder, _OTHER if is_other else _CONTINUED, say)
    _remove_unfinished(incoming)
    _move_into(folder.root, incoming.root)
    return True


def _remove_but_data(incoming: ExperimentFolder) -> None:
    """Remove what an attempt that was cut off has left, but for checkpoints' bytes, which are compared when needed."""
    for path in incoming.root.rglob("*"):
        if path.is_file() and path.suffix not in (".pt", PARTIAL_SUFFIX):
            path.unlink()


def _remove_unfinished(incoming: ExperimentFolder) -> None:
    """Remove checkpoints that an earlier attempt has brought, or begun to, and that are not of this one."""
    remove_leftovers(incoming.checkpoints)
    for path in incoming.checkpoints.glob("*.pt"):
        if _lacks_manifest(path):
            path.unlink()


def _move_into(target: Path, source: Path) -> None:
    """Move all of `source` into the folder `target`, where none of its files exist, and remove it.

    Checkpoints' manifests go last: as long as the newest is not there, a move that was cut off counts for nothing.
    """
    for path in sorted(source.rglob("*"), key=lambda path: (_is_manifest(path), path.name)):  # `best_model` first
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    fsync_folder(target)
    shutil.rmtree(source)


def _is_manifest(path: Path) -> bool:
    return path.suffix == ".json" and path.parent.name == names.CHECKPOINTS


def _is_outdated(folder: ExperimentFolder, fingerprint: str, first_term: int) -> bool:
    """Whether what is here was trained before the training started over, with term `first_term`."""
    order = read_order(folder)
    return order is not None and order.fingerprint == fingerprint and 0 < order.term < first_term


def _lacks_manifest(checkpoint: Path) -> bool:
    return checkpoint.is_file() and not manifest_path(checkpoint).is_file()


def _newest_step(folder: ExperimentFolder, fingerprint: str) -> int:
    best = best_checkpoint(folder.checkpoints)
    if best is not None and _lacks_manifest(checkpoint_path(folder.checkpoints, best.step)):
        best = None  # `_move_into` was cut off just before it
    found = [*list_checkpoints(folder.checkpoints), *([best] if best else [])]
    return max((info.step for info in found if info.fingerprint == fingerprint), default=-1)


class _AgentWatch:
    """Keeps the agent running, and passes on what it says."""

    def __init__(self, job: TrainingJob, order: Order, *, stop: StopFlag, say: Say) -> None:
        self.lost = ""
        """Why the lease is lost, if it is."""

        self._demand = Demand.of(job)
        self._order = order
        self._folder = job.folder
        self._stop = stop
        self._say = say
        self._problem = self._damaged = ""

    def run(self, ended: threading.Event) -> None:
        """Watch until `ended`."""
        self._give_order(ended)
        agent, started_at = start_agent(self._folder), time.monotonic()
        while not ended.wait(_WATCH_SECONDS):
            self._heed(read_state_of(self._folder))
            if self.lost:
                return
            agent, started_at = self._kept_alive(agent, started_at)
        self._heed(read_state_of(self._folder))

    def _give_order(self, ended: threading.Event) -> None:
        """Order the training's sending, once a start from scratch has moved aside what must not enter its term."""
        while self._demand.is_open(self._folder):
            if ended.wait(_BEGUN_SECONDS):
                break
        write_order(self._folder, self._order)

    def _kept_alive(self, agent: subprocess.Popen[bytes], started_at: float) -> tuple[subprocess.Popen[bytes], float]:
        if agent.poll() is None or time.monotonic() - started_at < _RESTART_SECONDS:
            return agent, started_at
        if not is_sending(self._folder):
            self._say(f"What sends to the mirror ended ({agent_log(self._folder)} may say why); it is started again.")
            agent = start_agent(self._folder)
        return agent, time.monotonic()

    def _heed(self, state: State | None) -> None:
        if state is None:
            return
        if state.lost:
            self.lost = state.problem
            self._say(f"{state.problem}: this training stops after a checkpoint.")
            self._stop.request(signal.SIGTERM)
        elif state.problem and not self._problem:
            self._say(f"{state.problem}. Training goes on; what is finished is sent when the mirror is back.")
        elif self._problem and not state.problem:
            self._say(f"The mirror is back: {state.in_words}.")
        if state.damaged != self._damaged and state.damaged:
            self._say(f"Not sent to the mirror: {state.damaged}. Training goes on.")
        self._problem, self._damaged = state.problem, state.damaged
