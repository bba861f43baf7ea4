"""The start page: what it says of experiments in all their states, and whatever their files hold."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import dagster as dg
import pytest

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.newest_runs import NewestRuns
from gpt_pipeline.progress.at_work import RunAtWork
from gpt_pipeline.progress.stages import StageProgress
from gpt_pipeline.progress.status import NextStep, Status
from gpt_pipeline.progress.training import TrainingProgress
from gpt_pipeline.project import Project
from gpt_pipeline.start_page.card import Addresses, Card
from gpt_pipeline.start_page.page import STATIC, read_static, render_cards, render_page
from gpt_pipeline.start_page.state import NewestRun, state_of
from gpt_pipeline.start_page.watch import Watch
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.tracking.addresses import run_page, runs_page
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import wait

ADDRESSES = Addresses(
    assets="/assets",
    runs="/runs",
    sensors="/automation",
    comparison="/assets/comparison",
    comparison_page="/start/comparison",
    job=lambda experiment: f"/jobs/run_{experiment.name}",
    mlflow_runs=partial(runs_page, "http://127.0.0.1:5000/"),
    report=lambda key: f"/start/report/{key}",
)
HOSTILE = "<script>alert(1)</script>\" onload='x' \u202e\x1b[31m &amp; {{ 7*7 }}"


@pytest.fixture
def project(tmp_path: Path) -> TinyProject:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    return project


def watch(project: TinyProject, runs: Mapping[str, NewestRun] = {}, clock: Callable[[], float] = lambda: 0.0) -> Watch:
    here = Project(root=project.root, experiments=project.root / "experiments")
    return Watch(here, newest_runs=lambda _: runs, addresses=ADDRESSES, clock=clock, patience=60)


def page(project: TinyProject) -> str:
    found = watch(project)
    return render_page(found.cards(), experiments=found.project.experiments, addresses=ADDRESSES)


def train_lines(project: TinyProject, *steps: int, stem: str = "tiny") -> None:
    """Append lines as a trainer does."""
    metrics = project.experiment(stem).folder.metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    with metrics.open("a", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"kind": "train", "step": step, "train_loss": 9.0 / step, "eta_seconds": 60.0}) + "\n"
            for step in steps
        )


def write_evaluation(project: TinyProject, *answers: Mapping[str, Any], **changed: Any) -> None:
    experiment = project.experiment("tiny")
    experiment.folder.evaluations.mkdir(parents=True, exist_ok=True)
    value = {
        "fingerprint": "f" * 64,
        "key": "step_00000008",
        "checkpoint": {"step": 8, "weights_sha256": "w", "training_fingerprint": "t"},
        "config": {},
        "upstream": {},
        "metrics": {"val_loss": 2.5, "correct": 0.5, "num_questions": 2.0},
        "answers": answers,
        "started_at": "2026-01-01T00:00:00Z",
        "created_at": "2026-01-01T00:00:09Z",
        "seconds": 9.0,
        "device": "cpu",
        "versions": {},
        **changed,
    }
    path = experiment.folder.evaluations / f"step_00000008-{'f' * 12}.json"
    path.write_text(json.dumps(value), encoding="utf-8")


STAGES = ("raw_synth", "english_parquet", "token_shards")


def status(states: Sequence[str], training: str, **changes: Any) -> Status:
    """Return a status with the states of the data's stages and of the training."""
    progress = TrainingProgress(
        job=None,
        state=training,
        step=0 if training == "absent" else 5,
        max_steps=12,
        process=7 if training == "running" else None,
        host="host" if training == "running" else None,
        train_loss=None,
        val_loss=None,
        val_step=None,
        tokens_per_second=None,
        eta_seconds=None,
        damaged=(),
        of_other_settings=False,
        ended_before=False,
    )
    stages = tuple(
        StageProgress(name=name, state=state, files_done=1, files=4, size=0, folder=None)
        for name, state in zip(STAGES, states, strict=True)
    )
    base = Status(
        file=Path("tiny.yaml"),
        name="tiny",
        folder=None,
        problem=None,
        stages=stages,
        training=progress,
        next=NextStep(command="", why=""),
    )
    return dataclasses.replace(base, **changes)


