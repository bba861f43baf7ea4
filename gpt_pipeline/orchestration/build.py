"""The project's Dagster definitions: a factory over the experiment files."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import base_file
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.broken import broken_experiment_asset, no_experiments_asset
from gpt_pipeline.orchestration.checks import data_checks, evaluation_checks, training_checks
from gpt_pipeline.orchestration.comparison_step import comparison_definitions
from gpt_pipeline.orchestration.data_assets import data_assets, mixed_asset
from gpt_pipeline.orchestration.executors import project_executor
from gpt_pipeline.orchestration.experiment_assets import experiment_assets
from gpt_pipeline.orchestration.notifications import notification_sensors
from gpt_pipeline.orchestration.run_config import step_outputs
from gpt_pipeline.orchestration.sensors import new_checkpoints_sensor, reevaluation_schedule
from gpt_pipeline.orchestration.tracking_resource import mlflow_resource
from gpt_pipeline.project import Project
from gpt_pipeline.row import instead_of_row
from gpt_pipeline.shown import in_markdown, on_terminal

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

# What the engine says without an event: of the steps after one that failed, and of a started child.
_OF_THE_ENGINE = ("Dependencies for step ", "[pipes]")


def build_definitions(project: Project) -> dg.Definitions:
    """Return the assets, checks, jobs, sensor and schedule of all experiments of `project`."""
    found = find_experiments(project.experiments) if project.experiments.is_dir() else []
    experiments = [entry.experiment for entry in found if entry.experiment is not None]
    groups = keys.data_groups(experiments)
    owners, bases = _owners(experiments, groups), _bases(experiments)
    comparison = comparison_definitions(experiments)
    automation = [_automation(experiment, groups, bases, project.tracking_uri) for experiment in experiments]
    return dg.Definitions(
        assets=[
            *_all_data_assets(experiments, groups, owners),
            *(
                asset
                for experiment in experiments
                for asset in experiment_assets(
                    experiment, keys.shards_key(experiment, groups[experiment.name]), bases.get(experiment.name)
                )
            ),
            *(each.asset for each in comparison),
            *(broken_experiment_asset(entry) for entry in found if entry.problem is not None),
            *([] if found else [no_experiments_asset(project.experiments)]),
        ],
        asset_checks=[
            *(check for group, part in owners.items() for check in data_checks(group, part)),
            *(check for experiment in experiments for check in training_checks(experiment)),
            *(check for experiment in experiments for check in evaluation_checks(experiment)),
        ],
        jobs=[*(job for part in automation for job in part.jobs), *(each.job for each in comparison)],
        sensors=[
            *(part.sensor for part in automation),
            *(each.sensor for each in comparison),
            *notification_sensors(project, experiments),
        ],
        schedules=[part.schedule for part in automation],
        executor=project_executor(project.root, experiments),
        resources={"mlflow": mlflow_resource(project.tracking_uri), "io_manager": step_outputs},
        loggers={"console": dg.colored_console_logger, "plain": plain_console},
    )


def _owners(experiments: Sequence[Experiment], groups: Mapping[str, Mapping[str, str]]) -> Mapping[str, Experiment]:
    """Return, by the group of the data, the first experiment that is alone with it, or has it as a part of its mix."""
    return {
        groups[experiment.name][name]: part
        for experiment in reversed(experiments)
        for name, part in experiment.parts.items()
    }


def _all_data_assets(
    experiments: Sequence[Experiment], groups: Mapping[str, Mapping[str, str]], owners: Mapping[str, Experiment]
) -> Iterator[dg.AssetsDefinition]:
    """Yield the assets of the data of all experiments, and of their mixes, each once."""
    documents = {
        groups[experiment.name][name]: keys.documents_keys(experiment, groups[experiment.name])
        for experiment in reversed(experiments)
        for name in experiment.parts
    }
    mixes = {groups[each.name][""]: each for each in reversed(experiments) if each.config.data.mix is not None}
    users = {
        group: [each for each in experiments if group in groups[each.name].values()] for group in (*owners, *mixes)
    }
    shown = keys.short_names([*owners, *mixes])
    for group, part in owners.items():
        yield from data_assets(group, part, documents[group], shown=shown[group], users=users[group])
    for group, experiment in mixes.items():
        yield mixed_asset(group, experiment, groups[experiment.name], shown=shown[group], users=users[group])


def _bases(experiments: Sequence[Experiment]) -> Mapping[str, Experiment]:
    """Return, by the later experiment's name, the experiment of the project that it starts from."""
    by_file = {experiment.file.resolve(): experiment for experiment in experiments}
    found = {each.name: base_file(each.config.start_from, each.file) for each in experiments if each.config.start_from}
    return {name: by_file[file] for name, file in found.items() if file in by_file}


