"""Notifications: who is told what, and that nobody is shown an address."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.doctor.services import check_notifications
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.notify.addresses import VARIABLE, find_addresses
from gpt_pipeline.notify.message import message_of
from gpt_pipeline.notify.send import tell
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import DEAD_TAG
from gpt_pipeline.orchestration.notifications import notification_sensors, run_message
from gpt_pipeline.project import Project
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_comparison import trained

SECRET = "hunter2"


class Server:
    """Takes notifications on a port of its own, and keeps them."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"json://me:{SECRET}@127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    for name in ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    made = TinyProject(root=tmp_path)
    made.write_experiment("tiny")
    return made


def _write(project: TinyProject, text: str) -> Project:
    (project.root / "notify.yaml").write_text(text)
    return Project.of_experiments(project.root / "experiments")


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_addresses_of_the_file_are_told_with_what_was_reached(project: TinyProject, server: Server) -> None:
    here = _write(project, f"addresses: ['{server.address}']\n")
    experiment = trained(project, "tiny", {4: 2.5, 8: 2.25})
    experiment.folder.report.write_text("")
    said: list[str] = []
    assert tell(here, message_of(experiment, "finished", seconds=300), say=said.append)
    assert said == []
    [taken] = server.taken
    assert (taken["title"], taken["type"]) == ("tiny: finished", "success")
    assert "has finished after 5 min." in taken["message"]
    assert "Best: step 8: val loss 2.250, 1 of 1 right" in taken["message"]
    assert f"Report: {experiment.folder.report}" in taken["message"]


def test_message_of_a_failure_has_its_first_lines_without_passwords_and_the_remedy(project: TinyProject) -> None:
    problem = "\n".join(["mysql://me:secret@host is away; start it", *(f"line {n}" for n in range(50))])
    body = message_of(project.experiment("tiny"), "failed", seconds=None, problem=problem).body
    assert "mysql://host is away; start it" in body
    assert "secret" not in body
    assert "line 4\n" in body
    assert "line 5" not in body
    assert body.endswith(f"gpt-pipeline run {project.root / 'experiments' / 'tiny.yaml'}")


def test_environment_goes_before_the_file_and_empty_silences_it(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = _write(project, "addresses: ['json://one']\n")
    monkeypatch.setenv(VARIABLE, "json://two  mailto://a:b@three")
    found = find_addresses(here)
    assert found is not None
    assert [each.secret for each in found.addresses] == ["json://two", "mailto://a:b@three"]
    monkeypatch.setenv(VARIABLE, "")
    assert find_addresses(here) is None


@pytest.mark.parametrize(
    "text",
    [
        f"addresses: json://me:{SECRET}@host",
        f"- json://me:{SECRET}@host",
        f"json://me:{SECRET}@host: here",
        f"addresses:\n  - {{a: json://me:{SECRET}@host}}",
        f"addresses: ['me:{SECRET}@host']",
        f"addresses: [json://me:{SECRET}@host",
        f"{SECRET}: [json://host]",
    ],
)
def test_file_with_something_else_says_what_is_needed_and_shows_no_secret(project: TinyProject, text: str) -> None:
    here = _write(project, text)
    with pytest.raises(UserError, match=r"notify\.yaml.*need") as raised:
        find_addresses(here)
    assert SECRET not in str(raised.value) or text.startswith(SECRET)
    assert "json://me" not in str(raised.value)


def test_address_that_does_not_answer_is_mentioned_by_its_kind_alone(
    project: TinyProject, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 403
    closed = f"json://me:{SECRET}@127.0.0.1:{_closed_port()}/{SECRET}"
    here = _write(project, f"addresses: ['{server.address}', '{closed}', 'nosuch://{SECRET}']\n")
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):
        assert not tell(here, message_of(project.experiment("tiny"), "stopped", seconds=1), say=said.append)
    assert said[0] == "not notified: json://...: the server answered 403"
    assert said[1] == "not notified: json://...: the server did not take it, or was not reached"
    assert said[2].startswith("not notified: nosuch://...: apprise cannot read this address")
    assert SECRET not in caplog.text + "".join(said)


def test_addresses_show_their_kind_alone_in_repr_and_doctor(project: TinyProject) -> None:
    here = _write(project, f"addresses: ['slack://{SECRET}/b/c']\n")
    (project.root / "notify.yaml").chmod(0o644)
    found = find_addresses(here)
    findings = [*check_notifications(here)]
    assert SECRET not in repr(found) + str(findings)
    assert "slack://..." in findings[0].text
    assert [each.severity for each in findings] == ["ok", "note"]
    (project.root / "notify.yaml").chmod(0o600)
    assert [each.severity for each in check_notifications(here)] == ["ok"]


def test_experiment_file_with_addresses_says_where_they_go(project: TinyProject) -> None:
    file = project.root / "experiments" / "tiny.yaml"
    file.write_text(file.read_text() + f"notify: [json://me:{SECRET}@host]\n")
    with pytest.raises(UserError, match=r"put them into notify\.yaml beside dagster\.yaml") as raised:
        load_experiment(file)
    assert SECRET not in str(raised.value)


def test_notify_file_beside_the_experiments_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "notify.yaml").write_text("addresses: []\n")
    assert find_experiments(tmp_path) == []


