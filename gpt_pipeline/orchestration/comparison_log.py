"""Each materialization of `comparison` as a run of MLflow, logged by dagster-mlflow's resource.

The resource makes one MLflow run of a Dagster run, which is what a comparison is. Trainings and evaluations keep to
`tracking`: the resource ends runs as FINISHED that failed, and finds no run by what was trained or evaluated. It also
sets the process's tracking address and experiment; both are as before when the comparison is logged. It is imported
here alone, and only to log, since it imports all of MLflow.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from gpt_pipeline import __version__
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.shown import without_password
from gpt_pipeline.tracking.descriptions import NOTE_TAG
from gpt_pipeline.tracking.store import open_store, shortened
from gpt_pipeline.tracking.tags import VERSION_TAG, project_of

if TYPE_CHECKING:
    from gpt_pipeline.comparison.standings import Comparison

RUN_NAME = "comparison"
TABLE_FILE = "comparison.json"
MARKDOWN_FILE = "comparison.md"
_METRICS = ("val_loss", "val_bpb", "correct")  # of the best checkpoint
_TURN_SECONDS = 30.0
_REMEDY = "the comparison itself is complete; materialize it again once MLflow works to have it there too"
_OF_MLFLOW = "MLFLOW_"


def mlflow_experiment(experiments: Sequence[Experiment]) -> str:
    """Return what MLflow calls the experiment that holds the comparisons of a project."""
    return f"Comparisons of {project_of(experiments[0])}"


def log_comparison(
    context: dg.AssetExecutionContext,
    mlflow: MlflowTracking,
    experiments: Sequence[Experiment],
    found: "Comparison",
    pictures: Mapping[str, str],
) -> dict[str, dg.MetadataValue]:
    """Log table, pictures (SVG by title) and ranks as one run; return metadata that leads to it.

    An MLflow that fails is only mentioned: the result is then empty.
    """
    name = mlflow_experiment(experiments)
    try:
        with open_store(
            mlflow.tracking_uri,
            experiment_name=name,  # made here, where it gets a place for its files beside the store
            what="the comparison",
            remedy=_REMEDY,
            lock=experiments[0].folder.root / ".mlflow.lock",
            wait_seconds=_TURN_SECONDS,
        ) as store:
            experiment = store.client.get_experiment(store.experiment_id).name
            tags = {"project": project_of(experiments[0]), **_tags(found)}
            with _resource(context, mlflow.tracking_uri, experiment, tags) as resource:
                run_id = str(resource.active_run().info.run_id)
                _log(resource, found, pictures)
            return mlflow.links(experiment_id=store.experiment_id, run_id=run_id)
    except Exception as error:  # of MLflow, of where it keeps files, or Dagster's around either
        cause = without_password(str(error.__cause__ or error))
        context.log.warning(f"The comparison is not in MLflow: {cause}")
        return {}


@contextmanager
def _resource(
    context: dg.AssetExecutionContext, tracking_uri: str, experiment: str, tags: Mapping[str, str]
) -> Iterator[Any]:
    """Yield dagster-mlflow's resource with a run of this Dagster run, which ends as the block does."""
    before = {key: value for key, value in os.environ.items() if key.startswith(_OF_MLFLOW)}
    config = {"experiment_name": experiment, "mlflow_tracking_uri": tracking_uri, "extra_tags": dict(tags)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        from dagster_mlflow import mlflow_tracking

        with dg.build_resources(
            {"mlflow": mlflow_tracking},
            instance=context.instance,
            resource_config={"mlflow": {"config": config}},
            dagster_run=context.run,
            log_manager=context.log,
        ) as resources:
            resource = resources.mlflow
            try:
                yield resource
            except BaseException:
                resource.end_run("FAILED")
                raise
            else:
                resource.end_run("FINISHED")
            finally:
                resource.set_tracking_uri(None)
                for key in [key for key in os.environ if key.startswith(_OF_MLFLOW)]:
                    del os.environ[key]
                os.environ.update(before)


def _log(resource: Any, found: "Comparison", pictures: Mapping[str, str]) -> None:
    from gpt_pipeline.comparison.show import markdown

    resource.set_tag("mlflow.runName", RUN_NAME)  # else that of the job
    resource.log_metrics(_metrics(found))
    resource.log_table(_table(found), TABLE_FILE)
    resource.log_text(markdown(found), MARKDOWN_FILE)
    for number, svg in enumerate(pictures.values(), start=1):
        resource.log_text(svg, "losses.svg" if len(pictures) == 1 else f"losses_{number}.svg")


def _tags(found: "Comparison") -> dict[str, str]:
    from gpt_pipeline.comparison.show import markdown, ranking

    return {
        VERSION_TAG: __version__,
        "experiments": str(len(found.standings)),
        "comparable": str(not found.obstacles).lower(),
        NOTE_TAG: shortened(f"{ranking(found) or 'nothing is evaluated yet'}\n\n{markdown(found)}"),
    }


def _metrics(found: "Comparison") -> dict[str, float]:
    """Return rank and figures of each experiment's best checkpoint, as `rank/<experiment>`."""
    metrics: dict[str, float] = {}
    for standing in found.standings:
        if standing.rank is not None:
            metrics[f"rank/{standing.name}"] = float(standing.rank)
        if standing.best is not None:
            measured = standing.best.metrics
            metrics |= {f"{key}/{standing.name}": measured[key] for key in _METRICS if key in measured}
    return metrics


def _table(found: "Comparison") -> dict[str, list[Any]]:
    """Return the experiments as columns for MLflow's table, with a row each."""
    rows = [
        {
            "experiment": standing.name,
            "group": group,
            "rank": standing.rank,
            "status": standing.status,
            "best step": standing.best and standing.best.step,
            **{key: standing.best and standing.best.metrics.get(key) for key in _METRICS},
            "parameters": standing.parameters,
            "tokens": standing.cost.tokens_seen,
        }
        for group, standings in [
            *((number, each.standings) for number, each in enumerate(found.groups, start=1)),
            (None, found.waiting),
        ]
        for standing in standings
    ]
    return {key: [row[key] for row in rows] for key in rows[0]}
