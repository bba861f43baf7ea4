"""Evaluations in MLflow, each exactly once.

A thin layer over `MlflowClient`. A run belongs to an evaluation's fingerprint, which it bears as a tag; everything
logged comes from the result on disk, its times included, so that logging it again writes the same rows. An attempt
that was killed is completed by the next one, and a store that was wiped is filled again from the results.

`best_model.pt` is no evaluation of its own: the runs of its weights bear the tag `alias`, which moves on when another
checkpoint becomes the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt_pipeline.evaluation.alias import BEST_ALIAS
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.store import (
    as_tracking_error,
    configure_mlflow,
    experiment_id,
    find_run,
    log_missing_parameters,
    milliseconds,
    open_client,
    shortened,
    turn,
)
from gpt_pipeline.tracking.tables import answers_as_markdown, answers_as_table

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

FINGERPRINT_TAG = "gpt_pipeline.evaluation"
ALIAS_TAG = "alias"
TABLE_FILE = "questions_and_answers.json"
MARKDOWN_FILE = "questions_and_answers.md"
_MAX_RUNS = 50_000  # of one training; MLflow returns no more at once
_REMEDY = "the result is kept on disk: evaluate again once MLflow works, and it is logged without being computed again"


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The one MLflow run of an evaluation."""

    run_id: str
    experiment_id: str
    new: bool
    """False when it was complete before."""


def log_evaluation(
    result: EvaluationResult,
    *,
    tracking_uri: str,
    experiment_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    best_weights: str | None = None,
) -> LoggedRun:
    """Log `result` as one finished MLflow run named `step_<N>`, or find that done.

    `parameters` is the experiment's configuration, nested as it may be; `tags` are added to those that identify the
    evaluation. `best_weights`, the hash of the weights in the training's `best_model.pt`, says which of its runs bear
    that alias from now on; None leaves the aliases as they are. Attempts on this machine take turns, so repeated and
    parallel ones end with one run.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    configure_mlflow()
    lock = result.path.parent / "locks" / "mlflow.lock"
    with turn(tracking_uri, otherwise=lock), as_tracking_error(tracking_uri, what="the evaluation", remedy=_REMEDY):
        client = open_client(tracking_uri)
        experiment = experiment_id(client, folder_name(experiment_name, key="experiment_name"), tracking_uri)
        run = find_run(client, experiment, tag=FINGERPRINT_TAG, value=result.fingerprint)
        new = run is None or run.info.status != "FINISHED"
        if run is None:
            run = _create_run(client, experiment, result, tags)
        if new:
            _complete_run(client, run, result, parameters, tags)
        if best_weights is not None:
            _move_alias(client, experiment, result, best_weights)
        return LoggedRun(run_id=run.info.run_id, experiment_id=experiment, new=new)


def _create_run(client: MlflowClient, experiment: str, result: EvaluationResult, tags: Mapping[str, str]) -> Run:
    return client.create_run(
        experiment,
        start_time=milliseconds(result.started_at),
        tags=_tags(result, tags),
        run_name=f"step_{result.step}",
    )


def _complete_run(
    client: MlflowClient, run: Run, result: EvaluationResult, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    """Log whatever a finished run holds; what is there already is written again, to the same rows and files."""
    from mlflow.entities import Metric, RunTag

    run_id, at = run.info.run_id, milliseconds(result.created_at)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, at, result.step) for name, value in _metrics(result).items()],
        tags=[RunTag(key, value) for key, value in _tags(result, tags).items()],
    )
    log_missing_parameters(client, run, parameters)
    client.log_text(run_id, answers_as_table(result.answers), TABLE_FILE)
    client.log_text(run_id, answers_as_markdown(result.answers, title=f"step {result.step:,}"), MARKDOWN_FILE)
    client.set_terminated(run_id, status="FINISHED", end_time=at)


def _move_alias(client: MlflowClient, experiment: str, result: EvaluationResult, best_weights: str) -> None:
    """Give the alias to the training's runs of the best weights, after taking it from the others."""
    runs = client.search_runs(
        [experiment],
        filter_string=f"tags.training_fingerprint = '{result.checkpoint['training_fingerprint']}'",
        max_results=_MAX_RUNS,
    )
    wanted = {run.info.run_id for run in runs if run.data.tags.get("weights_sha256") == best_weights}
    bearing = {run.info.run_id for run in runs if run.data.tags.get(ALIAS_TAG) == BEST_ALIAS}
    for run_id in bearing - wanted:
        client.delete_tag(run_id, ALIAS_TAG)
    for run_id in wanted - bearing:
        client.set_tag(run_id, ALIAS_TAG, BEST_ALIAS)


def _metrics(result: EvaluationResult) -> dict[str, float]:
    """Return the evaluation's metrics and, under `trainer_`, what the trainer itself said of the checkpoint."""
    trainer = {f"trainer_{name}": value for name, value in result.checkpoint["metrics"].items() if value is not None}
    return {**result.metrics, **trainer, "evaluation_seconds": result.seconds}


def _tags(result: EvaluationResult, tags: Mapping[str, str]) -> dict[str, str]:
    own = {
        FINGERPRINT_TAG: result.fingerprint,
        "step": str(result.step),
        "checkpoint": str(result.checkpoint["file"]),
        "sha256": str(result.checkpoint["sha256"]),
        "weights_sha256": str(result.checkpoint["weights_sha256"]),
        "training_fingerprint": str(result.checkpoint["training_fingerprint"]),
        "shards_fingerprint": result.upstream["shards"],
        "device": result.device,
        # Shows the artifact as a table in MLflow's "evaluation" view.
        "mlflow.loggedArtifacts": f'[{{"path": "{TABLE_FILE}", "type": "table"}}]',
    }
    return {**{key: shortened(value) for key, value in tags.items()}, **own}
