"""Whether an evaluation looks like that of a healthy training, judged from results on disk alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpt_pipeline.evaluation.result import BASE_LOSS, SHARES, EvaluationResult, rank_of, ranking_metric, same_losses
from gpt_pipeline.findings import Finding, verdict

LOSS_MARGIN = 0.05
"""Nats per token by which a checkpoint may be worse than the best before it."""

SHARE_MARGIN = 0.1
"""The same for a share of right answers, which few questions tell no better."""

FORGETTING_MARGIN = 0.2
"""Nats per token by which post-training may raise the validation loss of the pretraining: a perplexity 1.22 times as
high."""

MAX_DEGENERATE_SHARE = 0.5
"""Share of the answers, for each kind of degeneration."""

MIN_DISTINCT_2 = 0.3
"""Share of different word pairs below which a text repeats itself; SYNTH's own texts are above 0.8."""

_MIN_WORDS = 12  # a shorter text may repeat a word without being repetitive


def loss_verdict(result: EvaluationResult, others: Iterable[EvaluationResult], decides: str = "val_loss") -> Finding:
    """Compare a loss with the best of the same training's earlier checkpoints, measured the same way.

    It is the one that `decides` which checkpoint is best, where all of them have it; else the validation loss.
    """
    earlier = [other for other in others if _is_earlier(other, result)]
    metric = ranking_metric([result, *earlier], decides)
    found = result.metrics[metric]
    is_loss = metric not in SHARES
    measured = f"step {result.step:,}: {metric} {found:.4f}{' nats per token' if is_loss else ''}"
    if not earlier:
        text = f"{measured}; no earlier checkpoint to compare with"
        return verdict(passed=True, text=text, facts={"step": result.step})
    best = min(earlier, key=lambda other: rank_of(other, metric))
    worse = rank_of(result, metric) - rank_of(best, metric)
    margin = LOSS_MARGIN if is_loss else SHARE_MARGIN
    text = (
        f"{measured}, {abs(worse):.4f} "
        f"{'worse' if worse > 0 else 'better'} than the best so far ({best.metrics[metric]:.4f} at step {best.step:,}; "
        f"up to {margin} is fine)"
    )
    if worse > margin:
        text += (
            ". The training diverges or overfits: look at loss and gradient norm in the report; lower "
            "training.learning_rate or training.num_epochs, or raise data.num_samples; best_model.pt keeps the best"
        )
    facts = {"step": result.step, "best_step": best.step, "above_best": worse, "margin": margin}
    return verdict(passed=worse <= margin, text=text, facts=facts)


def forgetting_verdict(
    result: EvaluationResult, others: Iterable[EvaluationResult], *, on_the_same_data: bool
) -> Finding:
    """Compare the loss on the pretraining's held-out tokens with that of the weights which post-training began with.

    `on_the_same_data`: `val_loss` is that loss, since the pretraining had the same documents.
    """
    if BASE_LOSS not in result.metrics and not on_the_same_data:
        text = "not measured: what the pretraining held out is not here"
        return verdict(passed=True, text=text, facts={"step": result.step})
    key = BASE_LOSS if BASE_LOSS in result.metrics else "val_loss"
    starts = [each for each in others if each.step == 0 and _is_comparable(each, result) and key in each.metrics]
    found, facts = result.metrics[key], {"step": result.step, "margin": FORGETTING_MARGIN}
    if not starts:
        text = f"{found:.4f} nats per token; the weights it began with have no evaluation to compare with"
        return verdict(passed=True, text=text, facts=facts)
    before = starts[-1].metrics[key]
    lost = found - before
    text = (
        f"step {result.step:,}: {found:.4f} nats per token of what the pretraining held out, {abs(lost):.4f} "
        f"{'above' if lost > 0 else 'below'} the weights it began with ({before:.4f}; up to {FORGETTING_MARGIN} above "
        "is fine)"
    )
    if lost > FORGETTING_MARGIN:
        text += ". It unlearns what the base knew: lower training.learning_rate or the number of updates"
    return verdict(passed=lost <= FORGETTING_MARGIN, text=text, facts={**facts, "before": before, "above_before": lost})


def _is_earlier(other: EvaluationResult, result: EvaluationResult) -> bool:
    return _is_comparable(other, result) and other.step < result.step


def _is_comparable(other: EvaluationResult, result: EvaluationResult) -> bool:
    same_training = other.checkpoint["training_fingerprint"] == result.checkpoint["training_fingerprint"]
    return same_training and same_losses(other, result)


def output_verdict(result: EvaluationResult) -> Finding:
    """Judge answers and continuations: a model with too many empty, repetitive or never-ending ones cannot write.

    Only those with enough room for the document's own text can count as never ending.
    """
    texts = (*result.answers, *result.continuations)
    endable = [text for text in texts if text["reference_tokens"] < text["new_tokens"] or text["ended"]]
    shares = {
        "empty": _share(texts, _is_empty),
        "repetitive": _share(texts, _is_repetitive),
        "never_ending": _share(endable, lambda text: not text["ended"]),
    }
    counts = {name: len(some) for name in ("answers", "continuations") if (some := getattr(result, name))}
    counted = " and ".join(f"{count} {name}" for name, count in counts.items()) or "no texts"
    wrong = [name for name, share in shares.items() if share > MAX_DEGENERATE_SHARE]
    told = ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in shares.items())
    text = f"step {result.step:,}: of {counted} {told} (up to {MAX_DEGENERATE_SHARE:.0%} each is fine)"
    if wrong:
        text += (
            f". Usual in the first thousands of steps. Later: read the {' and '.join(counts)} in the report, check "
            "that the loss still falls, and lower training.learning_rate if it does not"
        )
    return verdict(passed=not wrong, text=text, facts={"step": result.step, **counts, **shares})


def _share(answers: Iterable[Mapping[str, Any]], is_so: Callable[[Mapping[str, Any]], bool]) -> float:
    flags = [is_so(answer) for answer in answers]
    return sum(flags) / max(1, len(flags))


def _is_empty(answer: Mapping[str, Any]) -> bool:
    return not answer["generated"].strip()


def _is_repetitive(answer: Mapping[str, Any]) -> bool:
    distinct = answer["distinct_2"]
    return len(answer["generated"].split()) >= _MIN_WORDS and distinct is not None and distinct < MIN_DISTINCT_2
