"""Small projects for tests that run the product as a user does: in a folder of their own, by its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, list_checkpoints
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.hangs import output_of

_UNWANTED = ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI")  # of the tester's own projects
TINY = """\
experiment_name: {name}
data: {{source: sample, num_samples: {num_samples}, max_length: 32, validation_fraction: 0.1}}
model: {{n_layer: 1, n_head: 2, n_embd: 16, context_length: 64}}
training: {{batch_size: 4, max_steps: {max_steps}, learning_rate: {learning_rate}, warmup_steps: 2}}
evaluation: {{eval_freq: 4, eval_iters: 1, save_every_n_iterations: 4, keep_last: 3, num_questions: 2,
  max_new_tokens: 4, max_validation_tokens: 512}}
storage: {{base_folder: ../storage}}
hardware: {{device: cpu}}
"""


@dataclass(frozen=True, kw_only=True)
class TinyProject:
    """A project folder with `experiments/`; commands run in it with no settings of the tester's own."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment of its commands, besides the tester's own."""

    def write_experiment(self, stem: str, **changes: Any) -> Path:
        """Write `experiments/<stem>.yaml`, twelve steps long unless changed; return its path."""
        values = {"name": stem, "num_samples": 300, "max_steps": 12, "learning_rate": 0.001, **changes}
        path = self.root / "experiments" / f"{stem}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(TINY.format(**values), encoding="utf-8")
        return path

    def experiment(self, stem: str) -> Experiment:
        return load_experiment(self.root / "experiments" / f"{stem}.yaml")

    def checkpoints(self, stem: str) -> list[CheckpointInfo]:
        return list_checkpoints(self.experiment(stem).folder.checkpoints)

    @property
    def environment(self) -> dict[str, str]:
        """Of the tester, without what would lead a command elsewhere."""
        kept = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
        return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **self.variables}

    def start(self, *arguments: str, module: str = "gpt_pipeline", **options: Any) -> subprocess.Popen[str]:
        """Start `python -m <module> <arguments>` in the project's folder."""
        return self._start("-m", module, *arguments, **options)

    def run(self, *arguments: str, module: str = "gpt_pipeline", expect: int | None = 0) -> str:
        """Run `python -m <module> <arguments>` to its end; return what it printed."""
        return self._ended(self.start(*arguments, module=module), expect)

    def call(self, *arguments: str) -> str:
        """Run the command in this process, which imports it once for all tests; return what it printed."""
        from gpt_pipeline.cli import command

        with chdir(self.root), redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
            for name in _UNWANTED:
                os.environ.pop(name, None)  # the test's end brings them back
            command.main(args=[*arguments], prog_name="gpt-pipeline", standalone_mode=False)
        return printed.getvalue()

    def program(self, code: str) -> str:
        """Run Python code in the project's folder; return what it printed."""
        return self._ended(self._start("-c", code), 0)

    def _start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.root,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    @staticmethod
    def _ended(process: subprocess.Popen[str], expect: int | None) -> str:
        output = output_of(process)
        assert expect is None or process.returncode == expect, output
        return output


def default_tracking_uri(base_folder: Path) -> str:
    """Return the URI of the SQLite store of MLflow in a project's folder."""
    return f"sqlite:///{(base_folder / 'mlflow.db').as_posix()}"


def make_data(experiment: Experiment) -> StageResult:
    """Make what the experiment trains on, in this process; return its shards."""
    from gpt_pipeline.data.documents.raw import prepare_raw
    from gpt_pipeline.data.documents.stage import prepare_documents
    from gpt_pipeline.data.tokens.shards import prepare_shards

    data, folder = experiment.data, experiment.data_folder
    documents = prepare_documents(data, prepare_raw(data, folder, say=_quiet), folder, say=_quiet)
    return prepare_shards(data, documents, folder, say=_quiet)


def train(experiment: Experiment, *, stop_at: int | None = None) -> TrainingJob:
    """Make the experiment's data and train it, in this process, to its end or to the step `stop_at`."""
    from gpt_pipeline.experiment.training import training_job
    from gpt_pipeline_tests.training_jobs import run

    job = training_job(experiment, make_data(experiment))
    run(job, stop_at=stop_at)
    return job


def _quiet(text: str) -> None: ...


def trainer_pids(project: TinyProject) -> list[int]:
    """Return the processes that train in the project, by Linux's `/proc`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "trainer_pipes" in line and str(project.root) in line:
            found.append(int(folder.name))
    return found
