"""The metrics of an evaluation as tables show them: their names, their units, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpt_pipeline.report import wording


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the table of checkpoints."""

    key: str
    label: str
    meaning: str
    share: bool = False
    higher_is_better: bool = True
    places: int = 3
    ranked: bool = True
    """False where neither more nor less is better by itself."""

    of_answers: bool = True
    """False for what is measured on the validation tokens."""

    def text(self, value: float | None) -> str:
        """Return a value as a table shows it."""
        return wording.percent(value) if self.share else wording.decimal(value, self.places)

    def best_of(self, values: Iterable[float | None]) -> float | None:
        """Return the best of the values; None where neither way is better, or fewer than two of them differ."""
        present = {value for value in values if value is not None}
        if not self.ranked or len(present) < 2:
            return None
        return max(present) if self.higher_is_better else min(present)


METRICS = (
    Metric(
        key="val_loss", label="val loss", meaning="nats per held-out token", higher_is_better=False, of_answers=False
    ),
    Metric(
        key="perplexity",
        label="perplexity",
        meaning="e to the loss",
        higher_is_better=False,
        places=1,
        of_answers=False,
    ),
    Metric(
        key="val_bpb",
        label="bpb",
        meaning="bits per UTF-8 byte of held-out text",
        higher_is_better=False,
        of_answers=False,
    ),
    Metric(
        key="answer_loss",
        label="answer loss",
        meaning="nats per token of the reference answers, given question and reference reasoning",
        higher_is_better=False,
    ),
    Metric(
        key="documents_truncated",
        label="cut documents",
        meaning="held-out documents longer than the context, whose loss is that of their first part",
        places=0,
        ranked=False,
        of_answers=False,
    ),
    Metric(key="well_formed", label="well-formed", meaning="ends by itself with all its parts", share=True),
    Metric(key="ended", label="ended", meaning="stops by itself before the limit", share=True),
    Metric(key="correct", label="right", meaning="the expected number, else the expected text", share=True),
    Metric(key="numeric_match", label="number", meaning="right where a number is expected", share=True),
    Metric(key="choice_match", label="option", meaning="right where the question gives options", share=True),
    Metric(key="token_f1", label="word F1", meaning="overlap with the expected words"),
    Metric(
        key="distinct_2",
        label="distinct",
        meaning="share of word pairs that differ; low is repetitive",
        ranked=False,
    ),
    Metric(key="new_tokens", label="length", meaning="mean tokens of an answer", places=0, ranked=False),
)


def measured(found: Iterable[Mapping[str, float]]) -> list[Metric]:
    """Return the metrics that any of the evaluations in `found` has, in the order of the table."""
    names = {name for metrics in found for name in metrics}
    return [metric for metric in METRICS if metric.key in names]
