"""Evaluations in MLflow, each exactly once.

An evaluation's run bears the evaluation's fingerprint as a tag. Everything logged comes from the result on disk, times
included, so logging it again writes the same rows. The next attempt completes one that was killed, and fills a store
that was wiped.

`best_model.pt` is not an evaluation of its own: the runs of its weights bear the tag `alias`, which moves when another
checkpoint becomes the best. The run of the training is the parent of its evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpt_pipeline.evaluation.result import BEST_ALIAS, EvaluationResult
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.dataset import LoggedDataset, log_dataset
from gpt_pipeline.tracking.evaluation_series import send_series
from gpt_pipeline.tracking.store import LoggedRun, OpenStore, milliseconds, missing_parameters, open_store
from gpt_pipeline.tracking.tables import (
    answers_as_markdown,
    answers_as_table,
    continuations_as_markdown,
    continuations_as_table,
)
from gpt_pipeline.tracking.tags import OF_TRAINING_TAG, VERSION_TAG, complete_evaluations, evaluation_runs
from gpt_pipeline.tracking.training_run import FINGERPRINT_TAG as TRAINING_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

FINGERPRINT_TAG = "gpt_pipeline.evaluation"
ALIAS_TAG = "alias"
TABLE_FILE = "questions_and_answers.json"
MARKDOWN_FILE = "questions_and_answers.md"
CONTINUATIONS_TABLE_FILE = "continuations.json"
CONTINUATIONS_FILE = "continuations.md"
_REMEDY = "the result is kept on disk: evaluate again once MLflow works, and it is logged without being computed again"


def log_evaluation(
    result: EvaluationResult,
    *,
    tracking_uri: str,
    experiment_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    run_tags: Mapping[str, str] | None = None,
    dataset: LoggedDataset | None = None,
    best_weights: str | None = None,
    if_unknown: Callable[[], object] = lambda: None,
) -> LoggedRun:
    """Log `result` as one finished MLflow run named `step_<N>`, or find that done.

    `parameters` is the experiment's configuration, nested as it may be. `tags` are those of the experiment, which all
    runs of the training get where they lack them; `run_tags` are of this run alone. `dataset` is what was evaluated
    on. `best_weights`, the hash of the weights in the training's `best_model.pt`, says which of its runs bear
    that alias from now on; None leaves the aliases as they are. `if_unknown` is called where nothing in the store tells
    that it has seen the training's evaluations before, so that it may be a new one, or a wiped one; once that has
    returned, the store tells it, if it has the training's run. Attempts on this machine take turns, so repeated and
    parallel ones end with one run.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    with open_store(
        tracking_uri,
        experiment_name=experiment_name,
        what="the evaluation",
        remedy=_REMEDY,
        lock=result.path.parent / "locks" / "mlflow.lock",
    ) as store:
        run = store.run(
            tag=FINGERPRINT_TAG,
            value=result.fingerprint,
            name=f"step_{result.step}",
            started_at=result.started_at,
            tags={**tags, **(run_tags or {}), **_tags(result)},
        )
        new = run.info.status != "FINISHED"
        if new:
            if dataset is not None:
                log_dataset(store, run.info.run_id, dataset, context="evaluation")
            _complete_run(store, run, result, parameters)
        training = str(result.checkpoint["training_fingerprint"])
        parent = store.find(tag=TRAINING_TAG, value=training)
        complete_evaluations(store, run, tags, training_fingerprint=training, parent=parent, if_unknown=if_unknown)
        if parent is not None:
            send_series(store, parent, ExperimentFolder(root=result.path.parent.parent), training, own=result)
        if best_weights is not None:
            _move_alias(store, training, best_weights)
        return LoggedRun(run_id=run.info.run_id, experiment_id=store.experiment_id, new=new)


def _complete_run(store: OpenStore, run: Run, result: EvaluationResult, parameters: Mapping[str, Any]) -> None:
    """Log what a finished run holds; what an earlier attempt logged becomes the same rows and files again."""
    from mlflow.entities import Metric

    client, run_id, at = store.client, run.info.run_id, milliseconds(result.created_at)
    metrics = [Metric(name, value, at, result.step) for name, value in _metrics(result).items()]
    client.log_batch(run_id, metrics=metrics, params=missing_parameters(run, parameters))
    title = f"step {result.step:,}"
    if result.answers:
        store.log_text(run, answers_as_table(result.answers), TABLE_FILE)
        store.log_text(run, answers_as_markdown(result.answers, title=title), MARKDOWN_FILE)
    if result.continuations:
        store.log_text(run, continuations_as_table(result.continuations), CONTINUATIONS_TABLE_FILE)
        store.log_text(run, continuations_as_markdown(result.continuations, title=title), CONTINUATIONS_FILE)
    client.set_terminated(run_id, status="FINISHED", end_time=at)


def _move_alias(store: OpenStore, training: str, best_weights: str) -> None:
    """Take the alias from the training's other runs and give it to those of the best weights."""
    wanted = evaluation_runs(store, training, having=f"tags.weights_sha256 = '{best_weights}'")
    bearing = evaluation_runs(store, training, having=f"tags.{ALIAS_TAG} = '{BEST_ALIAS}'")
    best, marked = ({run.info.run_id for run in runs} for runs in (wanted, bearing))
    for run_id in marked - best:
        store.client.delete_tag(run_id, ALIAS_TAG)
    for run_id in best - marked:
        store.client.set_tag(run_id, ALIAS_TAG, BEST_ALIAS)


def _metrics(result: EvaluationResult) -> dict[str, float]:
    """Return the evaluation's metrics and, under `trainer_`, what the trainer itself recorded of the checkpoint."""
    trainer = {f"trainer_{name}": value for name, value in result.checkpoint["metrics"].items() if value is not None}
    return {**result.metrics, **trainer, "evaluation_seconds": result.seconds}


def _tags(result: EvaluationResult) -> dict[str, str]:
    tables = [(TABLE_FILE, result.answers), (CONTINUATIONS_TABLE_FILE, result.continuations)]
    shown = [{"path": name, "type": "table"} for name, records in tables if records]
    return {
        "step": str(result.step),
        **{key: str(result.checkpoint[key]) for key in ("sha256", "weights_sha256", OF_TRAINING_TAG)},
        "checkpoint": str(result.checkpoint["file"]),
        "shards_fingerprint": result.upstream["shards"],
        "device": result.device,
        **({VERSION_TAG: result.versions["gpt_pipeline"]} if "gpt_pipeline" in result.versions else {}),
        # Shows the artifacts as tables in MLflow's "evaluation" view.
        "mlflow.loggedArtifacts": json.dumps(shown),
    }
