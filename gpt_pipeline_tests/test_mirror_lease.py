import dataclasses
import errno
import os
import socket
from pathlib import Path

import pytest

from gpt_pipeline.mirror import lease as leases
from gpt_pipeline.mirror.check import check_mirror
from gpt_pipeline.mirror.lease import LeaseHeldError, LeaseLostError, acquire, first_term, grants_leases
from gpt_pipeline.mirror.names import alive_name, lease_name
from gpt_pipeline.mirror.store import FolderStore, MirrorError
from gpt_pipeline_tests.mirrors import Clock, FailingStore, folder_mirror

TRAINING = "Demo/training-aaaa"


@pytest.fixture
def store(tmp_path: Path) -> FailingStore:
    return FailingStore(folder_mirror(tmp_path / "mirror"))


def take(store, owner: str, *, fresh: bool = False, clock: Clock | None = None, said: list[str] | None = None):
    clock = clock or Clock()
    say = (said if said is not None else []).append
    return acquire(store, TRAINING, owner=owner, fresh=fresh, say=say, clock=clock, sleep=clock.sleep)


def test_lease_first_writer_begins_term_one(store):
    assert take(store, "a").term == 1


def test_lease_of_living_writer_is_refused_with_its_name_and_time(store):
    first = take(store, "a")
    clock = Clock()

    def beat(seconds: float) -> None:
        clock.now += seconds
        first.renew()

    with pytest.raises(LeaseHeldError) as error:
        acquire(store, TRAINING, owner="b", say=lambda _: None, clock=clock, sleep=beat)
    assert socket.gethostname() in str(error.value)
    assert first.holder.since in str(error.value)
    assert clock.now < 60, "the first sign of life is enough"


def test_lease_of_silent_writer_is_taken_over_after_watching_it(store):
    take(store, "a")
    clock, said = Clock(), []
    assert take(store, "b", clock=clock, said=said).term == 2
    assert clock.now >= leases.SILENT_SECONDS
    assert "taking over" in said[-1]


def test_lease_of_writer_with_a_wrong_clock_counts_by_observed_silence(store, monkeypatch):
    monkeypatch.setattr(leases, "utc_now", lambda: "2099-01-01T00:00:00Z")  # a day in the future is no proof of life
    take(store, "a")
    monkeypatch.setattr(leases, "utc_now", lambda: "1999-01-01T00:00:00Z")
    assert take(store, "b").term == 2


def test_lease_released_is_taken_over_at_once(store):
    take(store, "a").release()
    clock = Clock()
    assert take(store, "b", clock=clock).term == 2
    assert clock.now == 0


def test_lease_of_own_folder_is_taken_up_again_without_a_wait(store):
    take(store, "a")
    clock = Clock()
    assert take(store, "a", clock=clock).term == 1
    assert clock.now == 0


def test_lease_of_copied_folder_on_another_host_is_watched(store, monkeypatch):
    take(store, "a")
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    clock = Clock()
    assert take(store, "a", clock=clock).term == 2
    assert clock.now >= leases.SILENT_SECONDS


def test_lease_writer_that_was_suspended_learns_that_it_lost(store):
    first = take(store, "a")
    take(store, "b")
    with pytest.raises(LeaseLostError, match="now written by") as error:
        first.renew()
    assert not error.value.own


def test_lease_second_process_of_one_folder_ends_the_first(store):
    first = take(store, "a")
    take(store, "a")
    with pytest.raises(LeaseLostError, match="another process of this folder") as error:
        first.renew()
    assert error.value.own


def test_lease_that_a_fresh_start_of_its_own_folder_took_is_lost_to_itself(store):
    first = take(store, "a")
    take(store, "a", fresh=True)
    with pytest.raises(LeaseLostError) as error:
        first.renew()
    assert error.value.own


def test_lease_race_lets_one_of_two_win(store):
    """The other one creates the same term between the look and the creation."""
    take(store, "a").release()
    rival = FolderStore(store.url)
    raced = []

    def overtake(name: str) -> None:
        if name.endswith("000002.json") and not raced:
            raced.append(name)
            take(rival, "b").release()

    store.before = overtake
    assert take(store, "c").term == 3
    assert raced


def test_lease_fresh_start_leaves_earlier_terms_out(store):
    take(store, "a")
    assert take(store, "a", fresh=True).term == 2
    assert first_term(store, TRAINING) == 2
    take(store, "b")
    assert first_term(store, TRAINING) == 2


def test_lease_with_half_written_sign_of_life_counts_as_silence(store):
    take(store, "a")
    store.put_bytes(alive_name(TRAINING, 1), b'{"nonce": "x", "be')
    assert take(store, "b").term == 2


def test_lease_on_store_that_ignores_conditions_is_refused(tmp_path):
    class Careless(FolderStore):
        def create(self, name: str, content: bytes) -> bool:
            self.put_bytes(name, content)
            return True

    store = Careless(folder_mirror(tmp_path / "mirror"))
    with pytest.raises(MirrorError, match="If-None-Match"):
        take(store, "a")
    assert not grants_leases(store, "probe")


def test_check_of_a_store_that_fails_between_leaves_nothing_in_it(tmp_path, monkeypatch):
    class FailsOnce(FolderStore):
        asked = 0

        def create(self, name: str, content: bytes) -> bool:
            self.asked += 1
            if self.asked == 2:
                raise MirrorError("it is down")
            return super().create(name, content)

    monkeypatch.setattr("gpt_pipeline.mirror.check.open_store", FailsOnce)
    with pytest.raises(MirrorError, match="it is down"):
        check_mirror(folder_mirror(tmp_path / "mirror"))
    assert not [path for path in (tmp_path / "mirror").rglob("*") if path.is_file()]


def test_folder_without_hard_links_grants_leases_all_the_same(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert grants_leases(store, "check/one")
    assert store.get_bytes("check/one") == b"1"
    store.put_bytes(lease_name(TRAINING, 1), b"")  # whose writer died before it had written it
    clock = Clock()
    assert take(store, "b", clock=clock).term == 2
    assert clock.now >= leases.SILENT_SECONDS


def test_lease_while_the_store_is_down_is_kept(store):
    lease = take(store, "a")
    store.is_down = True
    with pytest.raises(MirrorError) as error:
        lease.renew()
    assert not isinstance(error.value, LeaseLostError)
    store.is_down = False
    dataclasses.replace(lease, store=FolderStore(store.url)).renew()
