"""The evaluations of a training as series in its own run, so that they share a chart with what the trainer recorded.

MLflow changes no point of a series, and a point of another time would be a second one. So each step has one point: that
of the evaluation which was sent first. Sending it again writes the same row; an evaluation of the same checkpoint with
other settings has a run of its own and leaves the series alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt_pipeline.evaluation.result import EvaluationResult, read_evaluations, same_answers, same_losses
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.store import OpenStore, milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Run

PREFIX = "eval/"
_LONGEST_KEY = 250  # MLflow's limit; a kind of some 240 letters stands in the evaluation's own run only
_LOSS = "val_loss"
_OF_LOSSES = (_LOSS, "perplexity", "val_bpb")


def send_series(store: OpenStore, run: Run, folder: ExperimentFolder, training_fingerprint: str) -> None:
    """Send the evaluations in `folder` of the training with this fingerprint that the training's `run` lacks."""
    from mlflow.entities import Metric

    results = [
        result
        for result in read_evaluations(folder.evaluations)
        if result.checkpoint.get("training_fingerprint") == training_fingerprint
    ]
    history = store.client.get_metric_history(run.info.run_id, f"{PREFIX}{_LOSS}")
    times = {point.step: point.timestamp for point in history}
    sent = [result for result in results if times.get(result.step) == milliseconds(result.created_at)]
    first = min(sent or results, key=lambda result: result.created_at, default=None)
    if first is None:
        return
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
