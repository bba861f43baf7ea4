"""The client of Ray's jobs, against a server that answers as Ray 2.60 does; `test_ray_cluster.py` has a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.doctor.launchers import check_launchers
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.launchers import ray_jobs
from gpt_pipeline.launchers.config import RayConfig
from gpt_pipeline.launchers.protocol import LauncherError, Observed, TrainingCommand, UnreachableError
from gpt_pipeline.launchers.ray_jobs import EXIT_NODE_LOST, RayJobs
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.stopping import EXIT_HUNG

NAME = "gpt-tiny-0123456789ab-c0ffee-1"
COMMAND = TrainingCommand(
    name=NAME,
    job_file=Path("/shared/it's here/job.json"),
    log_file=Path("/shared/it's here/launch/1.log"),
    nodes=2,
    processes=4,
    python="/venv/bin/python",
    environment={"GPT_PIPELINE_RUN": "r1"},
)


class Dashboard:
    """Answers like Ray's dashboard, and keeps what it is asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.groups: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, str]] = {}
        """Other answers, by the beginning of the request."""

        self.location = ""
        """Where its answers say to ask instead."""

        self.authorization: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.authorization = self.headers["Authorization"]
                code, text = outer.answer(f"{self.command} {self.path}", self._body())
                self.send_response(code)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                with suppress(BrokenPipeError):  # nobody waits for it any longer
                    self.wfile.write(text.encode())

            def do_POST(self) -> None:
                self.do_GET()

            def _body(self) -> dict[str, Any]:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def ray(self, **config: Any) -> RayJobs:
        return RayJobs(RayConfig(address=self.address, **config), gpus=4)

    def answer(self, request: str, body: Mapping[str, Any]) -> tuple[int, str]:
        for beginning, answer in self.answers.items():
            if request.startswith(beginning):
                return answer
        if request == "POST /api/jobs/":
            return self._submit(body)
        if request == "GET /api/version":
            return 200, json.dumps({"ray_version": "2.60.0"})
        if request.startswith("GET /api/v0/"):
            nodes = [{"node_id": f"n{index}", "node_ip": f"10.0.0.{index}", "state": "ALIVE"} for index in (1, 2)]
            return 200, json.dumps({"data": {"result": {"result": self.groups if "groups" in request else nodes}}})
        name = request.split("/")[3]
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if request.endswith("/stop"):
            self.jobs[name]["status"] = "STOPPED"
        return 200, json.dumps(self.jobs[name])

    def _submit(self, job: Mapping[str, Any]) -> tuple[int, str]:
        name = job["submission_id"]
        if name in self.jobs:
            return 500, f"Traceback\nValueError: Job with submission_id {name} already exists. Please use another."
        self.jobs[name] = {"status": "PENDING", "driver_exit_code": None, "message": "", **job}
        return 200, json.dumps({"submission_id": name})


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    dashboard = Dashboard()
    yield dashboard
    dashboard.server.shutdown()
    dashboard.server.server_close()


def test_job_submitted_twice_is_one_job_of_that_name(dashboard: Dashboard) -> None:
    ray = dashboard.ray()
    assert ray.find(NAME) is None
    assert [ray.submit(COMMAND), ray.submit(COMMAND)] == [NAME, NAME]
    assert list(dashboard.jobs) == [NAME]
    assert ray.find(NAME) == NAME


