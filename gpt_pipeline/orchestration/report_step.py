"""One materialization of `report`: write the page when what it shows has changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.demand import MARKER_NAME

if TYPE_CHECKING:
    import dagster as dg

    from gpt_pipeline.report.build import OtherExperiment

REPORT_VERSION = "3"
"""Raised by hand when the page shows the same results differently."""


def report_fingerprint(experiment: Experiment) -> str:
    """Return the identity of what the report would show now: config, training, evaluations."""
    folder = experiment.folder
    training = read_json(folder.training) if folder.training.is_file() else None
    return fingerprint(
        "report",
        config={"experiment": _shown_config(experiment), "training": training},
        upstream=sorted(result.fingerprint for result in read_evaluations(folder.evaluations)),
        code_version=REPORT_VERSION,
    )


def report_is_outdated(experiment: Experiment) -> bool:
    """Whether there is something to report (an evaluation, or a finished training) that the page does not show."""
    folder = experiment.folder
    if not folder.training.is_file() and not read_evaluations(folder.evaluations):
        return False
    return not folder.report.is_file() or shown_fingerprint(folder.root) != report_fingerprint(experiment)


def write_report(context: dg.AssetExecutionContext, experiment: Experiment, *, force: bool) -> dg.MaterializeResult:
    """Write the experiment's report, or find it up to date; return what the UI shows of it."""
    import dagster as dg  # here, so that asking whether a report is outdated takes no second

    from gpt_pipeline.orchestration.metadata import picture_markdown
    from gpt_pipeline.report.build import build_report
    from gpt_pipeline.report.charts import loss_curve_svg
    from gpt_pipeline.report.summary import checkpoints_as_markdown
    from gpt_pipeline.training.metrics import read_metrics

    folder = experiment.folder
    identity = report_fingerprint(experiment)
    reused = not force and folder.report.is_file() and shown_fingerprint(folder.root) == identity
    if reused:
        context.log.info("Nothing to do: the report shows the newest results.")
    else:
        build_report(
            folder,
            title=experiment.display_name,
            config=dataclasses.asdict(experiment.config),
            facts=_data_facts(experiment),
            other=_newest_other(experiment),
        )
        write_json(_record(folder.root), {"fingerprint": identity, "created_at": utc_now()})
    curve = loss_curve_svg(read_metrics(folder.metrics))
    return dg.MaterializeResult(
        metadata={
            # No link: a browser opens no file from a page of a server. The path can be copied.
            "report": dg.MetadataValue.path(str(folder.report)),
            "checkpoints": dg.MetadataValue.md(checkpoints_as_markdown(folder)),
            "loss_curve": dg.MetadataValue.md(picture_markdown("loss against step", curve)),
            "evaluations": len(read_evaluations(folder.evaluations)),
            "already_finished": reused,
        },
        data_version=dg.DataVersion(identity),
    )


def _shown_config(experiment: Experiment) -> dict[str, Any]:
    """Return the config without what says where and on what it runs."""
    config = dataclasses.asdict(experiment.config)
    del config["storage"], config["hardware"], config["data"]["local_dataset_path"]
    return config


def _data_facts(experiment: Experiment) -> dict[str, Any]:
    from gpt_pipeline.orchestration.stages import finished_english, finished_shards

    return {
        "english_parquet": dict(finished_english(experiment).manifest.facts),
        "token_shards": dict(finished_shards(experiment).manifest.facts),
    }


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
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ""


def _record(root: Path) -> Path:
    return root / "report.json"


def shown_fingerprint(root: Path) -> str | None:
    """Return the identity of what the report in the experiment's folder shows; None if there is none."""
    try:
        return str(read_json(_record(root))["fingerprint"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