def _data(experiment: Experiment, groups: Mapping[str, Mapping[str, str]]) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*keys.data_keys(experiment, groups[experiment.name]))


def _stages(
    experiment: Experiment, groups: Mapping[str, Mapping[str, str]], bases: Mapping[str, Experiment]
) -> dg.AssetSelection:
    """Return data and training of the experiment, and before them those of the experiments that it starts from."""
    own = dg.AssetSelection.assets(*keys.own_stages(experiment))
    stages = _data(experiment, groups) | own
    base = bases.get(experiment.name)
    return stages if base is None else stages | _stages(base, groups, bases)


@dataclass(frozen=True, kw_only=True)
class _Automation:
    jobs: Sequence["UnresolvedAssetJobDefinition"]
    sensor: dg.SensorDefinition
    schedule: dg.ScheduleDefinition


def _automation(
    experiment: Experiment,
    groups: Mapping[str, Mapping[str, str]],
    bases: Mapping[str, Experiment],
    tracking_uri: str,
) -> _Automation:
    """Return the experiment's jobs and what starts them."""
    evaluation = keys.asset_key(experiment, "evaluation")
    report = keys.asset_key(experiment, "report")
    name = in_markdown(experiment.display_name)

    def job(job_name: str, selection: dg.AssetSelection, does: str) -> "UnresolvedAssetJobDefinition":
        return dg.define_asset_job(
            job_name,
            selection,
            tags={keys.EXPERIMENT_TAG: experiment.name},
            metadata={"experiment_file": dg.MetadataValue.path(str(experiment.file))},
            description=f"{name}: {does}",
        )

    # Without the report: beside evaluations that do not exist yet, the UI would warn that it may fail. The sensor
    # requests it when the evaluations are done.
    data = job(keys.data_job(experiment), _data(experiment, groups), "the data alone, one step a source file.")
    stages = _stages(experiment, groups, bases)
    run = job(keys.run_job(experiment), stages, "data and training; evaluations and report follow by the sensor.")
    evaluate = job(keys.evaluate_job(experiment), dg.AssetSelection.assets(evaluation), "evaluate one checkpoint.")
    write = job(keys.report_job(experiment), dg.AssetSelection.assets(report), "write the report anew.")
    return _Automation(
        jobs=[run, data, evaluate, write],
        sensor=new_checkpoints_sensor(experiment, evaluate=evaluate, report=write, tracking_uri=tracking_uri),
        schedule=reevaluation_schedule(experiment, evaluate=evaluate),
    )


class _StageMessages(logging.Filter):
    """For a person at a terminal: the messages of the stages, one plain line each, no engine events."""

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        return meta.get("dagster_event") is None and not str(meta.get("orig_message")).startswith(_OF_THE_ENGINE)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        stage = keys.stage_of(meta.get("step_key") or "run")
        line = on_terminal(f"{stage}: {meta.get('orig_message') or record.getMessage()}")
        return instead_of_row(sys.stderr, line)


@dg.logger(config_schema={}, description="Plain lines on stderr.")
def plain_console(context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger that prints what the stages say."""
    logger = logging.Logger("gpt_pipeline", level=logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_StageMessages())
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    return logger