DONE, NOTHING, PARTLY = ("finished",) * 3, ("absent",) * 3, ("finished", "partly", "absent")
SHARED = ("finished", "finished", "absent")


def test_newest_run_of_an_experiment_may_be_one_of_assets_picked_by_hand(project: TinyProject) -> None:
    experiment = project.experiment("tiny")
    statuses = dg.DagsterRunStatus
    with dg.DagsterInstance.ephemeral() as instance:
        newest = NewestRuns(instance)
        instance.add_run(dg.DagsterRun(job_name="run_tiny", status=statuses.FAILURE))
        assert newest([experiment])["tiny"].state == "failed"
        for assets, status in (
            (["tiny", "training"], statuses.NOT_STARTED),
            (["tiny", "evaluation"], statuses.STARTED),
        ):
            picked = frozenset([dg.AssetKey(assets)])
            instance.add_run(dg.DagsterRun(job_name="__ASSET_JOB", status=status, asset_selection=picked))
        assert newest([experiment])["tiny"].state == "waiting"


WORKING = NewestRun(state="working", page="/runs/1", process="process 8 on host")
AT_WORK = RunAtWork(
    run="1", job="run_tiny", experiment="tiny", process=ProcessId(host="far", pid=9, started="1"), since="2026-01-01"
)


@pytest.mark.parametrize(
    ("found", "run", "word", "detail"),
    [
        (status(NOTHING, "absent"), None, "not started", ""),
        (status(NOTHING, "absent"), dataclasses.replace(WORKING, state="waiting"), "waiting", "turn"),
        (status(PARTLY, "absent"), WORKING, "making data", "partly: 1 of 4 files, by process 8 on host"),
        (status(PARTLY, "absent"), None, "stopped", "part of its data is made"),
        (status(SHARED, "absent"), None, "not started", "part of its data is finished"),
        (status(DONE, "absent"), None, "not started", "data is finished"),
        (status(DONE, "absent"), WORKING, "training", "starting, by process 8 on host"),
        (status(PARTLY, "absent", at_work=AT_WORK), None, "making data", "by process 9 on far"),
        (status(DONE, "running"), WORKING, "training", "by process 7 on host"),
        (status(DONE, "running", is_evaluating=True, evaluations_pending=1), None, "training", "by process 7 on host"),
        (status(DONE, "stopped"), dataclasses.replace(WORKING, state="canceled"), "stopped", "continues"),
        (status(DONE, "stopped"), dataclasses.replace(WORKING, state="failed", error="no GPU"), "failed", "no GPU"),
        (status(DONE, "died"), None, "failed", "killed"),
        (status(DONE, "finished", is_evaluating=True, evaluations_pending=2), None, "evaluating", "2 checkpoints"),
        (status(DONE, "finished"), dataclasses.replace(WORKING, state="succeeded"), "finished", "after 5 steps"),
    ],
)  # fmt: skip
def test_state_of_an_experiment_is_a_word_and_who_is_at_work(
    found: Status, run: NewestRun | None, word: str, detail: str
) -> None:
    state = state_of(found, run)
    assert state.word == word
    assert detail in state.detail
    assert bool(state.detail) == bool(detail)


def test_page_of_a_project_without_experiments_says_how_to_begin(tmp_path: Path) -> None:
    text = page(TinyProject(root=tmp_path))
    assert "<article" not in text
    assert "gpt-pipeline init experiments/" in text


def test_page_shows_step_curve_answers_and_links(project: TinyProject) -> None:
    train_lines(project, 1, 2, 3)
    write_evaluation(project, {"question": "Two and two?", "expected": "4", "answer": "5", "correct": False})
    folder = project.experiment("tiny").folder
    folder.report.write_text("", encoding="utf-8")
    sent = {"store": "s", "run_id": "r", "fingerprint": "t", "experiment_id": "17"}
    (folder.root / "metrics.sent.json").write_text(json.dumps(sent), encoding="utf-8")
    (card,) = watch(project, {"tiny": NewestRun(state="canceled", page="/runs/abc")}).cards()
    text = render_cards([card])
    assert [link.address for link in card.links] == [
        "/start/report/tiny",
        "/jobs/run_tiny",
        "/runs/abc",
        "http://127.0.0.1:5000/#/experiments/17/runs?workflowType=machine_learning",
    ]
    assert dict(card.facts)["right answers"] == "1 of 2, 50 % (9–91 %), at step 8"
    assert "<polyline" in text
    assert "Two and two?" in text
    assert "not right" in text


