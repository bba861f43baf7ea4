"""The background process that sends an experiment's finished work: `python -m gpt_pipeline.mirror.agent FOLDER`.

One at a time for each experiment's folder, of low priority. It ends once everything is in the mirror and no trainer is
at work; whoever has something new to send starts it again. A mirror that is down is tried again until it is back, or,
without a trainer, for an hour.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

from filelock import Timeout

from gpt_pipeline.errors import UserError
from gpt_pipeline.mirror import names
from gpt_pipeline.mirror.lease import Holder, Lease, LeaseHeldError, LeaseLostError, acquire, lost_to, newest_holder
from gpt_pipeline.mirror.order import Order, State, agent_lock, is_finished, owner_of, read_order, write_state
from gpt_pipeline.mirror.send import Sender, Work
from gpt_pipeline.mirror.store import MirrorError, Store, open_store
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import BEAT_SECONDS, beside, hold_lock, is_locked, remove_abandoned
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.process import give_way

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_REST = 20  # times as long as a look at the folder takes: thousands of checkpoints must not keep a core busy
_LONGEST_PAUSE_SECONDS = 60.0
_GIVE_UP_SECONDS = 3600.0
_PREDECESSOR_SECONDS = 15.0
_SHOW_SECONDS = 5.0  # between two notes of how far it is

Sleep = Callable[[float], None]


class Agent:
    """Sends for one experiment's folder, until there is nothing left to send."""

    def __init__(
        self,
        folder: ExperimentFolder,
        *,
        open_store: Callable[[str], Store] = open_store,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
        beat: float = BEAT_SECONDS,
    ) -> None:
        self._folder = folder
        self._open = open_store
        self._clock = clock
        self._sleep = sleep
        self._beat = beat
        self._lost: LeaseLostError | None = None
        self._state = State(mirror="")
        self._shown_at = float("-inf")

    def run(self) -> State:
        """Send what is to be sent; return the last state."""
        remove_abandoned(agent_lock(self._folder).parent)
        failing_since: float | None = None
        pause = _POLL_SECONDS
        while (order := read_order(self._folder)) is not None:
            sent = self._state.sent_bytes
            try:
                if self._session(order):
                    break
                failing_since, pause = None, _POLL_SECONDS
            except (LeaseLostError, LeaseHeldError) as error:
                if isinstance(error, LeaseLostError) and error.own:  # to a trainer that started in this folder
                    self._sleep(_POLL_SECONDS)
                    continue
                self._show_problem(str(error), lost=True)
                break
            except MirrorError as error:
                if failing_since is None or self._state.sent_bytes > sent:  # one that gets on has not failed for long
                    failing_since, pause = self._clock(), _POLL_SECONDS
                self._show_problem(str(error))
                if not self._is_training and self._clock() - failing_since > _GIVE_UP_SECONDS:
                    break
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return self._state

    def _session(self, order: Order) -> bool:
        """Send by one connection; return whether everything is sent, False if the order has changed, or will."""
        self._lost = None
        self._state = replace(self._state, mirror=order.mirror, written_by="")
        store = self._open(order.mirror)
        newest = newest_holder(store, self._training(order)) if order.fingerprint else None
        if newest is not None and self._is_to_be_ordered(newest, order):
            self._sleep(_POLL_SECONDS)
            return False
        lease = self._lease(store, order, newest)
        if lease is None:
            done = self._sent_all(store, order, None)
        else:
            with beside(lambda ended: self._renew(lease, order, ended), name="mirror lease"):
                done = self._sent_all(store, order, lease)
        if done:
            _forget_parts(store, [*([] if lease is None else [lease.training]), *order.stages])
        if done and lease is not None:
            lease.release()
        return done

    def _training(self, order: Order) -> str:
        return names.training_prefix(self._folder.root.name, order.fingerprint)

    def _is_to_be_ordered(self, newest: Holder, order: Order) -> bool:
        """Whether a trainer of this folder has begun a term, and has yet to move aside what is none of it."""
        return newest.is_own(owner_of(self._folder)) and newest.term > order.term and self._is_training

    def _lease(self, store: Store, order: Order, newest: Holder | None) -> Lease | None:
        if not order.fingerprint:
            return None
        training, owner = self._training(order), owner_of(self._folder)
        if newest is not None and not newest.is_own(owner) and newest.term > order.term:
            if self._is_training or not is_finished(self._folder, order.fingerprint):
                raise lost_to(training, newest)  # what is here may be behind what is there
            self._state = replace(self._state, written_by=newest.in_words)
            return None
        return acquire(store, training, owner=owner, say=_logger.info)

    def _renew(self, lease: Lease, order: Order, ended: Event) -> None:
        """Keep the lease, over a connection of its own: a large file takes the other one for minutes."""
        own = replace(lease, store=self._open(order.mirror))
        while not ended.wait(self._beat):
            try:
                own.renew()
            except LeaseLostError as error:
                self._lost = error
                return
            except MirrorError as error:
                _logger.warning("%s", error)

    def _sent_all(self, store: Store, order: Order, lease: Lease | None) -> bool:
        sender = Sender(store, self._folder, each=self._sent_piece)
        last = ""
        while True:
            if read_order(self._folder) != order:
                return False
            self._heed_lease()
            was_training, began = self._is_training, self._clock()
            waiting = list(sender.work(order, lease, at_rest=not was_training))
            took = self._clock() - began
            if waiting:
                self._show(waiting, sender.damaged)
                if waiting[0].name == last:  # gone before its turn, or changed meanwhile
                    self._sleep(_POLL_SECONDS)
                last = self._sent_for(max(_POLL_SECONDS, _REST * took), waiting, order)
            elif was_training:
                self._show(waiting, sender.damaged)
                self._sleep(max(_POLL_SECONDS, _REST * took))
            else:
                self._show(waiting, sender.damaged, now=True)
                return True

    def _sent_for(self, seconds: float, waiting: list[Work], order: Order) -> str:
        """Send what is waiting for some time, after which something else may be more urgent; return the last's name."""
        until = self._clock() + seconds
        for work in waiting:
            self._heed_lease()
            work.do()
            self._state = replace(self._state, sent_files=self._state.sent_files + 1)
            if self._clock() >= until or read_order(self._folder) != order:
                break
        return work.name

    def _sent_piece(self, count: int) -> None:
        self._state = replace(self._state, sent_bytes=self._state.sent_bytes + count)
        self._heed_lease()

    def _heed_lease(self) -> None:
        if self._lost is not None:
            raise self._lost

    @property
    def _is_training(self) -> bool:
        return is_locked(self._folder.root)

    def _show_problem(self, problem: str, *, lost: bool = False) -> None:
        since = self._state.problem_since if self._state.problem else utc_now()
        self._write(replace(self._state, problem=problem, problem_since=since, lost=lost))

    def _show(self, waiting: list[Work], damaged: str, *, now: bool = False) -> None:
        before = self._state
        at = "" if waiting or damaged else before.complete_at if before.complete_at and not now else utc_now()
        state = replace(
            before,
            problem="",
            problem_since="",
            damaged=damaged,
            lost=False,
            waiting_files=len(waiting),
            waiting_bytes=sum(work.size for work in waiting),
            complete_at=at,
        )
        is_news = bool(before.problem) or damaged != before.damaged or bool(at) != bool(before.complete_at)
        if now or is_news or self._clock() - self._shown_at >= _SHOW_SECONDS:
            self._write(state)
        self._state = state

    def _write(self, state: State) -> None:
        self._state, self._shown_at = state, self._clock()
        write_state(self._folder, state)


def _forget_parts(store: Store, prefixes: Iterable[str]) -> None:
    """Have the store forget what uploads that were cut off have left; what keeps it from that keeps nobody waiting."""
    try:
        for prefix in prefixes:
            store.forget_parts(prefix)
    except MirrorError as error:
        _logger.warning("the mirror may keep parts of uploads that were cut off: %s", error)


def main(root: Path) -> int:
    """Send for the experiment's folder `root`; return the exit code."""
    folder = ExperimentFolder(root=root)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _logger.setLevel(logging.INFO)
    with suppress(OSError):
        give_way()
    try:
        # One that is about to end may have missed what this one was started for.
        with hold_lock(agent_lock(folder), wait_seconds=_PREDECESSOR_SECONDS):
            state = Agent(folder).run()
            return 1 if state.problem or state.damaged else 0
    except Timeout:
        return 0  # a trainer's agent, which sees what is new
    except UserError as error:
        _logger.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
