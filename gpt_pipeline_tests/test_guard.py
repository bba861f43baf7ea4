"""The guard before Dagster's web pages: Dagster's own application is asked as other websites would have it asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster_webserver.webserver import DagsterWebserver

from gpt_pipeline.orchestration.dagster_server import GuardedWebserver
from gpt_pipeline.project import Project
from gpt_pipeline.report.page import page_policy, page_script
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_report import digest_of

OWN = "127.0.0.1:3000"
QUERY = json.dumps({"query": "{version}"})
MUTATION = "mutation{setNuxSeen}"
JSON = {"content-type": "application/json"}
FOREIGN = "http://evil.example"
CROSS = {"sec-fetch-site": "cross-site"}
NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "accept": "text/html"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str:
        return ", ".join(value.decode() for key, value in self.headers if key.decode() == name)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkspaceProcessContext]:
    with (
        dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("history"))) as instance,
        WorkspaceProcessContext(instance, workspace_load_target=EmptyWorkspaceTarget()) as context,
    ):
        yield context


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    project = TinyProject(root=tmp_path_factory.mktemp("project"))
    project.write_experiment("tiny")
    folder = project.experiment("tiny").folder
    folder.root.mkdir(parents=True)
    folder.report.write_text("<script>alert(1)</script>", encoding="utf-8")
    return project


@pytest.fixture(scope="module")
def app(context: WorkspaceProcessContext, project: TinyProject) -> Any:
    here = Project(root=project.root, experiments=project.root / "experiments")
    return GuardedWebserver(context, project=here, names=["dagster.example.org"]).create_asgi_app()


async def _exchange(app: Any, scope: dict[str, Any], received: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return received.pop(0) if received else await asyncio.Future()  # nothing more ever comes

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def _scope(kind: str, path: str, headers: Mapping[str, str], **other: Any) -> dict[str, Any]:
    address, _, query = path.partition("?")
    raw = [(name.encode(), value.encode()) for name, value in {"host": OWN, **headers}.items()]
    common = {"type": kind, "path": address, "query_string": query.encode(), "headers": raw, "root_path": ""}
    return {**common, "asgi": {"version": "3.0"}, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 3000), **other}


def ask(app: Any, method: str, path: str, headers: Mapping[str, str] = {}, body: str = "") -> Answer:
    scope = _scope("http", path, headers, method=method, scheme="http", http_version="1.1")
    sent = asyncio.run(_exchange(app, scope, [{"type": "http.request", "body": body.encode(), "more_body": False}]))
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(status=sent[0]["status"], headers=sent[0]["headers"], body=whole)


def connect(app: Any, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    scope = _scope("websocket", "/graphql", headers, scheme="ws", subprotocols=["graphql-ws"])
    return asyncio.run(
        _exchange(app, scope, [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])
    )


def test_start_page_loads_nothing_from_elsewhere_and_runs_no_script_of_its_text(app: Any) -> None:
    answer = ask(app, "GET", "/start", NAVIGATION)
    assert answer.status == 200
    policy = answer.header("content-security-policy")
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert b"<script>" not in answer.body
    assert b"style=" not in answer.body
    assert re.findall(rb'(?:src|href)="https?:[^"]*"', answer.body) == [
        b'href="http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"'  # a link, which nothing loads
    ]


def test_start_page_leaves_dagsters_own_pages_where_they_were(app: Any) -> None:
    assert b"Dagster" in ask(app, "GET", "/", NAVIGATION).body
    assert b"Dagster" in ask(app, "GET", "/started", NAVIGATION).body


def test_start_page_serves_a_report_in_a_sandbox_that_runs_one_script_alone(app: Any) -> None:
    answer = ask(app, "GET", "/start/report/tiny", NAVIGATION)
    assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
    policy = answer.header("content-security-policy")
    assert policy.startswith(f"sandbox allow-scripts; {page_policy()}; frame-ancestors 'none'")
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest_of(page_script())}'"]


def test_start_page_serves_the_comparison_of_all_experiments_in_the_same_sandbox(app: Any) -> None:
    answer = ask(app, "GET", "/start/comparison", NAVIGATION)
    assert answer.status == 200
    assert b'href="/start/report/tiny"' in answer.body
    assert answer.header("content-security-policy").startswith(f"sandbox allow-scripts; {page_policy()}; ")


@pytest.mark.parametrize(
    "key",
    ["other", "..", "%2e%2e", "..%2f..%2fmlflow.db", "tiny%2f..", "tiny/../tiny", "/etc/passwd", "tiny%00", "Tiny"],
)
def test_start_page_serves_no_file_but_the_report_of_an_experiment(app: Any, key: str) -> None:
    answer = ask(app, "GET", f"/start/report/{unquote(key)}", NAVIGATION)
    assert b"alert" not in answer.body
    assert b"root:" not in answer.body
    assert answer.status == 404 or b"Dagster" in answer.body  # of Dagster's own, as for any unknown address


@pytest.mark.parametrize("host", [OWN, "localhost:8080", "LOCALHOST", "[::1]:3000", "dagster.example.org"])
def test_guard_page_itself_is_answered_under_every_name_of_this_machine_and_of_the_proxy(app: Any, host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin", **JSON}
    answer = ask(app, "POST", "/graphql", headers, QUERY)
    assert answer.status == 200
    assert "version" in json.loads(answer.body)["data"]


def test_guard_program_that_is_no_browser_is_answered(app: Any) -> None:
    assert ask(app, "GET", "/server_info").status == 200
    assert ask(app, "POST", "/graphql", {"content-type": "application/json; charset=utf-8"}, QUERY).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:3000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example@localhost",
        "localhost:3000@evil.example",
        "",
        "evil.example\x00localhost",
        "[::1]evil.example",
    ],
)
def test_guard_name_rebound_to_this_machine_is_refused_even_as_a_page_load(app: Any, host: str) -> None:
    answer = ask(app, "GET", "/", {"host": host, **NAVIGATION})
    assert answer.status == 403
    assert b"--allow-host" in answer.body


FOREIGN_REQUESTS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "fetch with JSON": ("POST", "/graphql", {"origin": FOREIGN, **CROSS, **JSON}, QUERY),
    "JSON from an old browser": ("POST", "/graphql", {"origin": FOREIGN, **JSON}, QUERY),
    "sandboxed frame": ("POST", "/graphql", {"origin": "null", **JSON}, QUERY),
    "another port of this machine": ("POST", "/graphql", {"origin": "http://127.0.0.1:8888", **JSON}, QUERY),
    "another name of this machine": ("POST", "/graphql", {"origin": "http://localhost:3000", **JSON}, QUERY),
    "same site": ("POST", "/graphql", {"sec-fetch-site": "same-site", **JSON}, QUERY),
    "plain text": ("POST", "/graphql", {"content-type": "text/plain"}, QUERY),
    "plain text that mentions JSON": ("POST", "/graphql", {"content-type": "text/plain; application/json"}, QUERY),
    "GraphQL text": ("POST", "/graphql", {"content-type": "application/graphql"}, "{version}"),
    "query in the address": ("POST", "/graphql?query={version}", {}, ""),
    "form": ("POST", "/graphql?query={version}", {"content-type": "application/x-www-form-urlencoded"}, ""),
    "form that opens a page": ("POST", "/graphql", {"origin": FOREIGN, **CROSS, **NAVIGATION, **JSON}, QUERY),
    "picture": ("GET", f"/graphql?query={MUTATION}", {**CROSS, "accept": "image/*"}, ""),
    "picture in an old browser": ("GET", f"/graphql?query={MUTATION}", {"accept": "image/*"}, ""),
    "link that mutates": ("GET", f"/graphql?query={MUTATION}", {**CROSS, **NAVIGATION, "accept": "*/*"}, ""),
    "trailing slash": ("GET", f"/graphql/?query={MUTATION}", {}, ""),
    "leave to ask": ("OPTIONS", "/graphql", {"origin": FOREIGN, "access-control-request-method": "POST"}, ""),
    "delete": ("DELETE", "/graphql", JSON, ""),
    "frame": ("GET", "/", {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, ""),
    "script": ("GET", "/server_info", {**CROSS, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}, ""),
    "log": ("GET", "/logs/a/b.out", {"origin": FOREIGN, **CROSS}, ""),
    "start page in a frame": ("GET", "/start", {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, ""),
    "state of the experiments": ("GET", "/start/experiments", {"origin": FOREIGN, **CROSS}, ""),
    "state of the experiments under a rebound name": ("GET", "/start/experiments", {"host": "evil.example"}, ""),
    "report of an experiment": ("GET", "/start/report/tiny", {**CROSS, "sec-fetch-mode": "no-cors"}, ""),
    "report of an experiment in an old browser": ("GET", "/start/report/tiny", {"origin": FOREIGN}, ""),
    "report of an asset": ("POST", "/report_asset_materialization/a", {"origin": FOREIGN, **CROSS}, ""),
    "report of an asset, plain text": ("POST", "/report_asset_materialization/a", {"content-type": "text/plain"}, "{}"),
    "report of a check": ("POST", "/report_asset_check/a?check_name=c&passed=true", CROSS, ""),
    "report of an observation": ("POST", "/report_asset_observation/a", {"origin": FOREIGN, **JSON}, "{}"),
}


@pytest.mark.parametrize("name", FOREIGN_REQUESTS)
def test_guard_request_of_another_website_is_refused_without_leave_for_it(app: Any, name: str) -> None:
    answer = ask(app, *FOREIGN_REQUESTS[name])
    assert answer.status == 403
    assert answer.header("access-control-allow-origin") == ""
    assert answer.header("content-type").startswith("text/plain")


def test_guard_header_sent_twice_is_refused(app: Any) -> None:
    scope = _scope("http", "/server_info", {}, method="GET", scheme="http", http_version="1.1")
    scope["headers"].append((b"Host", b"evil.example"))
    (start, _) = asyncio.run(_exchange(app, scope, []))
    assert start["status"] == 403


def test_guard_link_on_another_website_opens_the_page(app: Any) -> None:
    assert ask(app, "GET", "/runs", {**CROSS, **NAVIGATION}).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/graphql", "/server_info", "/favicon.svg", "/robots.txt", "/start", "/start/start.js", "/start/report/tiny"],
)
def test_guard_every_page_forbids_frames_and_other_hosts(app: Any, path: str) -> None:
    answer = ask(app, "GET", path, NAVIGATION)
    assert answer.status == 200
    assert answer.header("x-frame-options") == "DENY"
    assert answer.header("x-content-type-options") == "nosniff"
    policy = answer.header("content-security-policy")
    assert "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "img-src 'self' data: blob:" in policy


def test_guard_websocket_of_the_page_itself_is_accepted(app: Any) -> None:
    assert connect(app, {"origin": f"http://{OWN}"})[0]["type"] == "websocket.accept"
    assert connect(app, {"host": "dagster.example.org", "origin": "https://dagster.example.org"})[0]["type"] == (
        "websocket.accept"
    )


@pytest.mark.parametrize("headers", [{"origin": FOREIGN}, {"origin": "null"}, {"host": "evil.example"}, CROSS])
def test_guard_websocket_of_another_website_is_closed_before_it_opens(app: Any, headers: dict[str, str]) -> None:
    assert [message["type"] for message in connect(app, headers)] == ["websocket.close"]


def test_guard_proxy_that_passes_its_own_name_on_as_origin_alone_is_answered(app: Any) -> None:
    headers = {"origin": "https://dagster.example.org:8443", "sec-fetch-site": "same-origin", **JSON}
    assert ask(app, "POST", "/graphql", headers, QUERY).status == 200


def test_dagsters_server_without_the_guard_answers_other_websites(context: WorkspaceProcessContext) -> None:
    """Should this fail, Dagster has a guard of its own: doctor's warning and docs/security.md must say so."""
    bare = DagsterWebserver(context).create_asgi_app()
    answer = ask(bare, "GET", "/server_info", {"host": "evil.example", "origin": FOREIGN, **CROSS})
    assert answer.status == 200
    assert b"dagster_webserver_version" in answer.body  # by which doctor knows it
    assert ask(bare, "POST", "/graphql?query={version}", {"content-type": "text/plain"}).status == 200