def test_page_of_a_training_on_rewards_shows_them_and_not_the_loss_that_moves_the_answers(project: TinyProject) -> None:
    metrics = project.experiment("tiny").folder.metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    records = [{"kind": "train", "step": step, "train_loss": -7.0, "reward": step / 8} for step in (1, 2)]
    records.append({"kind": "validation", "step": 2, "val_loss": 3.0, "pass_at_1": 0.375})
    metrics.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    (card,) = watch(project).cards()
    facts = dict(card.facts)
    assert (facts["mean reward"], facts["pass@1, held out"]) == ("0.250", "about 0.375 at step 2")
    assert card.chart is not None
    assert {each.name: each.points for each in card.chart.series} == {
        "mean reward": ((1.0, 0.125), (2.0, 0.25)),
        "pass@1, held out": ((2.0, 0.375),),
    }
    assert "training loss" not in facts


def test_page_shows_continuations_without_a_verdict(project: TinyProject) -> None:
    text = {"beginning": "Once upon", "generated": HOSTILE, "original": " a midnight"}
    write_evaluation(project, continuations=(text,), metrics={"val_loss": 2.5})
    shown = page(project)
    assert [shown.count(part) for part in ("Once upon", " a midnight")] == [1, 1]
    assert "<script>" not in shown
    assert "right" not in shown.partition("Newest continuations")[2].partition("</details>")[0]


def test_page_shows_text_from_elsewhere_as_it_is_and_obeys_none_of_it(project: TinyProject) -> None:
    path = project.write_experiment("hostile", name=json.dumps(f"A {HOSTILE[:25]}"))
    assert path.is_file()
    write_evaluation(project, {"question": HOSTILE, "expected": HOSTILE, "answer": HOSTILE, "correct": False})
    (project.root / "experiments" / "<b>.yaml").write_text(f"experiment_name: {json.dumps(HOSTILE)}\nx: 1\n")
    text = page(project)
    assert "<script>" not in text
    assert "<b>.yaml" not in text
    assert "onload='x'" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "{{ 7*7 }}" in text
    assert text.count("&lt;script&gt;alert(1)") >= 4
    assert _ids_differ(text)


def _ids_differ(text: str) -> bool:
    ids = re.findall(r'\bid="([^"]*)"', text)
    return len(ids) == len(set(ids))


def test_page_has_each_id_once_whatever_experiments_are_called(project: TinyProject) -> None:
    for stem in ("lost", "begin", "news", "experiments", "page_lost"):
        project.write_experiment(stem)
    assert _ids_differ(page(project))


def test_page_with_broken_damaged_and_newer_files_shows_each_reason_beside_the_others(project: TinyProject) -> None:
    for stem in ("newer", "odd"):
        project.write_experiment(stem)
        folder = project.experiment(stem).folder
        folder.evaluations.mkdir(parents=True)
        folder.metrics.write_text("[]\n{\n\x00", encoding="utf-8")
        (folder.evaluations / "step_1-a.json").write_text("{", encoding="utf-8")
    newer = {"schema": 99, "gpt_pipeline": "9.0"}
    (project.experiment("newer").folder.root / "start.json").write_text(json.dumps(newer), encoding="utf-8")
    project.experiment("odd").folder.report.mkdir()
    (project.root / "experiments" / "broken.yaml").write_text("experiment_name: [", encoding="utf-8")
    (project.root / "experiments" / "windows.yaml").write_text(
        (project.root / "experiments" / "tiny.yaml").read_text().replace("../storage", "E:\\x").replace("tiny", "w")
    )
    cards = {card.key: card for card in watch(project).cards()}
    words = {key: card.state.word for key, card in cards.items()}
    assert words["broken"] == words["windows"] == words["newer"] == "broken"
    assert words["odd"] == words["tiny"] == "not started"
    assert all(card.state.detail for card in cards.values() if card.state.word == "broken")