def test_notify_test_sends_to_each_and_fails_if_one_does_not_get_it(
    project: TinyProject, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(project, f"addresses: ['{server.address}']\n")
    for status, code in ((200, 0), (500, 1)):
        server.status = status
        with pytest.raises(SystemExit) as end:
            main(["notify", "--test"])
        assert (end.value.code or 0) == code
    assert [each["title"] for each in server.taken] == ["gpt-pipeline: a test"] * 2
    assert SECRET not in "".join(capsys.readouterr())


def test_run_that_fails_is_told_once_and_one_with_bad_addresses_does_not_begin(
    project: TinyProject, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project.root / "experiments" / "tiny.yaml"
    file.write_text(file.read_text().replace("../storage}", "../storage, checkpoint_to_resume: a.pt}"))
    _write(project, f"addresses: ['{server.address}']\n")
    with pytest.raises(SystemExit):
        main(["run", str(file)])
    [taken] = server.taken
    assert (taken["title"], taken["type"]) == ("tiny: failed", "failure")
    assert "found 'a.pt'" in taken["message"]
    _write(project, "adresses: []\n")
    with pytest.raises(SystemExit) as end:
        main(["run", str(file)])
    assert end.value.code == 1
    assert "found adresses, need `addresses:`" in capsys.readouterr().err


def _run(
    instance: dg.DagsterInstance, project: TinyProject, tags: dict[str, str], job: str | None = None
) -> dg.DagsterRun:
    experiment = project.experiment("tiny")

    @dg.op(name="tiny__training")
    def training() -> None:
        raise dg.Failure(description="found 3, need 4; use 4", allow_retries=False)

    @dg.job(name=job or keys.run_job(experiment), tags={keys.EXPERIMENT_TAG: experiment.name, **tags})
    def failing() -> None:
        training()

    ended = failing.execute_in_process(instance=instance, raise_on_error=False)
    run = instance.get_run_by_id(ended.run_id)
    assert run is not None
    return run


def test_dagster_run_tells_its_failed_step_and_commands_tell_of_their_own(project: TinyProject) -> None:
    experiment = project.experiment("tiny")
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(instance, project, {})
        message = run_message(instance, run, [experiment], "failed")
        assert message is not None
        assert "training: found 3, need 4; use 4" in message.body
        assert f"Dagster run {run.run_id[:8]}" in message.body
        of_command = _run(instance, project, {keys.COMMAND_TAG: "yes"})
        assert run_message(instance, of_command, [experiment], "failed") is None
        killed = _run(instance, project, {keys.COMMAND_TAG: "yes", DEAD_TAG: "yes"})
        assert run_message(instance, killed, [experiment], "failed") is not None
        again = of_command._replace(parent_run_id=of_command.run_id)  # repeated on the pages, which hand tags on
        assert run_message(instance, again, [experiment], "failed") is not None
        evaluation = _run(instance, project, {}, job=keys.evaluate_job(experiment))
        assert run_message(instance, evaluation, [experiment], "finished") is None
        assert run_message(instance, evaluation, [experiment], "failed") is not None
        for asset, told in (("training", True), ("evaluation", False)):
            assets = frozenset([keys.asset_key(experiment, asset)])
            picked = run._replace(job_name="__ASSET_JOB", asset_selection=assets, tags={})
            assert (run_message(instance, picked, [experiment], "finished") is not None) == told


def test_dagster_run_of_several_that_ended_well_tells_of_the_one_that_was_asked_for(project: TinyProject) -> None:
    project.write_experiment("other")
    both = [project.experiment(name) for name in ("tiny", "other")]
    with dg.DagsterInstance.ephemeral() as instance:
        assets = frozenset([keys.asset_key(both[0], "evaluation"), keys.asset_key(both[1], "training")])
        picked = _run(instance, project, {})._replace(job_name="__ASSET_JOB", asset_selection=assets, tags={})
        message = run_message(instance, picked, both, "finished")
        assert message is not None
        assert message.title == "other: finished"


def test_sensor_sends_what_a_dagster_run_failed_of(project: TinyProject, server: Server) -> None:
    here = Project.of_experiments(project.root / "experiments")
    assert notification_sensors(here, []) == []
    _write(project, f"addresses: ['{server.address}']\n")
    sensors = {each.name: each for each in notification_sensors(here, [project.experiment("tiny")])}
    assert {*sensors} == {"notify_failed", "notify_stopped", "notify_finished"}
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(instance, project, {})
        [event] = [
            entry.dagster_event
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
            if entry.dagster_event
        ]
        context = dg.build_run_status_sensor_context("notify_failed", event, instance, run)
        sensors["notify_failed"](context)
    [taken] = server.taken
    assert taken["title"] == "tiny: failed"
    assert "found 3, need 4; use 4" in taken["message"]
