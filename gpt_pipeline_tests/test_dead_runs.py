"""Runs whose process is gone are ended in Dagster's history; those that may live are not."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.launchers.submission import only_follower
from gpt_pipeline.orchestration import dead_runs
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.dead_runs import (
    PROCESS_TAG,
    REQUESTER_TAG,
    at_work,
    close_dead_runs,
    owners_of,
    process_of,
    process_tag,
)
from gpt_pipeline.orchestration.keys import COMPARISON_JOB
from gpt_pipeline.orchestration.stoppable import stoppable
from gpt_pipeline.project import Project
from gpt_pipeline.storage.alive import show_life, silence
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline_tests.projects import TinyProject

STARTED, FAILED = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
DEAD = dataclasses.replace(ProcessId.here(), boot="an earlier boot")


class _History:
    """An experiment, and a Dagster history in which its jobs have runs."""

    def __init__(self, root: Path) -> None:
        project = TinyProject(root=root)
        project.write_experiment("tiny")
        self.experiment: Experiment = project.experiment("tiny")
        self.experiment.folder.root.mkdir(parents=True)
        self._definitions = build_definitions(Project(root=root, experiments=root / "experiments"))
        self.instance = dg.DagsterInstance.ephemeral()

    def add(
        self,
        job: str = "run_tiny",
        *,
        process: ProcessId | None = None,
        status: Any = STARTED,
        repeats: str | None = None,
        assets: frozenset[dg.AssetKey] | None = None,
    ) -> str:
        """Add a run of `job`, which may repeat another one, or be of some assets only; return its id."""
        tags = {} if process is None else {PROCESS_TAG: json.dumps(dataclasses.asdict(process))}
        run = self.instance.create_run_for_job(
            self._definitions.resolve_job_def(job),
            status=status,
            tags=tags,
            root_run_id=repeats,
            parent_run_id=repeats,
            asset_selection=assets,
        )
        return str(run.run_id)

    def close(self) -> list[str]:
        return close_dead_runs(self.instance, [self.experiment])

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def leave_heartbeat(self, run_id: str, *, minutes: float) -> None:
        path = self.experiment.folder.root / "heartbeat.json"
        write_json(path, {"process": dataclasses.asdict(DEAD), "run": run_id, "step": 7})
        os.utime(path, (time.time() - 60 * minutes,) * 2)


@pytest.fixture
def history(tmp_path: Path) -> _History:
    return _History(tmp_path)


@pytest.mark.parametrize("job", ["run_tiny", "report_tiny"])
def test_close_dead_runs_ends_a_run_whose_process_is_gone(history: _History, job: str) -> None:
    run = history.add(job, process=DEAD)
    assert history.close() == [run]
    assert history.status(run) == FAILED
    failures = [entry.message for entry in history.instance.all_logs(run) if "ended without a word" in entry.message]
    assert len(failures) == 1
    assert history.close() == []


@pytest.mark.parametrize(
    "assets", [["tiny", "training"], ["data_sample_300_61aeee", "raw_synth"]], ids=["its own", "shared data"]
)
def test_close_dead_runs_ends_a_run_of_assets_that_somebody_picked_by_hand(
    history: _History, assets: list[str]
) -> None:
    picked = frozenset([dg.AssetKey(assets)])
    dead = history.add("__ASSET_JOB", process=DEAD, assets=picked)
    alive = history.add("__ASSET_JOB", process=ProcessId.here(), assets=picked)
    assert history.close() == [dead]
    assert (history.status(dead), history.status(alive)) == (FAILED, STARTED)


def test_owners_of_a_run_are_those_whose_assets_were_picked_else_all(history: _History) -> None:
    tiny = history.experiment
    other = dataclasses.replace(tiny, file=tiny.file.with_name("other.yaml"))

    def owners(job: str, *assets: str) -> list[str]:
        picked = frozenset(dg.AssetKey(each.split("/")) for each in assets)
        run = dg.DagsterRun(job_name=job, asset_selection=picked or None)
        return [each.name for each in owners_of(run, [tiny, other])]

    assert owners("evaluate_other") == ["other"]
    assert owners("__ASSET_JOB", "other/evaluation", "data_1/raw_synth") == ["other"]
    assert owners("__ASSET_JOB", "data_1/raw_synth") == owners("compare_experiments") == ["tiny", "other"]
    assert owners("run_of_another_project") == []


def test_close_dead_runs_leaves_the_living_the_unknown_and_the_ended(history: _History) -> None:
    living = history.add(process=ProcessId.here())
    elsewhere = history.add(process=dataclasses.replace(DEAD, host="elsewhere"))
    of_the_ui = history.add()
    ended = history.add(process=DEAD, status=dg.DagsterRunStatus.SUCCESS)
    assert history.close() == []
    for run in (living, elsewhere, of_the_ui):
        assert history.status(run) == STARTED
    assert history.status(ended) == dg.DagsterRunStatus.SUCCESS


def test_close_dead_runs_ends_the_run_whose_trainer_gave_no_sign_for_long(history: _History) -> None:
    run, other = history.add(), history.add()
    history.leave_heartbeat(run, minutes=9)
    assert history.close() == []
    history.leave_heartbeat(run, minutes=11)
    with folder_lock(history.experiment.folder.root, purpose="training"):  # it sleeps, or its disk does
        assert history.close() == []
    with only_follower(history.experiment.folder):  # its job lost its node, and waits for another
        assert history.close() == []
    assert history.close() == [run]
    assert (history.status(run), history.status(other)) == (FAILED, STARTED)


ELSEWHERE = [
    dataclasses.replace(ProcessId.here(), host="elsewhere", boot="of it"),
    dataclasses.replace(ProcessId.here(), pid=2**22 + 1, namespace="pid:[1]"),  # in another container of this host
    dataclasses.replace(ProcessId.here(), boot="of a host of the same name", namespace="pid:[1]"),
]


@pytest.mark.parametrize("process", ELSEWHERE, ids=["host", "container", "container on another host"])
def test_close_dead_runs_ends_a_run_elsewhere_once_it_is_silent_and_holds_no_lock(
    history: _History, process: ProcessId
) -> None:
    run, base = history.add("evaluate_tiny", process=process), history.experiment.folder.base
    with show_life(base, process, every=3600):
        (sign,) = (base / ".alive").iterdir()
        kept = base / "as a killed one leaves it"
        os.utime(sign, (time.time() - 3600,) * 2)
        assert history.close() == []  # suspended, say: it holds its lock
        shutil.copy2(sign, kept)
    kept.rename(sign)
    os.utime(sign, (time.time() - 60,) * 2)
    assert history.close() == []  # its lock may not be seen here
    os.utime(sign, (time.time() - 130,) * 2)
    assert history.close() == [run]
    assert not sign.exists()


def test_close_dead_runs_leaves_a_run_of_two_base_folders_that_shows_life_in_one(history: _History) -> None:
    tiny, process = history.experiment, ELSEWHERE[0]
    storage = dataclasses.replace(tiny.config.storage, base_folder=str(tiny.folder.base / "other"))
    config = dataclasses.replace(tiny.config, storage=storage)
    other = dataclasses.replace(tiny, file=tiny.file.with_name("other.yaml"), config=config)
    bases = {each.folder.base for each in (tiny, other)}
    assert len(bases) == 2
    shared = frozenset([dg.AssetKey(["data_sample_300_61aeee", "raw_synth"])])
    run = history.add("__ASSET_JOB", process=process, assets=shared)
    history.leave_heartbeat(run, minutes=11)  # of a trainer that died, after which the run went on
    for base in bases:
        with show_life(base, process, every=3600):
            for old in bases - {base}:
                sign = old / ".alive" / next((base / ".alive").iterdir()).name
                sign.parent.mkdir(parents=True, exist_ok=True)
                sign.touch()
                os.utime(sign, (time.time() - 3600,) * 2)  # a killed step left it
            assert close_dead_runs(history.instance, [tiny, other]) == []
    assert close_dead_runs(history.instance, [tiny, other]) == [run]


def test_process_tag_names_this_process() -> None:
    assert ProcessId.from_text(json.loads(process_tag("a run")[PROCESS_TAG])) == ProcessId.here()


@pytest.mark.parametrize(
    "tag", [process_tag("the first")[PROCESS_TAG], ProcessId.here().as_text], ids=["now", "before"]
)
def test_process_of_a_run_that_was_started_again_is_not_that_of_the_first(history: _History, tag: str) -> None:
    run = history.instance.get_run_by_id(history.add(process=ProcessId.here()))
    assert run is not None
    assert process_of(run) == ProcessId.here()
    again = run._replace(run_id="again", parent_run_id=run.run_id, tags={PROCESS_TAG: tag})
    assert process_of(again) is None


def _of_the_daemon(history: _History, *, pid: int, requested_by: ProcessId, repeats: str | None = None) -> str:
    """A run that began, as process `pid`, and whose step still waits for its place."""
    run_id = _of_the_ui(history, pid=pid, repeats=repeats)
    history.instance.add_run_tags(run_id, {REQUESTER_TAG: json.dumps(dataclasses.asdict(requested_by))})
    return run_id


def _of_the_ui(history: _History, *, pid: int, minutes: float = 0, repeats: str | None = None) -> str:
    """The same, asked for by a person on Dagster's pages; it was last heard of so many minutes ago."""
    run_id = history.add("evaluate_tiny", repeats=repeats)
    entry = dg.EventLogEntry(
        error_info=None,
        level="debug",
        user_message="",
        run_id=run_id,
        timestamp=time.time() - 60 * minutes,
        job_name="evaluate_tiny",
        dagster_event=_run_start(pid),
    )
    history.instance.event_log_storage.store_event(entry)
    return run_id


