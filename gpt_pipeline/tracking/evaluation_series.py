"""The evaluations of a training as series in its own run, so that they share a chart with what the trainer recorded.

MLflow changes no point of a series, and a point of another time would be a second one. So each step has one point: that
of the evaluation which was sent first. Sending it again writes the same row; an evaluation of the same checkpoint with
other settings has a run of its own and leaves the series alone.

There may be thousands. So the training's run bears a tag from when it has had all that there are. After that, whoever
logs an evaluation sends that one, and those without a note that they are in MLflow whose step has no point: another
machine made them, and they came later.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    read_evaluation,
    read_evaluations,
    same_answers,
    same_losses,
    same_samples,
)
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.store import LONGEST_KEY, OpenStore, milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Run

PREFIX = "eval/"
_LOSS = "val_loss"
_OF_LOSSES = (_LOSS, "perplexity", "val_bpb")
_NAMED = re.compile(r"step_(\d+)-")  # by `evaluation_path`
_FIRST_TAG = "gpt_pipeline.series_began_with"
"""On a training's run: the file of the evaluation that all others in the series are compared with."""


def send_series(
    store: OpenStore,
    run: Run,
    folder: ExperimentFolder,
    training_fingerprint: str,
    *,
    own: EvaluationResult | None = None,
) -> None:
    """Send the evaluations in `folder` of the training with this fingerprint that the training's `run` lacks.

    `own` is the one that is being logged, perhaps again because the attempt before was cut off.
    """
    begun = run.data.tags.get(_FIRST_TAG)
    first = None if begun is None else read_evaluation(folder.evaluations / begun)
    if first is None or own is None:
        results = read_evaluations(folder.evaluations)
        times = _times(store, run, [result.step for result in results])
    else:
        unnoted = _unnoted(folder)
        times = _times(store, run, [own.step, *unnoted.values()])
        lacking = [path for path, step in unnoted.items() if step not in {*times, own.step}]
        results = [own, *(result for path in lacking if (result := read_evaluation(path)) is not None)]
    results = [each for each in results if each.checkpoint.get("training_fingerprint") == training_fingerprint]
    if first is None:
        sent = [result for result in results if times.get(result.step) == milliseconds(result.created_at)]
        first = min(sent or results, key=lambda result: result.created_at, default=None)
    if first is not None:
        in_doubt = {max(times, default=None), None if own is None else own.step}
        _send(store, run, results, first=first, times=times, in_doubt=in_doubt)
        if first.path.name != begun:
            store.client.set_tag(run.info.run_id, _FIRST_TAG, first.path.name)


def _unnoted(folder: ExperimentFolder) -> dict[Path, int]:
    """Return the evaluations without a note that they are in MLflow, with their steps; no file is read."""
    noted = {path.name for path in folder.logged_evaluations.glob("*.json")}
    found = {path: _NAMED.match(path.name) for path in folder.evaluations.glob("*.json") if path.name not in noted}
    return {path: int(name[1]) for path, name in found.items() if name is not None}


def _times(store: OpenStore, run: Run, steps: Iterable[int]) -> dict[int, int]:
    """Return the times of the points that the series has, by step; of a series that ends before all `steps` none."""
    key = f"{PREFIX}{_LOSS}"
    last = max((point.step for point in run.data.to_proto().metrics if point.key == key), default=-1)
    if all(step > last for step in steps):
        return {}
    return {point.step: point.timestamp for point in store.client.get_metric_history(run.info.run_id, key)}


def _send(
    store: OpenStore,
    run: Run,
    results: Iterable[EvaluationResult],
    *,
    first: EvaluationResult,
    times: dict[int, int],
    in_doubt: Collection[int | None],
) -> None:
    """Send the results by ascending step, of a step the newest; `times` are of the points that the series has.

    Of the steps `in_doubt` it may have only a part, if the attempt that sent them was cut off.
    """
    from mlflow.entities import Metric

    known = times.keys() - in_doubt
    newest_first = sorted(results, key=lambda result: result.created_at, reverse=True)
    for result in sorted(newest_first, key=lambda result: result.step):
        at = milliseconds(result.created_at)
        is_new = result.step not in known and times.setdefault(result.step, at) == at
        if is_new and same_losses(first, result):
            points = series_values(result, first)
            store.client.log_batch(
                run.info.run_id,
                metrics=[
                    Metric(PREFIX + key, value, at, result.step)
                    for key, value in points.items()
                    if len(PREFIX + key) <= LONGEST_KEY  # else it stands in the evaluation's own run only
                ],
            )


def series_values(result: EvaluationResult, first: EvaluationResult) -> dict[str, float]:
    """Return the points of a result by name; none of answers to other questions than in `first`, or drawn otherwise."""
    if not same_answers(first, result):
        return {key: result.metrics[key] for key in _OF_LOSSES if key in result.metrics}
    right = share_of(result.answers, "correct")
    bounds = {} if right is None else dict(zip(("correct_low", "correct_high"), right.interval, strict=True))
    left_out = () if same_samples(first, result) else ("pass_at_1", "pass_at_k")
    return {**{key: value for key, value in result.metrics.items() if key not in left_out}, **bounds}
