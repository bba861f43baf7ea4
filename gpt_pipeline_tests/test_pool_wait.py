"""A run of the command line waits for its place in a pool, says for whom, and takes the place of the dead."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqlEventLogStorage

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.dead_runs import PROCESS_TAG
from gpt_pipeline.orchestration.pool_wait import assign_free_places, wait_in_pools
from gpt_pipeline.project import Project
from gpt_pipeline.storage.alive import show_life
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject

FAR = dataclasses.replace(ProcessId.here(), host="far", pid=4711)
DEAD = dataclasses.replace(ProcessId.here(), started="earlier")


class _Pool:
    """A project with two experiments, and a history in which the pool `training` has one place."""

    def __init__(self, root: Path) -> None:
        self._tiny = TinyProject(root=root)
        for name in ("mine", "other"):
            self._tiny.write_experiment(name)
        self.project = Project(root=root, experiments=root / "experiments")
        self.base = self._tiny.experiment("other").folder.base
        self._definitions = build_definitions(self.project)
        (root / "home").mkdir()
        pools = {"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}}
        self.instance = dg.DagsterInstance.local_temp(str(root / "home"), overrides=pools)
        self.instance.event_log_storage.initialize_concurrency_limit_to_default("training")
        self.said: list[str] = []

    def add(self, experiment: str, process: ProcessId) -> str:
        """Add a run that has begun; return its id."""
        tags = {PROCESS_TAG: json.dumps(dataclasses.asdict(process))}
        job = self._definitions.resolve_job_def(f"run_{experiment}")
        status = dg.DagsterRunStatus.STARTED
        return str(self.instance.create_run_for_job(job, status=status, tags=tags).run_id)

    def add_picked(self, process: ProcessId, *experiments: str) -> str:
        """Add a run of the experiments' trainings, picked by hand; return its id."""
        tags = {PROCESS_TAG: json.dumps(dataclasses.asdict(process))}
        assets = frozenset(dg.AssetKey([name, "training"]) for name in experiments)
        job = self._definitions.resolve_job_def("__ASSET_JOB")
        status = dg.DagsterRunStatus.STARTED
        return str(self.instance.create_run_for_job(job, status=status, tags=tags, asset_selection=assets).run_id)

    def take(self, run_id: str) -> bool:
        """Ask for the place in the pool."""
        return self.instance.event_log_storage.claim_concurrency_slot("training", run_id, "step").is_claimed

    def wait(self, *, stopped: Callable[[], bool]) -> bool:
        """Ask for it as the command line does."""
        wait_in_pools(self.instance, self.project, say=self.said.append, stopped=stopped)
        return self.take(self.add("mine", ProcessId.here()))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Pool]:
    """One whose waits look again at once."""
    monkeypatch.setattr("gpt_pipeline.orchestration.pool_wait._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("gpt_pipeline.orchestration.pool_wait._ASK_SECONDS", 0.05)
    made = _Pool(tmp_path)
    with made.instance:
        yield made


def test_wait_says_who_has_the_place_and_ends_when_it_is_asked_to(pool: _Pool) -> None:
    with show_life(pool.base, FAR):
        holder = pool.add("other", FAR)
        assert pool.take(holder)
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            pool.wait(stopped=lambda: bool(pool.said))
    (text,) = pool.said
    assert "training of other, process 4711 on far, since 20" in text
    assert holder in text
    assert "pages" not in text  # its lock shows that it is alive


def test_wait_behind_a_run_of_several_experiments_names_none_of_them(pool: _Pool) -> None:
    with show_life(pool.base, FAR):
        assert pool.take(pool.add_picked(FAR, "mine", "other"))
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            pool.wait(stopped=lambda: bool(pool.said))
    assert "training of __ASSET_JOB, process 4711 on far, since 20" in pool.said[0]
    assert "pages" not in pool.said[0]


def test_wait_takes_the_place_of_another_experiments_dead_run(pool: _Pool) -> None:
    holder = pool.add("other", DEAD)
    assert pool.take(holder)
    assert pool.wait(stopped=lambda: False)
    run = pool.instance.get_run_by_id(holder)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE


def test_wait_takes_the_place_of_a_run_that_dies_elsewhere_meanwhile(pool: _Pool) -> None:
    holder = pool.add("other", FAR)
    assert pool.take(holder)
    with show_life(pool.base, FAR):
        (sign,) = (pool.base / ".alive").iterdir()
        name = sign.name
    sign.touch()  # as one that was killed leaves it

    def grow_old() -> bool:
        if pool.said and sign.exists():
            os.utime(sign, (time.time() - (130 if "silent" in pool.said[-1] else 40),) * 2)
        return False

    assert pool.wait(stopped=grow_old)
    assert "counts as dead" in pool.said[-2]
    assert holder in pool.said[-1]
    assert not (pool.base / ".alive" / name).exists()


def test_wait_behind_a_run_that_ended_without_freeing_its_place_frees_it(pool: _Pool) -> None:
    holder = pool.add("other", FAR)
    assert pool.take(holder)
    run = pool.instance.get_run_by_id(holder)
    assert run is not None
    pool.instance.report_run_failed(run)
    assert pool.wait(stopped=lambda: False)


def test_wait_that_begins_just_after_the_place_became_free_gets_it(
    pool: _Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = pool.add("other", ProcessId.here())
    assert pool.take(holder)
    storage = pool.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    join_the_list = storage.add_pending_step

    def join_too_late(*arguments: Any, **options: Any) -> None:  # found the place taken, and hands over to the holder
        storage.free_concurrency_slot_for_step(holder, "step")
        join_the_list(*arguments, **options)

    monkeypatch.setattr(storage, "add_pending_step", join_too_late)
    until = time.monotonic() + 20
    assert pool.wait(stopped=lambda: time.monotonic() > until)


def test_free_place_that_nobody_was_handed_goes_to_one_who_waits(pool: _Pool) -> None:
    storage = pool.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    waiting = [pool.add(name, ProcessId.here()) for name in ("mine", "other")]
    for run in waiting:
        storage.add_pending_step("training", run, "step", should_assign=False)
    for _ in range(2):  # there is one place
        assign_free_places(pool.instance, pool.project, ["training"])
    assert sorted(pool.take(run) for run in waiting) == [False, True]


def test_free_place_is_handed_over_once_by_two_who_look_at_once(pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = pool.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    for name in ("mine", "other"):
        storage.add_pending_step("training", pool.add(name, ProcessId.here()), "step", should_assign=False)
    assign = storage.assign_pending_steps

    def assign_late(pools: Sequence[str]) -> None:  # the other looks meanwhile
        time.sleep(0.5)
        assign(pools)

    monkeypatch.setattr(storage, "assign_pending_steps", assign_late)
    with ThreadPoolExecutor(2) as both:
        for _ in range(2):
            both.submit(assign_free_places, pool.instance, pool.project, ["training"])
    assert storage.get_concurrency_info("training").assigned_step_count == 1


def test_wait_behind_a_run_of_which_nothing_is_known_names_the_remedy(pool: _Pool) -> None:
    assert pool.take(pool.add("other", FAR))  # of an earlier version, or with a base folder of its own
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        pool.wait(stopped=lambda: bool(pool.said))
    assert "terminate this run on Dagster's pages" in pool.said[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_run_of_an_experiment_says_for_whom_it_waits_and_a_signal_stops_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny", max_steps=1_000_000)
    first = project.start("run", "experiments/tiny.yaml")
    heartbeat = project.experiment("tiny").folder.root / "heartbeat.json"
    try:
        while not heartbeat.exists():
            assert first.poll() is None
            time.sleep(0.1)
        second = project.start("run", "experiments/tiny.yaml")
        assert second.stdout is not None
        lines = iter(second.stdout.readline, "")
        assert any("Waiting for a place" in line for line in lines)
        assert f"process {first.pid} on" in next(lines)
        second.send_signal(number)
        output_of(second)
        assert second.returncode == 130
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        output_of(first)
