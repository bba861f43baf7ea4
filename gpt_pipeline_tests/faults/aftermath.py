"""What must hold after any fault: the weights of an undisturbed run, everything logged once, no process left."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psutil

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import wait

STEPS = 120
KEPT_STEPS = [40, 80, 120]
"""Checkpoints of an undisturbed run of `write_long`; one that was told to stop leaves another one there."""


def write_long(project: TinyProject, stem: str = "long") -> Path:
    """Write an experiment that trains for some seconds, with three checkpoints."""
    path = project.write_experiment(stem, max_steps=STEPS)
    path.write_text(path.read_text().replace("save_every_n_iterations: 4", "save_every_n_iterations: 40"))
    return path


def weights(project: TinyProject, stem: str = "long") -> Mapping[int, str]:
    """The hash of each checkpoint's weights by step."""
    return {info.step: info.weights_sha256 for info in project.checkpoints(stem)}


def assert_as_undisturbed(project: TinyProject, undisturbed: Mapping[int, str], stem: str = "long") -> None:
    """Assert that a finished experiment ended as the undisturbed one, and that each thing is logged once."""
    found = weights(project, stem)
    assert found[STEPS] == undisturbed[STEPS]
    assert {step: found[step] for step in found if step in undisturbed} == {
        step: undisturbed[step] for step in undisturbed if step in found
    }
    assert_logged_once(project, stem)
    wait_until_nothing_runs(project)


def assert_logged_once(project: TinyProject, stem: str = "long") -> None:
    """Assert that MLflow has one finished run for the training and each evaluation, with each metric once a step."""
    evaluated = [f"step_{result.step}" for result in read_evaluations(project.experiment(stem).folder.evaluations)]
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        runs = store.execute(
            "select runs.name, status from runs join experiments using (experiment_id) where experiments.name = ?",
            [stem],
        ).fetchall()
        twice = store.execute(
            "select runs.name, key, step, count(*) from metrics join runs using (run_uuid) "
            "group by run_uuid, key, step having count(*) > 1"
        ).fetchall()
    assert sorted(runs) == sorted((name, "FINISHED") for name in [*evaluated, "training"])
    assert f"step_{STEPS}" in evaluated
    assert twice == []


def processes(project: TinyProject) -> list[psutil.Process]:
    """The processes that work for the project, besides this one."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [process.cwd(), *process.cmdline()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(project.root) in word for word in words):
            found.append(process)
    return found


def wait_until_nothing_runs(project: TinyProject) -> None:
    """Wait until no process works for the project; what is under way may end by itself."""
    wait(lambda: not processes(project), seconds=240, what=f"the end of {processes(project)}")


def kill_every_process(project: TinyProject) -> None:
    """End what a test that failed has left."""
    for process in processes(project):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def rounds() -> int:
    """How often a loop of faults is gone through: FAULT_ROUNDS, else once."""
    return int(os.environ.get("FAULT_ROUNDS", "1"))


def dice() -> random.Random:
    """Random numbers of the seed FAULT_SEED, else of any; the seed is printed."""
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)