def _run_start(pid: int) -> dg.DagsterEvent:
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name="evaluate_tiny")
    return event._replace(pid=pid)


def test_close_dead_runs_ends_a_run_of_the_daemon_that_died_before_its_step(history: _History, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    history.instance = dg.DagsterInstance.local_temp(str(tmp_path / "home"))  # with the launcher that daemons use
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = _of_the_daemon(history, pid=ended.pid, requested_by=ProcessId.here())
    before_boot = _of_the_daemon(history, pid=os.getpid(), requested_by=DEAD)
    alive = _of_the_daemon(history, pid=os.getpid(), requested_by=ProcessId.here())
    elsewhere = _of_the_daemon(
        history, pid=ended.pid, requested_by=dataclasses.replace(ProcessId.here(), host="elsewhere")
    )
    assert set(history.close()) == {dead, before_boot}
    assert (history.status(alive), history.status(elsewhere)) == (STARTED, STARTED)


def test_close_dead_runs_leaves_one_that_was_started_again_after_the_machine_that_asked_went_down(
    history: _History, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    history.instance = dg.DagsterInstance.local_temp(str(tmp_path / "home"))
    first = _of_the_daemon(history, pid=os.getpid(), requested_by=DEAD)
    _of_the_daemon(history, pid=os.getpid(), requested_by=DEAD, repeats=first)
    assert history.close() == [first]


def test_close_dead_runs_ends_a_run_of_the_ui_that_died_before_its_step(history: _History, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    history.instance = dg.DagsterInstance.local_temp(str(tmp_path / "home"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = _of_the_ui(history, pid=ended.pid, minutes=11), _of_the_ui(history, pid=os.getpid(), minutes=11)
    container = _of_the_ui(history, pid=ended.pid, minutes=5)  # whose numbers are not ours, and which waits in a pool
    assert history.close() == [dead]
    assert (history.status(alive), history.status(container)) == (STARTED, STARTED)


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
def test_close_dead_runs_ends_a_run_whose_launcher_died_before_it_began(
    history: _History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dg.DagsterRunStatus
) -> None:
    (tmp_path / "home").mkdir()
    history.instance = dg.DagsterInstance.local_temp(str(tmp_path / "home"))
    run_ids = []
    for requester in (DEAD, ProcessId.here()):
        run_ids.append(history.add("evaluate_tiny", status=status))
        tag = json.dumps(dataclasses.asdict(requester))
        history.instance.add_run_tags(run_ids[-1], {REQUESTER_TAG: tag})
    assert history.close() == []  # it may begin any moment
    monkeypatch.setattr(dead_runs, "_TIME_TO_BEGIN", timedelta(0))
    assert history.close() == run_ids[:1]


@pytest.fixture
def seen(history: _History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What another process sees of a run of `tiny` as it asks for a place in a pool."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    instance = dg.DagsterInstance.local_temp(str(tmp_path / "home"))
    instance.event_log_storage.set_concurrency_slots("training", 1)

    @dg.op(pool="training")
    def step() -> None:
        pass

    @dg.job(name="run_tiny", executor_def=stoppable(dg.in_process_executor, [history.experiment]))
    def job() -> None:
        step()

    run, found = instance.create_run_for_job(job), {}
    claim = instance.event_log_storage.claim_concurrency_slot

    def look_and_claim(*wanted: Any) -> Any:
        again = instance.get_run_by_id(run.run_id)
        assert again is not None
        found["process"] = process_of(again)
        found["silence"] = silence(tmp_path / "storage", ProcessId.here())
        return claim(*wanted)

    monkeypatch.setattr(instance.event_log_storage, "claim_concurrency_slot", look_and_claim)
    list(execute_run_iterator(InMemoryJob(job), run, instance))
    found["ended"] = instance.get_run_by_id(run.run_id)
    found["warnings"] = [entry.user_message for entry in instance.all_logs(run.run_id) if entry.level == 30]
    return found


def test_run_names_its_process_and_shows_its_life_before_it_waits_for_a_place(
    seen: dict[str, Any], tmp_path: Path
) -> None:
    assert (seen["process"], seen["silence"]) == (ProcessId.here(), 0.0)
    assert seen["ended"].is_success
    assert silence(tmp_path / "storage", ProcessId.here()) is None


def test_run_on_a_machine_without_the_base_folder_goes_on_and_says_so(
    history: _History, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    (tmp_path / "storage").write_text("no folder")
    seen = request.getfixturevalue("seen")
    assert (seen["process"], seen["silence"]) == (ProcessId.here(), None)
    assert seen["ended"].is_success
    assert "no sign of life" in "".join(seen["warnings"])


def test_run_that_another_process_takes_over_names_that_one(history: _History) -> None:
    run = history.instance.get_run_by_id(history.add(process=DEAD))
    assert run is not None
    with at_work(history.instance, run, [], warn=pytest.fail):
        again = history.instance.get_run_by_id(run.run_id)
    assert again is not None
    assert process_of(again) == ProcessId.here()


def test_run_of_several_experiments_shows_its_life_once_and_only_in_folders_that_are_there(
    history: _History, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    for name, base in {"same": "../storage", "far": "../not_mounted"}.items():
        path = project.write_experiment(name)
        path.write_text(path.read_text().replace("../storage", base))
    experiments = [history.experiment, project.experiment("same"), project.experiment("far")]
    run = history.instance.get_run_by_id(history.add())
    assert run is not None
    of_all = run._replace(job_name=COMPARISON_JOB)
    with at_work(history.instance, of_all, experiments, warn=pytest.fail):
        assert len(list((tmp_path / "storage" / ".alive").glob("*.lock"))) == 1
        assert not (tmp_path / "not_mounted").exists()


def test_run_whose_disk_goes_away_meanwhile_ends_well_and_says_so(
    history: _History, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def show_life_until_it_fails(*_: Any) -> Iterator[None]:
        yield
        raise OSError("read-only file system")

    monkeypatch.setattr(dead_runs, "show_life", show_life_until_it_fails)
    run, warnings = history.instance.get_run_by_id(history.add()), []
    assert run is not None
    with at_work(history.instance, run, [history.experiment], warn=warnings.append):
        pass
    assert "read-only file system" in "".join(warnings)
    with pytest.raises(KeyError), at_work(history.instance, run, [history.experiment], warn=warnings.append):
        raise KeyError


def test_close_dead_runs_leaves_one_that_dagster_will_resume(
    history: _History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.add(process=DEAD)
    monkeypatch.setattr(history.instance, "run_will_resume", lambda _: True)
    assert history.close() == []
