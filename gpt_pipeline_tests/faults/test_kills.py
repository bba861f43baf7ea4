"""Every process of the product killed with SIGKILL at random moments, and the work finished afterwards."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Mapping

import psutil
import pytest

from gpt_pipeline_tests.faults.aftermath import (
    KEPT_STEPS,
    STEPS,
    assert_as_undisturbed,
    dice,
    processes,
    rounds,
    wait_until_nothing_runs,
    weights,
)
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import dagster_pages, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX"),
]
OF_A_RUN = {
    "driver": "gpt_pipeline run",
    "trainer": "gpt_pipeline.orchestration.trainer_pipes",
    "follower": "gpt_pipeline.orchestration.follower",
}
OF_THE_PAGES = {
    "webserver": "gpt_pipeline.orchestration.dagster_server",
    "daemon": "dagster._daemon run",
    "code server": "dagster api grpc",
    "run or step": "multiprocessing",
    "trainer": "gpt_pipeline.orchestration.trainer_pipes",
}

_LIVES = 2  # of the pages in a round, each with another process killed


def _find(project: TinyProject, words: str) -> psutil.Process | None:
    """The newest process of the project whose command line has the words."""
    for process in sorted(processes(project), key=lambda each: -each.pid):
        try:
            if words in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def _wait_for(project: TinyProject, words: str, *, or_until: Callable[[], bool]) -> psutil.Process | None:
    """The process with these words, once there is one; None if the other thing comes first."""
    wait(lambda: _find(project, words) is not None or or_until(), seconds=240, what=words)
    return _find(project, words)


def _kill(process: psutil.Process | None, *, after: float) -> bool:
    """Kill the process after so many seconds; False if it has ended by itself."""
    time.sleep(after)
    try:
        if process is not None:
            process.kill()
            return True
    except psutil.NoSuchProcess:
        pass
    return False


def test_run_whose_processes_are_killed_at_random_moments_ends_as_undisturbed(
    project: TinyProject, undisturbed: Mapping[int, str]
) -> None:
    random = dice()
    for _ in range(rounds()):
        for kind in random.sample(sorted(OF_A_RUN), len(OF_A_RUN)):
            run = project.start("run", "experiments/long.yaml", start_new_session=True)
            victim = _wait_for(project, OF_A_RUN[kind], or_until=lambda run=run: run.poll() is not None)
            print(kind, _kill(victim, after=random.uniform(0, 6)))
            output = output_of(run)
            assert kind == "driver" or "Traceback" not in output, output
            wait_until_nothing_runs(project)
    print(project.run("run", "experiments/long.yaml"))
    assert_as_undisturbed(project, undisturbed)


def test_killed_run_of_two_trainers_takes_both_along_which_save_before(
    project: TinyProject,
) -> None:
    path = project.root / "experiments" / "long.yaml"
    path.write_text(path.read_text().replace("device: cpu", "device: cpu, num_gpus: 2"))
    run = project.start("run", "experiments/long.yaml", start_new_session=True)
    wait(lambda: bool(project.checkpoints("long")), seconds=240, what="a checkpoint")
    assert _kill(psutil.Process(run.pid), after=0)
    output_of(run)
    wait_until_nothing_runs(project)
    assert max(weights(project)) not in KEPT_STEPS  # but that of the stop
    print(project.run("run", "experiments/long.yaml"))
    assert max(weights(project)) == STEPS
    wait_until_nothing_runs(project)


def _launch(address: str, job: str) -> None:
    """Ask Dagster's server to run the job, as its pages do."""
    mutation = """mutation($params: ExecutionParams!) {launchRun(executionParams: $params)
        {__typename ... on PythonError {message} ... on RunConfigValidationInvalid {errors {message}}}}"""
    selector = {
        "repositoryLocationName": "gpt_pipeline.definitions",
        "repositoryName": "__repository__",
        "jobName": job,
    }
    variables = {"params": {"selector": selector, "runConfigData": {}}}
    request = urllib.request.Request(
        f"{address}/graphql",
        data=json.dumps({"query": mutation, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=240) as answer:
        launched = json.load(answer)
    assert launched["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", launched


def test_pages_whose_processes_are_killed_at_random_moments_leave_a_run_that_ends_as_undisturbed(
    project: TinyProject, undisturbed: Mapping[int, str]
) -> None:
    random = dice()
    for kind in random.sample(sorted(OF_THE_PAGES), _LIVES) * rounds():
        with dagster_pages(project) as address:
            _launch(address, "run_long")
            victim = _wait_for(project, OF_THE_PAGES[kind], or_until=lambda: _is_trained(project))
            print(kind, _kill(victim, after=random.uniform(0, 6)))
        wait_until_nothing_runs(project)  # the trainer saves a checkpoint
    print(project.run("run", "experiments/long.yaml"))
    assert_as_undisturbed(project, undisturbed)


def _is_trained(project: TinyProject) -> bool:
    return max(weights(project), default=0) >= STEPS