def test_watch_shows_an_experiment_that_cannot_be_looked_at_with_the_reason(project: TinyProject) -> None:
    project.write_experiment("other")

    def job(experiment: Experiment) -> str:
        return {"other": "/jobs/run_other"}[experiment.name]

    here = Project(root=project.root, experiments=project.root / "experiments")
    found = Watch(here, newest_runs=lambda _: {}, addresses=dataclasses.replace(ADDRESSES, job=job), patience=60)
    cards = {card.key: card for card in found.cards()}
    assert cards["tiny"].state.detail.startswith("KeyError: 'tiny'")
    assert cards["other"].state.word == "not started"


def test_watch_follows_files_but_rests_between_two_looks(project: TinyProject) -> None:
    now = [0.0]
    found = watch(project, clock=lambda: now[0])
    (before,) = found.cards()
    train_lines(project, 1, 2)
    project.write_experiment("later")
    assert found.cards() == [before]
    now[0] = 5.0
    after = found.cards()
    assert [card.key for card in after] == ["later", "tiny"]
    assert after[1].chart is not None
    assert not after[1].chart.is_empty


def test_watch_puts_experiments_at_work_first(project: TinyProject) -> None:
    for stem in ("alpha", "zeta"):
        project.write_experiment(stem)
    assert [card.key for card in watch(project, {"zeta": WORKING}).cards()] == ["zeta", "alpha", "tiny"]


def test_watch_shows_what_is_read_so_far_to_those_who_ask_during_the_first_look(project: TinyProject) -> None:
    goes_on = Event()

    def runs(_: Any) -> Mapping[str, NewestRun]:
        goes_on.wait()
        return {}

    here = Project(root=project.root, experiments=project.root / "experiments")
    found = Watch(here, newest_runs=runs, addresses=ADDRESSES, patience=0.2)
    assert [card.state.word for card in found.cards()] in ([], ["not read yet"])
    goes_on.set()
    wait(lambda: [card.state.word for card in found.cards()] == ["not started"], seconds=60, what="the first look")


def test_watch_without_a_history_shows_what_the_folders_tell(project: TinyProject) -> None:
    def runs(_: Any) -> Mapping[str, NewestRun]:
        raise OSError("database is locked")

    here = Project(root=project.root, experiments=project.root / "experiments")
    (card,) = Watch(here, newest_runs=runs, addresses=ADDRESSES, patience=60).cards()
    assert card.state.word == "not started"


def test_cards_bear_a_version_that_changes_with_their_content(project: TinyProject) -> None:
    def version(card: Card) -> str:
        return re.findall(r'data-version="(\w+)"', render_cards([card]))[0]

    (card,) = watch(project).cards()
    assert version(card) == version(dataclasses.replace(card))
    assert version(card) != version(dataclasses.replace(card, step=1))


def test_page_and_its_files_name_no_other_host() -> None:
    for name in STATIC:
        assert "://" not in read_static(name)


def test_report_is_that_of_a_known_experiment_alone(project: TinyProject) -> None:
    folder = project.experiment("tiny").folder
    assert watch(project).report("tiny") is None
    folder.root.mkdir(parents=True)
    folder.report.write_text("", encoding="utf-8")
    assert watch(project).report("tiny") == folder.report
    assert [watch(project).report(key) for key in ("", "..", "tiny.yaml", "../tiny")] == [None] * 4


@pytest.mark.parametrize("ids", [[], ["1"], ["1", "2"]])
def test_links_to_mlflow_open_its_runs_and_never_the_view_without_any(ids: list[str]) -> None:
    address = runs_page("http://127.0.0.1:5000/", ids)
    assert address.startswith("http://127.0.0.1:5000/#/")
    assert "workflowType=machine_learning" in address
    assert not re.search(r"/experiments/[0-9]+(\?|$)", address)
    assert run_page("http://h", "1", "abc").startswith("http://h/#/experiments/1/runs/abc?workflowType=")
