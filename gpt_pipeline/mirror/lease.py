"""One writer at a time for a training, by numbered terms.

A term begins when someone creates its lease, which a store lets only one do; its holder shows life by an object that it
rewrites. Another machine may begin the next term once it has watched that object stand still for
`SILENT_SECONDS` of its own time, so that no clocks are compared, or once the holder has said that it is done. What a
term's writer sends lies in the term's own folder. So one that was suspended, or cut off, and wakes up after it
lost its lease can write nothing into the folder of the one that took over.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpt_pipeline.errors import LockedError
from gpt_pipeline.mirror.names import alive_name, lease_name, leases_prefix, term_of_lease
from gpt_pipeline.mirror.store import MirrorError, Store
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import parse_json
from gpt_pipeline.storage.lock import SILENT_SECONDS
from gpt_pipeline.storage.manifest import utc_now

_POLL_SECONDS = 5.0


class LeaseLostError(MirrorError):
    """Another machine, or another process of this one, writes this training now."""

    def __init__(self, message: str, *, own: bool = False) -> None:
        super().__init__(message)
        self.own = own
        """Whether it is a process of the same folder on the same machine, such as a trainer that has just started."""


class LeaseHeldError(LockedError, MirrorError):
    """Another machine, which is alive, writes this training."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who began a term."""

    term: int
    owner: str
    """An id that a writer keeps in the experiment's folder, so that it knows its own term again."""

    host: str
    since: str
    """UTC, ISO 8601, by the holder's clock: for people only."""

    fresh: bool = False
    """Whether the training began anew with this term, so that earlier ones are none of it."""

    def is_own(self, owner: str) -> bool:
        """Whether it is `owner` on this machine: a folder that was copied to another one has the same owner."""
        return (self.owner, self.host) == (owner, socket.gethostname())

    @property
    def in_words(self) -> str:
        return f"{self.host}, since {self.since}"


@dataclass
class Lease:
    """A term that this process writes."""

    store: Store
    training: str
    """Its place in the mirror: `names.training_prefix`."""

    holder: Holder
    first_term: int
    """The first term that belongs to the training as it is now; see `Holder.fresh`."""

    _nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    _beats: int = 0

    @property
    def term(self) -> int:
        return self.holder.term

    def renew(self) -> None:
        """Show life.

        Raises:
            LeaseLostError: another machine began a term, or another process writes this one.
            MirrorError: the store fails; the lease is as it was.
        """
        newest = newest_holder(self.store, self.training)
        if newest is not None and newest.term > self.term:
            raise lost_to(self.training, newest, own=newest.is_own(self.holder.owner))
        beat = _read(self.store, alive_name(self.training, self.term)) if self._beats else None
        if beat is not None and beat.get("nonce") != self._nonce:
            host = beat.get("host")
            raise _lost(self.training, f"another process of this folder, on {host}", own=host == self.holder.host)
        self._beat()

    def release(self) -> None:
        """Say that the next writer need not wait."""
        self._beat(released=True)

    def _beat(self, *, released: bool = False) -> None:
        self._beats += 1
        sign = {"nonce": self._nonce, "beat": self._beats, "host": socket.gethostname(), "released": released}
        self.store.put_bytes(alive_name(self.training, self.term), _text(sign))


