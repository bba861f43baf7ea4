"""The metrics of an evaluation as tables show them: their names, their units, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpt_pipeline.evaluation.result import BASE_LOSS, EvaluationResult
from gpt_pipeline.evaluation.shares import share_of, within_noise
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

    of_samples: bool = False
    """True for what is measured on answers that are drawn."""

    def text(self, result: EvaluationResult | None) -> str:
        """Return its value in an evaluation as a table shows it; a share with its interval."""
        value = None if result is None else result.metrics.get(self.key)
        if not self.share:
            return wording.decimal(value, self.places)
        share = None if result is None else share_of(result.answers, self.key)
        return wording.percent(value) if share is None else str(share)

    def leaders(self, results: Sequence[EvaluationResult | None]) -> frozenset[int]:
        """Return the place of the best, and of those within noise of it; none where nothing is better.

        Give results that compare. Answers are told apart question by question; losses as they are, since how far
        chance moves them is not recorded.
        """
        values = {
            place: each.metrics[self.key] for place, each in enumerate(results) if each and self.key in each.metrics
        }
        if not self.ranked or len({*values.values()}) < 2:
            return frozenset()
        best = (max if self.higher_is_better else min)(values, key=values.__getitem__)
        return frozenset(place for place in values if self._is_as_good(results[place], results[best]))

    def _is_as_good(self, result: EvaluationResult | None, best: EvaluationResult | None) -> bool:
        assert result is not None
        assert best is not None
        if result.metrics[self.key] == best.metrics[self.key]:
            return True
        return within_noise(result.answers, best.answers, self.key)


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
        key="document_loss",
        label="document loss",
        meaning="nats per token of held-out documents by themselves, each from its beginning",
        higher_is_better=False,
        of_answers=False,
    ),
    Metric(
        key="completion_loss",
        label="completion loss",
        meaning="the same, of their reasoning and answers alone, which fine-tuning trains on",
        higher_is_better=False,
        of_answers=False,
    ),
    Metric(
        key="averaged_val_loss",
        label="averaged",
        meaning="val loss of the mean of the weights (training.average_weights)",
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
        key=BASE_LOSS,
        label="base's loss",
        meaning="nats per token of what the pretraining held out, which post-training may unlearn",
        higher_is_better=False,
        of_answers=False,
    ),
    Metric(
        key="documents_truncated",
        label="cut documents",
        meaning="held-out documents longer than the context, whose loss is that of their end",
        places=0,
        ranked=False,
        of_answers=False,
    ),
    Metric(key="well_formed", label="well-formed", meaning="ends by itself with all its parts", share=True),
    Metric(key="ended", label="ended", meaning="stops by itself before the limit", share=True),
    Metric(key="correct", label="right", meaning="the expected number, else the expected text", share=True),
    Metric(key="numeric_match", label="number", meaning="right where a number is expected", share=True),
    Metric(key="choice_match", label="option", meaning="right where the question gives options", share=True),
    Metric(key="pass_at_1", label="pass@1", meaning="share of drawn answers that are right", places=2, of_samples=True),
    Metric(key="pass_at_k", label="pass@k", meaning="any of the drawn answers is right", share=True, of_samples=True),
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
