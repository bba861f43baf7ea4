"""The `evaluation:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require
from gpt_pipeline.storage.fingerprint import added_later


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often the trainer validates and saves, and how each checkpoint is evaluated afterwards."""

    eval_freq: int = 500
    """Steps between two estimates of the validation loss during training."""

    eval_iters: int = 20
    """An estimate reads as many times `training.batch_size` sequences, whatever `tokens_per_step` says, or, with
    `objective: rl`, as many times `rl.prompts_per_step` questions."""

    save_every_n_iterations: int = 1000
    """Steps between two checkpoints."""

    keep_last: int = 3
    """How many of the newest checkpoints are kept; the best one and those being evaluated are kept as well."""

    num_questions: int = 5
    """Held-out questions that each checkpoint answers; of documents that ask nothing, those that it continues."""

    num_documents: int = 256
    """Held-out documents whose loss is measured one by one: by kind, and for their answers alone."""

    max_new_tokens: int = 256
    """Maximum tokens of an answer or a continuation."""

    max_validation_tokens: int = 1_000_000
    """Maximum held-out tokens for a checkpoint's validation loss, taken from the start of the split."""

    seed: int = 0
    """Selects questions and documents among the held-out ones."""

    samples_per_question: int = added_later(0)
    """Answers drawn to each question besides the likeliest one, for pass@1 and pass@k: how often one is right, and how
    often any of them is; 0: none."""

    sample_temperature: float = added_later(1.0)
    """At which these are drawn."""

    register_model: bool = added_later(False)
    """Register the best checkpoint of the finished training as a version of a model in MLflow, named like the
    experiment, with the files for `transformers`. It changes no result."""

    def __post_init__(self) -> None:
        for key in (
            "eval_freq",
            "eval_iters",
            "save_every_n_iterations",
            "keep_last",
            "max_new_tokens",
            "max_validation_tokens",
        ):
            require(getattr(self, key) > 0, key, found=getattr(self, key), need="a whole number above 0")
        for key in ("num_questions", "num_documents", "seed", "samples_per_question"):
            require(getattr(self, key) >= 0, key, found=getattr(self, key), need="a whole number, 0 or above")
        found = self.sample_temperature
        require(0 < found < float("inf"), "sample_temperature", found=found, need="a finite number above 0")
        require(
            self.samples_per_question > 0 or found == 1,
            "sample_temperature",
            found=found,
            need="no such key with samples_per_question=0, which draws nothing",
            remedy="set samples_per_question",
        )
