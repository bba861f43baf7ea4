"""Comparing the project's experiments: the asset `comparison`, its job, and the sensor that keeps it up to date."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.attributes import OWNERS, code_references, stage_tags
from gpt_pipeline.orchestration.comparison_log import log_comparison
from gpt_pipeline.orchestration.dead_runs import DEAD_TAG, requester_tag
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.history import is_under_way
from gpt_pipeline.orchestration.metadata import picture_markdown
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.progress.report import shown_fingerprint
from gpt_pipeline.project import COMPARISON_PAGE
from gpt_pipeline.shown import in_markdown
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.training.heartbeat import trainer_state

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from gpt_pipeline.comparison.standings import Comparison

COMPARISON = dg.AssetKey(["comparison"])
_VERSION = "3"  # raised by hand when the same reports give another comparison
_SENSOR_SECONDS = 60
_MOST_REPEATS = 2  # of a comparison whose process was killed


@dataclass(frozen=True, kw_only=True)
class ComparisonDefinitions:
    """The Dagster definitions of a comparison."""

    asset: dg.AssetsDefinition
    job: "UnresolvedAssetJobDefinition"
    sensor: dg.SensorDefinition


def comparison_definitions(experiments: Sequence[Experiment]) -> list[ComparisonDefinitions]:
    """Return the comparison of the experiments; nothing for fewer than two."""
    if len(experiments) < 2:
        return []
    asset = _asset(experiments)
    job = dg.define_asset_job(
        keys.COMPARISON_JOB, dg.AssetSelection.assets(asset), description="Compare all experiments of the project."
    )
    return [ComparisonDefinitions(asset=asset, job=job, sensor=_sensor(experiments, job))]


def comparison_fingerprint(experiments: Sequence[Experiment]) -> str:
    """Return the identity of what a comparison would show now: what each experiment's report shows."""
    shown = {experiment.name: shown_fingerprint(experiment.folder.root) or "" for experiment in experiments}
    return fingerprint("comparison", config=shown, code_version=_VERSION)


def _asset(experiments: Sequence[Experiment]) -> dg.AssetsDefinition:
    @dg.asset(
        key=COMPARISON,
        group_name="comparison",
        deps=[keys.asset_key(experiment, "report") for experiment in experiments],
        kinds={"markdown"},
        owners=OWNERS,
        tags=stage_tags("comparison"),
        metadata=code_references("comparison"),
        description="Compares all experiments of the project: quality, cost, and how their files differ. "
        "Updated by its sensor when a report has changed and nothing is training.",
    )
    def comparison(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[MlflowTracking]) -> dg.MaterializeResult:
        with explained():
            return _compare(context, experiments, mlflow)

    return comparison


def _reported(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return the experiments that have a report."""
    return [each for each in experiments if shown_fingerprint(each.folder.root) is not None]


def _compare(
    context: dg.AssetExecutionContext, experiments: Sequence[Experiment], mlflow: MlflowTracking
) -> dg.MaterializeResult:
    from gpt_pipeline.comparison.compare import compare_with_families
    from gpt_pipeline.comparison.show import as_json, markdown, pictures, ranking

    identity = comparison_fingerprint(experiments)
    found, families = compare_with_families(experiments)
    drawn = pictures(found, experiments)
    losses = [f"{in_markdown(title)}\n\n{picture_markdown('validation losses', svg)}" for title, svg in drawn.items()]
    by_key = _by_key(families)
    return dg.MaterializeResult(
        metadata={
            **({"families": dg.MetadataValue.md(by_key)} if by_key else {}),
            "ranking": ranking(found) or "nothing is evaluated yet",
            # On the server of these pages, as `gpt-pipeline ui` starts it.
            "comparison_page": dg.MetadataValue.url(COMPARISON_PAGE),
            "table": dg.MetadataValue.md(markdown(found)),
            "losses": dg.MetadataValue.md("\n\n".join(losses)),
            "figures": dg.MetadataValue.json(as_json(found)),
            "experiments": len(found.standings),
            "comparable": not found.obstacles,
            **log_comparison(context, mlflow, experiments, found, drawn),
        },
        data_version=dg.DataVersion(identity),
    )


def _by_key(families: Mapping[str, "Comparison"]) -> str:
    """Return, for each family, the metric that ranks it against the key in which it differs most, as markdown."""
    from gpt_pipeline.comparison.by_key import with_key
    from gpt_pipeline.comparison.show import key_markdown

    parts = []
    for name, comparison in families.items():
        for title, svg, table in key_markdown(with_key(comparison)):
            picture = picture_markdown("picture", svg)
            parts.append(f"### {in_markdown(name)}: {in_markdown(title)}\n\n{picture}\n\n{table}")
    return "\n\n".join(parts)


def _sensor(experiments: Sequence[Experiment], job: "UnresolvedAssetJobDefinition") -> dg.SensorDefinition:
    @dg.sensor(
        name="new_comparison",
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=_SENSOR_SECONDS,
        description="Compares the experiments anew when a report has changed and no training is running.",
    )
    def new_comparison(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        reported = len(_reported(experiments))
        if reported < 2:
            return dg.SkipReason(f"{reported} of {len(experiments)} experiments have a report.")
        wanted, shown = comparison_fingerprint(experiments), _shown(context.instance)
        if shown == wanted:
            return dg.SkipReason("The comparison shows the newest reports.")
        # Each checkpoint changes a report; a run for each would only take time from the training.
        training = [each.name for each in experiments if trainer_state(each.folder.root) == "running"]
        if training:
            return dg.SkipReason(f"Waits for the training of {', '.join(training)} to end.")
        if is_under_way(context.instance, keys.COMPARISON_JOB):
            return dg.SkipReason("A comparison is under way.")
        tags = {keys.COMPARISON_TAG: wanted}
        killed = context.instance.get_runs_count(dg.RunsFilter(tags={**tags, DEAD_TAG: "yes"}))
        again = f"@{min(killed, _MOST_REPEATS)}" if killed else ""
        # One that fails is not requested again and again.
        return dg.RunRequest(run_key=f"{wanted}@{shown}{again}", tags={**tags, **requester_tag()})

    return new_comparison


def _shown(instance: dg.DagsterInstance) -> str | None:
    """Return the identity of the newest comparison in Dagster's history."""
    event = instance.get_latest_materialization_event(COMPARISON)
    materialization = event.asset_materialization if event else None
    return (materialization.tags or {}).get("dagster/data_version") if materialization else None
