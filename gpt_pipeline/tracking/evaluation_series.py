"""The evaluations of a training as series in its own run, so that they share a chart with what the trainer recorded.

MLflow changes no point of a series, and a point of another time would be a second one. So each step has one point: that
of the evaluation which was sent first. Sending it again writes the same row; an evaluation of the same checkpoint with
other settings has a run of its own and leaves the series alone.

There may be thousands. So the training's run bears a tag from when it has had all that there are: after that, whoever
logs an evaluation sends that one, and asks for the points that are there only if its step is not beyond them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    read_evaluation,
    read_evaluations,
    same_answers,
    same_losses,
)
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.store import OpenStore, milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Run

PREFIX = "eval/"
_LONGEST_KEY = 250  # MLflow's limit; a kind of some 240 letters stands in the evaluation's own run only
_LOSS = "val_loss"
_OF_LOSSES = (_LOSS, "perplexity", "val_bpb")
_FIRST_TAG = "gpt_pipeline.series_began_with"
"""On a training's run: the file of the evaluation that all others in the series are compared with."""


def send_series(
    store: OpenStore,
    run: Run,
    folder: ExperimentFolder,
    training_fingerprint: str,
    *,
    only: EvaluationResult | None = None,
) -> None:
    """Send the evaluations in `folder` of the training with this fingerprint that the training's `run` lacks.

    `only` is the one that it may lack if it has ever had all others.
    """
    begun = run.data.tags.get(_FIRST_TAG)
    first = None if begun is None else read_evaluation(folder.evaluations / begun)
    if first is not None and only is not None:
        _send(store, run, [only], first)
        return
    results = [
        result
        for result in read_evaluations(folder.evaluations)
        if result.checkpoint.get("training_fingerprint") == training_fingerprint
    ]
    times = _times(store, run, results)
    sent = [result for result in results if times.get(result.step) == milliseconds(result.created_at)]
    first = first or min(sent or results, key=lambda result: result.created_at, default=None)
    if first is not None:
        _send(store, run, results, first)
        store.client.set_tag(run.info.run_id, _FIRST_TAG, first.path.name)


def _times(store: OpenStore, run: Run, results: Iterable[EvaluationResult]) -> dict[int, int]:
    """Return the times of the points that the series has, by step; of a series that ends before all `results` none."""
    key = f"{PREFIX}{_LOSS}"
    last = max((point.step for point in run.data.to_proto().metrics if point.key == key), default=-1)
    if all(result.step > last for result in results):
        return {}
    return {point.step: point.timestamp for point in store.client.get_metric_history(run.info.run_id, key)}


def _send(store: OpenStore, run: Run, results: Sequence[EvaluationResult], first: EvaluationResult) -> None:
    from mlflow.entities import Metric

    times = _times(store, run, results)
    newest = max(times, default=None)  # whose batch may have been cut off
    known = set(times) - {newest}
    for result in reversed(results):  # of a step that has no point yet, the newest
        at = milliseconds(result.created_at)
        is_new = result.step not in known and times.setdefault(result.step, at) == at
        if is_new and same_losses(first, result):
            points = series_values(result, first)
            store.client.log_batch(
                run.info.run_id,
                metrics=[
                    Metric(PREFIX + key, value, at, result.step)
                    for key, value in points.items()
                    if len(PREFIX + key) <= _LONGEST_KEY
                ],
            )


def series_values(result: EvaluationResult, first: EvaluationResult) -> dict[str, float]:
    """Return the points of a result by name; of answers to other questions than in `first` none."""
    if not same_answers(first, result):
        return {key: result.metrics[key] for key in _OF_LOSSES if key in result.metrics}
    right = share_of(result.answers, "correct")
    bounds = {} if right is None else dict(zip(("correct_low", "correct_high"), right.interval, strict=True))
    return {**result.metrics, **bounds}