def acquire(
    store: Store,
    training: str,
    *,
    owner: str,
    fresh: bool = False,
    say: Say,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Return the lease of a training, after watching an earlier holder for `SILENT_SECONDS` if need be.

    `fresh` begins a term in which the training starts over.

    Raises:
        LeaseHeldError: another machine holds it and shows life, or another process of this one.
        MirrorError: the store fails, does not grant leases, or `stopped` became true.
    """
    while True:
        holders = _holders(store, training)
        newest = holders[-1] if holders else None
        if newest is not None:
            if not newest.is_own(owner):
                watch = _Watch(say=say, stopped=stopped, clock=clock, sleep=sleep)
                watch.until_silent(store, training, newest)
            elif not fresh:
                lease = Lease(store, training, newest, _first_term(holders))
                lease.renew()
                return lease
        term = 1 if newest is None else newest.term + 1
        holder = Holder(term=term, owner=owner, host=socket.gethostname(), since=utc_now(), fresh=fresh)
        if not _create(store, training, holder):
            continue  # another machine was faster, and is watched now
        lease = Lease(store, training, holder, _first_term([*holders, holder]))
        lease.renew()
        return lease


def newest_holder(store: Store, training: str) -> Holder | None:
    """Return who began the newest term; None if there is none yet."""
    terms = _terms(store, training)
    return _holder(store, training, terms[-1]) if terms else None


def first_term(store: Store, training: str) -> int:
    """Return the first term that belongs to the training as it is now; 1 if there is none yet."""
    return _first_term(_holders(store, training))


def grants_leases(store: Store, probe: str) -> bool:
    """Whether the store refuses to create an object that there is: some that speak S3 overwrite it.

    `probe` is there afterwards.

    Raises:
        MirrorError: the store fails; `probe` is removed if that can still be done.
    """
    store.create(probe, b"1")  # what fails here has written nothing, and is not asked to remove it
    try:
        return not store.create(probe, b"2")
    except MirrorError:
        with suppress(MirrorError):
            store.remove([probe])
        raise


def _create(store: Store, training: str, holder: Holder) -> bool:
    name = lease_name(training, holder.term)
    content = {"owner": holder.owner, "host": holder.host, "since": holder.since, "fresh": holder.fresh}
    if not store.create(name, _text({**content, "id": uuid.uuid4().hex})):
        return False
    if store.create(name, b"{}"):
        store.remove([name])
        raise MirrorError(
            f"the mirror {store.url} overwrites an object that should only be created if there is none "
            "(If-None-Match is ignored), so two machines could write one training; need a store that heeds it"
        )
    return True


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """Watches another holder, in this machine's own time."""

    say: Say
    stopped: Callable[[], bool]
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def until_silent(self, store: Store, training: str, holder: Holder) -> None:
        """Return once the holder is done, or has shown no life for as long as a living one ever does."""
        name = alive_name(training, holder.term)
        seen = _read(store, name)
        if (seen or {}).get("released"):
            return
        patience = SILENT_SECONDS
        self.say(
            f"The mirror's copy of this training was last written by {holder.in_words}. Watching for up to "
            f"{patience:.0f} s whether that one is still at work."
        )
        until = self.clock() + patience
        while self.clock() < until:
            if self.stopped():
                raise MirrorError("stopped while waiting for the mirror's lease")
            self.sleep(min(_POLL_SECONDS, patience / 4))
            now = _read(store, name)
            if (now or {}).get("released"):
                return
            if now != seen:
                raise LeaseHeldError(
                    f"{training} is being written to the mirror {store.url} by {holder.in_words}, which is at work; "
                    "stop it there, or wait for its end"
                )
        self.say(f"{holder.host} has shown no life for {patience:.0f} s; taking over.")


def lost_to(training: str, holder: Holder, *, own: bool = False) -> LeaseLostError:
    """Return the error of a writer that finds another holder's term after its own."""
    return _lost(training, holder.in_words, own=own)


def _lost(training: str, whom: str, *, own: bool) -> LeaseLostError:
    return LeaseLostError(
        f"the mirror's copy of {training} is now written by {whom}. Two machines must not write one training, so "
        "nothing is sent from here any more",
        own=own,
    )


def _terms(store: Store, training: str) -> list[int]:
    found = (term_of_lease(name) for name in store.sizes(leases_prefix(training)))
    return sorted(term for term in found if term is not None)


def _holders(store: Store, training: str) -> list[Holder]:
    found = [_holder(store, training, term) for term in _terms(store, training)]
    return [each for each in found if each is not None]


def _holder(store: Store, training: str, term: int) -> Holder | None:
    value = _read(store, lease_name(training, term))
    if value is None:
        return None
    texts = {name: str(value.get(name, "unknown")) for name in ("owner", "host", "since")}
    return Holder(term=term, **texts, fresh=value.get("fresh") is True)


def _first_term(holders: list[Holder]) -> int:
    return max((each.term for each in holders if each.fresh), default=1)


def _read(store: Store, name: str) -> dict[str, Any] | None:
    content = store.get_bytes(name)
    try:
        value = {} if content is None else parse_json(content)
    except ValueError:
        return {"unreadable": repr(content)}
    return value if content is not None and isinstance(value, dict) else None


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
