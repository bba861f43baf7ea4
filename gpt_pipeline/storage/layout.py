"""Where the files of an experiment are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExperimentFolder:
    """The folder of one experiment, `<base_folder>/<experiment_name>`, and the names inside it."""

    root: Path

    @property
    def base(self) -> Path:
        """`<base_folder>`, shared with other experiments; processes at work show there that they are alive."""
        return self.root.parent

    @property
    def checkpoints(self) -> Path:
        """`checkpoint_step_<N>.pt` and `best_model.pt`, each with a `.json` manifest."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, appended while training runs."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Of a training on sampled answers: some to held-out questions, with their rewards, one question a line."""
        return self.root / "samples.jsonl"

    @property
    def job(self) -> Path:
        """The trainer's job, as JSON."""
        return self.root / "job.json"

    @property
    def launch(self) -> Path:
        """Which job of an engine (`hardware.launcher`) the training was handed to, as JSON."""
        return self.root / "launch.json"

    @property
    def jobs(self) -> Path:
        """What was submitted to that engine, and its output."""
        return self.root / "launch"

    @property
    def micro_batch(self) -> Path:
        """How many sequences the GPU's memory held at once, found by trying, and on what, as JSON."""
        return self.root / "micro_batch.json"

    @property
    def training(self) -> Path:
        """The manifest of the finished training, written after its last step."""
        return self.root / "training.json"

    @property
    def start(self) -> Path:
        """The weights that the training begins with, where they had to be converted to a checkpoint."""
        return self.root / "start"

    @property
    def evaluations(self) -> Path:
        """One JSON file per checkpoint and evaluation."""
        return self.root / "evaluations"

    @property
    def logged_evaluations(self) -> Path:
        """One JSON file per evaluation that is in MLflow, of the same name."""
        return self.evaluations / "logged"

    @property
    def report(self) -> Path:
        return self.root / "report.html"
