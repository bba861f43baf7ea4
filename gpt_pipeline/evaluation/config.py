"""The `evaluation:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often the trainer looks at itself, and how each checkpoint is judged afterwards."""

    eval_freq: int = 500
    """Steps between two estimates of the validation loss while training."""

    eval_iters: int = 20
    """Batches in one such estimate."""

    save_every_n_iterations: int = 1000
    """Steps between two checkpoints."""

    keep_last: int = 3
    """Checkpoints kept, newest first; the best one and those being evaluated are kept besides."""

    num_questions: int = 5
    """Questions from held-out articles that each checkpoint answers."""

    num_documents: int = 256
    """Held-out documents whose loss is measured one by one: by kind of exercise, and of their answers alone."""

    max_new_tokens: int = 256
    """Tokens after which an answer is cut off."""

    max_validation_tokens: int = 1_000_000
    """Held-out tokens that the validation loss of a checkpoint is computed on, from the first on."""

    seed: int = 0
    """Chooses questions and documents among the held-out ones."""

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
        for key in ("num_questions", "num_documents", "seed"):
            require(getattr(self, key) >= 0, key, found=getattr(self, key), need="a whole number, 0 or above")