def test_submitted_job_has_the_resources_and_variables_of_the_experiment(dashboard: Dashboard) -> None:
    dashboard.ray(environment=("NCCL_DEBUG=A=B", "GPT_PIPELINE_RUN=mine"), cpus_per_node=8).submit(COMMAND)
    job = dashboard.jobs[NAME]
    variables = job["runtime_env"]["env_vars"]
    assert variables["NCCL_DEBUG"] == "A=B"
    assert variables["GPT_PIPELINE_RUN"] == "r1"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 120
    # As a shell reads it: the quote in the folder's name ends nothing.
    assert job["entrypoint"] == (
        "exec /venv/bin/python -m gpt_pipeline.training.ray_driver "
        f"--name={NAME} '--log=/shared/it'\"'\"'s here/launch/1.log' --nodes=2 --processes=4 --cpus=8 --gpus=4 "
        "'/shared/it'\"'\"'s here/job.json'"
    )


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        ({"status": "PENDING"}, "waiting", ""),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, "succeeded", ""),
        ({"status": "STOPPED"}, "cancelled", ""),
        ({"status": "FAILED", "driver_exit_code": 1}, "failed", "it failed"),
        ({"status": "FAILED", "driver_exit_code": EXIT_NODE_LOST}, "timed_out", "it failed"),
        ({"status": "FAILED", "driver_exit_code": EXIT_HUNG}, "failed", "it failed"),
        ({"status": "FAILED", "driver_exit_code": 143}, "timed_out", "it failed"),
        ({"status": "FAILED", "driver_exit_code": -9}, "timed_out", "it failed"),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, "timed_out", "it failed"),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, "failed", "it failed"),
    ],
)
def test_state_of_a_job_is_told_in_the_words_of_the_protocol(
    dashboard: Dashboard, job: dict[str, Any], state: str, reason: str
) -> None:
    dashboard.jobs[NAME] = {"message": "it failed, last available logs (truncated):\nline", **job}
    seen = dashboard.ray().state(NAME)
    assert (seen.state, seen.reason, seen.exit_code) == (state, reason, job.get("driver_exit_code"))


def test_running_job_waits_until_its_nodes_are_free_and_then_says_which(dashboard: Dashboard) -> None:
    ray = dashboard.ray()
    dashboard.jobs[NAME] = {"status": "RUNNING"}
    assert ray.state(NAME) == Observed(state="running")
    bundle = {"node_id": "", "unit_resources": {"CPU": 1.0, "GPU": 4.0}}
    dashboard.groups = [{"state": "PENDING", "bundles": [bundle, bundle], "stats": {"scheduling_state": "INFEASIBLE"}}]
    seen = ray.state(NAME)
    assert seen.state == "waiting"
    assert seen.reason == "for 2 nodes with CPU: 1, GPU: 4 free; the cluster as it is has too few such nodes"
    dashboard.groups = [{"state": "CREATED", "bundles": [{**bundle, "node_id": name} for name in ("n2", "n1")]}]
    assert ray.state(NAME) == Observed(state="running", reason="10.0.0.1, 10.0.0.2")


def test_driver_that_says_why_it_failed_is_quoted(dashboard: Dashboard) -> None:
    log = "Job entrypoint command failed with exit code 1, last available logs:\nTraceback\nerror: no such folder\nbye"
    dashboard.jobs[NAME] = {"status": "FAILED", "driver_exit_code": 1, "message": log}
    assert dashboard.ray().state(NAME).reason == "no such folder"


def test_cancelled_job_is_stopped_and_killing_it_is_the_same(dashboard: Dashboard) -> None:
    ray = dashboard.ray()
    for end in (ray.cancel, ray.kill):
        dashboard.jobs[NAME] = {"status": "RUNNING"}
        end(NAME)
        assert ray.state(NAME).state == "cancelled"
        dashboard.jobs.clear()
        end(NAME)  # one that Ray has forgotten has ended


def test_cluster_that_takes_jobs_is_told_by_doctor(dashboard: Dashboard) -> None:
    hardware = HardwareConfig(launcher="ray", ray=RayConfig(address=dashboard.address))
    [finding] = check_launchers([hardware, hardware])
    assert finding.severity == "ok"
    assert finding.text == f"Ray 2.60.0 at {dashboard.address}, 2 nodes now"
    down = RayConfig(address="http://127.0.0.1:9")
    [finding] = check_launchers([HardwareConfig(launcher="ray", ray=down)])
    assert finding.severity == "problem"
    assert "http://127.0.0.1:9 (hardware.ray.address) does not answer" in finding.text


