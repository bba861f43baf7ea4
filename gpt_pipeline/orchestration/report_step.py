"""One materialization of `report`: write the page when what it shows has changed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from gpt_pipeline.data.formats import shards_name, stage_names
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import send_to_mirror
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.progress.report import note_report, report_fingerprint, report_shows
from gpt_pipeline.progress.training import experiment_training
from gpt_pipeline.project import report_page
from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.tracking.store import TrackingError
from gpt_pipeline.training.decision import MARKER_NAME

if TYPE_CHECKING:
    from gpt_pipeline.report.build import OtherExperiment


def write_report(
    context: dg.AssetExecutionContext, experiment: Experiment, *, tracking_uri: str, force: bool
) -> dg.MaterializeResult:
    """Write the experiment's report, or find it up to date; return what the UI shows of it."""
    from gpt_pipeline.experiment.differences import flattened
    from gpt_pipeline.orchestration.metadata import picture_markdown
    from gpt_pipeline.report.build import TrainingStatus, build_report
    from gpt_pipeline.report.charts import loss_curve_svg
    from gpt_pipeline.report.tables import checkpoints_as_markdown
    from gpt_pipeline.training.metrics import read_metrics

    folder = experiment.folder
    identity = report_fingerprint(experiment)
    reused = not force and report_shows(experiment, identity)
    if reused:
        context.log.info("Nothing to do: the report shows the newest results.")
    else:
        training = experiment_training(experiment)
        build_report(
            folder,
            title=experiment.display_name,
            status=TrainingStatus(word=training.word, detail=training.detail),
            config={
                section: flattened(block)
                for section, block in experiment.config.as_values().items()
                if isinstance(block, Mapping)
            },
            facts=_data_facts(experiment),
            command=f"gpt-pipeline run {_in_project(experiment)}",
            other=_newest_other(experiment),
        )
        _send(context, experiment, tracking_uri)
        note_report(folder.root, identity)  # last: what a kill keeps from MLflow is written and sent once more
        send_to_mirror(experiment)
    curve = loss_curve_svg(read_metrics(folder.metrics), vocab_size=experiment.config.model.vocab_size)
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(str(folder.report)),
            # On the server of these pages, as `gpt-pipeline ui` starts it: a browser opens no file from a page.
            "report_page": dg.MetadataValue.url(report_page(experiment.name)),
            "checkpoints": dg.MetadataValue.md(checkpoints_as_markdown(folder)),
            "loss_curve": dg.MetadataValue.md(picture_markdown("loss against step", curve)),
            "evaluations": len(read_evaluations(folder.evaluations)),
            "already_finished": reused,
        },
        data_version=dg.DataVersion(identity),
    )


def _send(context: dg.AssetExecutionContext, experiment: Experiment, tracking_uri: str) -> None:
    """Keep the page and its charts with the training's run in MLflow; an MLflow that fails is only mentioned."""
    from gpt_pipeline.report.build import report_charts
    from gpt_pipeline.tracking.training_run import log_report

    fingerprint = wanted_fingerprint(experiment)
    if fingerprint is None:
        return
    try:
        log_report(
            experiment.folder,
            fingerprint=fingerprint,
            tracking_uri=tracking_uri,
            experiment_name=experiment.display_name,
            charts=report_charts(experiment.folder),
        )
    except TrackingError as error:
        context.log.warning(str(error))


def _in_project(experiment: Experiment) -> str:
    """Return the experiment file as one names it in the project's folder."""
    return shlex.quote(f"{experiment.file.parent.name}/{experiment.file.name}")


def _data_facts(experiment: Experiment) -> dict[str, Any]:
    from gpt_pipeline.orchestration.stages import known_documents, known_shards

    documents = {
        " of ".join(filter(None, (stage_names(part.data).documents, name))): dict(known_documents(part).manifest.facts)
        for name, part in experiment.parts.items()
    }
    return {**documents, shards_name(experiment.data): dict(known_shards(experiment).manifest.facts)}


def _newest_other(experiment: Experiment) -> OtherExperiment | None:
    """Return the other experiment of the project that was started last, or None.

    It is no part of the report's identity: one that is started would have every report written anew.
    """
    from gpt_pipeline.experiment.differences import config_differences
    from gpt_pipeline.experiment.discover import find_experiments
    from gpt_pipeline.report.build import OtherExperiment

    others = [each.experiment for each in find_experiments(experiment.file.parent) if each.experiment is not None]
    started = [(_started_at(each), each) for each in others if each.file != experiment.file]
    newest = max((pair for pair in started if pair[0]), key=lambda pair: pair[0], default=None)
    if newest is None:
        return None
    differences = config_differences([experiment.config, newest[1].config])
    return OtherExperiment(display_name=newest[1].display_name, differences=differences)


def _started_at(experiment: Experiment) -> str:
    """Return when the experiment's training was last asked for, ISO 8601; empty if it never was."""
    try:
        return str(read_json(experiment.folder.root / MARKER_NAME)["time"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return ""
