"""Trainings as jobs of a Ray cluster, through the REST interface of Ray's jobs.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html. Ray itself is needed only on the
cluster. The job's name is its id there, and Ray refuses an id that it knows, so a job cannot be submitted twice.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from gpt_pipeline.launchers.config import RayConfig
from gpt_pipeline.launchers.protocol import (
    SHUTDOWN_SECONDS,
    JobState,
    LauncherError,
    Observed,
    TrainingCommand,
    UnreachableError,
)
from gpt_pipeline.shown import counted

DRIVER = "gpt_pipeline.training.ray_driver"
EXIT_NODE_LOST = 76
"""The driver's exit code when a node of the cluster went down; 75 is a trainer that hangs."""

STOP_SECONDS = SHUTDOWN_SECONDS + 60
"""From SIGTERM until Ray kills the driver, which needs less to stop the trainers. Ray's default is 3."""

_ANSWER_SECONDS = 20.0
_STATES: Mapping[str, JobState] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}
_STOPPED_FROM_OUTSIDE = 143  # the trainer was told to save and leave, and not by us
_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)
_TOKEN_FILE = "~/.ray/auth_token"


@dataclass(frozen=True)
class RayJobs:
    """The cluster whose dashboard is at the config's address."""

    config: RayConfig
    gpus: int = 0
    """To reserve on each node, unless the config says otherwise."""

    @property
    def name(self) -> str:
        return "ray"

    @property
    def where(self) -> str:
        return self.config.address

    def check(self) -> str:
        version = self._ask("GET", "/api/version").get("ray_version", "of an unknown version")
        nodes = sum(node["state"] == "ALIVE" for node in self._list("nodes"))
        return f"Ray {version} at {self.config.address}, {counted(nodes, 'node')} now"

    def submit(self, command: TrainingCommand) -> str:
        """Submit the job under its name."""
        own = dict(each.split("=", 1) for each in self.config.environment or ())
        variables = {**own, **command.variables, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        job = {
            "submission_id": command.name,
            "entrypoint": self._entrypoint(command),
            "runtime_env": {"env_vars": variables},
        }
        try:
            self._ask("POST", "/api/jobs/", job)
        except LauncherError:
            if self.find(command.name) is None:
                raise
        return command.name

    def find(self, name: str) -> str | None:
        """Return the name if the cluster has a job of that name."""
        return None if self._job(name) is None else name

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        """Return how the job is; it waits while its driver waits for nodes. Its id is its name."""
        job = self._job(job_id)
        if job is None:
            return Observed(state="unknown", reason=f"{self.config.address} has no such job")
        state, code = _STATES[job["status"]], job.get("driver_exit_code")
        if state == "running":
            return self._place(job_id)
        if state != "failed":
            return Observed(state=state, exit_code=code)
        return Observed(state="timed_out" if _is_lost(job) else "failed", reason=_why(job), exit_code=code)

    def cancel(self, job_id: str, *, name: str | None = None) -> None:
        """Have Ray send SIGTERM to the driver, which stops the trainers."""
        with suppress(_NoSuchJobError):  # so it is at its end
            self._ask("POST", f"/api/jobs/{job_id}/stop")

    def kill(self, job_id: str, *, name: str | None = None) -> None:
        """As `cancel`, which is all that Ray offers; it kills what has not left after `STOP_SECONDS`."""
        self.cancel(job_id)

    def _entrypoint(self, command: TrainingCommand) -> str:
        config = self.config
        options = {
            "name": command.name,
            "log": command.log_file,
            "nodes": command.nodes,
            "processes": command.processes,
            "cpus": config.cpus_per_node or command.processes,
            "gpus": self.gpus if config.gpus_per_node is None else config.gpus_per_node,
        }
        arguments = ["-m", DRIVER, *(f"--{name}={value}" for name, value in options.items()), str(command.job_file)]
        python = config.python or command.python
        return shlex.join(["exec", python, *arguments])  # else a shell stands between Ray and the driver

    def _place(self, job_id: str) -> Observed:
        """Return whether the driver has got its nodes, and which; as `ray list` asks it."""
        try:
            [group] = self._list("placement_groups", filter_keys="name", filter_predicates="=", filter_values=job_id)
            addresses = {node["node_id"]: node["node_ip"] for node in self._list("nodes")}
        except (
            LauncherError,
            LookupError,
            TypeError,
            ValueError,
        ):  # the driver has not asked for them yet, or this cluster cannot say it
            return Observed(state="running")
        nodes = group["bundles"]
        if group["state"] != "PENDING":
            places = sorted({addresses[each["node_id"]] for each in nodes if each["node_id"] in addresses})
            return Observed(state="running", reason=", ".join(places))
        need = ", ".join(f"{name}: {count:g}" for name, count in nodes[0]["unit_resources"].items())
        never = (group.get("stats") or {}).get("scheduling_state") == "INFEASIBLE"
        lacking = "; the cluster as it is has too few such nodes" if never else ""
        return Observed(state="waiting", reason=f"for {counted(len(nodes), 'node')} with {need} free{lacking}")

    def _list(self, kind: str, **options: str) -> list[Mapping[str, Any]]:
        query = urlencode({"limit": 1000, "detail": 1, **options})
        found: list[Mapping[str, Any]] = self._ask("GET", f"/api/v0/{kind}?{query}")["data"]["result"]["result"]
        return found

    def _job(self, job_id: str) -> Mapping[str, Any] | None:
        try:
            return self._ask("GET", f"/api/jobs/{job_id}")
        except _NoSuchJobError:
            return None

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return Ray's answer. Unlike by Ray's own client, no variable leads to another cluster, or through a proxy."""
        request = Request(
            self.config.address.rstrip("/") + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **_authorization()},
        )
        where = f"Ray at {self.config.address} (hardware.ray.address)"
        try:
            with _OPENER.open(request, timeout=_ANSWER_SECONDS) as answer:
                value: Mapping[str, Any] = json.load(answer)
                return value
        except HTTPError as error:
            raise _refusal(error, where, submitting=body is not None) from error
        except ValueError as error:
            raise LauncherError(f"{where}: something else than Ray's dashboard answers there") from error
        except (OSError, HTTPException) as error:
            raise UnreachableError(
                f"{where} does not answer ({error}); is the cluster up, and its port open?"
            ) from error


class _NoRedirect(HTTPRedirectHandler):
    """Takes a redirect for a refusal: the token is for the address in the file alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(ProxyHandler({}), _NoRedirect)


class _NoSuchJobError(LauncherError):
    """Ray says that it has no such job."""


def _refusal(error: HTTPError, where: str, *, submitting: bool) -> LauncherError:
    """Return what an answer that is an error means."""
    with error:
        text = error.read().decode(errors="replace").strip()
    said = f"{where} answers {error.code}: {text.splitlines()[-1] if text else error.reason}"
    if error.code in (401, 403):
        return LauncherError(f"{said}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, as for the `ray` command")
    if error.code == 404 and text.startswith("Job ") and text.endswith("does not exist"):
        return _NoSuchJobError(said)
    if error.code < 500 or (error.code == 500 and submitting):  # its own traceback: it does not take the job
        return LauncherError(said)
    return UnreachableError(said)


def _authorization() -> Mapping[str, str]:
    """Return the header of Ray's token authentication, whose settings are those of Ray's own commands."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()  # a line end in a header is an error that shows all of it
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    if not token and not file.is_file():
        raise LauncherError(f"RAY_AUTH_MODE is token, but RAY_AUTH_TOKEN is not set and there is no {file}")
    return {"Authorization": f"Bearer {token or file.read_text(encoding='utf-8').strip()}"}


def _is_lost(job: Mapping[str, Any]) -> bool:
    """Whether it failed through no fault of the trainer: a node went down, or the driver was killed."""
    code = job.get("driver_exit_code")
    if code is None:
        return job.get("error_type") == "JOB_SUPERVISOR_ACTOR_DIED"
    return code < 0 or code in (EXIT_NODE_LOST, _STOPPED_FROM_OUTSIDE)


def _why(job: Mapping[str, Any]) -> str:
    """Return Ray's reason, without the log that it adds, but with the driver's own error in it."""
    message = str(job.get("message") or "")
    said = _ERROR.findall(message)
    return said[-1] if said else message.split(", last available logs", maxsplit=1)[0].partition("\n")[0]