def test_job_that_ray_has_forgotten_is_unknown_and_no_other_answer_is(dashboard: Dashboard) -> None:
    assert dashboard.ray().state(NAME).state == "unknown"
    dashboard.answers = {"GET": (404, "<html>Not Found</html>")}  # of another server
    with pytest.raises(LauncherError, match="answers 404"):
        dashboard.ray().state(NAME)
    dashboard.answers = {"GET": (200, "<html>Welcome</html>")}
    with pytest.raises(LauncherError, match="something else than Ray's dashboard"):
        dashboard.ray().state(NAME)


def test_refused_job_is_an_error_with_rays_own_words(dashboard: Dashboard) -> None:
    dashboard.answers = {"POST": (500, "Traceback\n  File\nValueError: env_vars must be strings\n")}
    with pytest.raises(LauncherError, match="env_vars must be strings") as refused:
        dashboard.ray().submit(COMMAND)
    assert not isinstance(refused.value, UnreachableError)


@pytest.mark.parametrize("code", [500, 502, 503])
def test_dashboard_in_trouble_says_nothing_of_its_jobs(dashboard: Dashboard, code: int) -> None:
    dashboard.answers = {"GET": (code, "no agent")}
    with pytest.raises(UnreachableError, match=f"answers {code}: no agent"):
        dashboard.ray().state(NAME)


def test_cluster_that_is_down_is_unreachable_with_its_address() -> None:
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9 .*does not answer.*is the cluster up"):
        RayJobs(RayConfig(address="http://127.0.0.1:9"), gpus=0).submit(COMMAND)


def test_dashboard_that_never_answers_is_not_waited_for_without_end(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, waiting = dashboard.answer, threading.Event()
    monkeypatch.setattr(dashboard, "answer", lambda *asked: (waiting.wait(10), answer(*asked))[1])
    monkeypatch.setattr(ray_jobs, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(UnreachableError, match="timed out"):
        dashboard.ray().state(NAME)
    waiting.set()


def test_environment_of_ray_commands_leads_to_no_other_cluster(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert dashboard.ray().submit(COMMAND) == NAME
    assert NAME in dashboard.jobs


def test_job_and_token_go_through_no_proxy_of_the_environment(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert dashboard.ray().submit(COMMAND) == NAME


@pytest.mark.parametrize("code", [302, 307])
def test_redirect_is_refused_and_takes_no_token_along(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    elsewhere = Dashboard()
    dashboard.answers, dashboard.location = {"GET": (code, "")}, f"{elsewhere.address}/api/version"
    with pytest.raises(LauncherError, match=f"answers {code}"):
        dashboard.ray().find(NAME)
    elsewhere.server.shutdown()
    assert elsewhere.authorization is None


def test_token_file_is_the_usual_one_where_the_variable_is_empty(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": ""}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("usual")
    dashboard.ray().find(NAME)
    assert dashboard.authorization == "Bearer usual"


def test_token_is_sent_where_rays_own_commands_would_send_it(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    dashboard.ray().find(NAME)
    assert dashboard.authorization is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(LauncherError, match="RAY_AUTH_TOKEN is not set"):
        dashboard.ray().find(NAME)
    file.write_text("of the file\n")
    dashboard.ray().find(NAME)
    assert dashboard.authorization == "Bearer of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable\r\n")
    dashboard.ray().find(NAME)
    assert dashboard.authorization == "Bearer of the variable"
    dashboard.answers = {"GET": (401, "Unauthorized: Missing authentication token")}
    with pytest.raises(LauncherError, match="Missing authentication token; set RAY_AUTH_MODE=token"):
        dashboard.ray().find(NAME)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("address", "ray://head:10001", "the address of Ray's dashboard without user, "),
        ("address", "http://me:secret@head:8265", "the address of Ray's dashboard"),
        ("nodes", 0, "a whole number above 0"),
        ("cpus_per_node", 0, "null or a whole number from 1 up"),
        ("environment", ["NCCL_DEBUG"], "a variable and its value"),
        ("gpus_per_node", -1, "null or a whole number from 0 up"),
    ],
)
def test_ray_block_that_cannot_be_used_says_what_is_needed(key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RayConfig(**{key: value})
