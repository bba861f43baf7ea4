"""Whether an experiment's report shows what there is to show."""

from __future__ import annotations

from pathlib import Path

from gpt_pipeline.data.config import is_path
from gpt_pipeline.evaluation.result import summarize_evaluations
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.storage.fingerprint import fingerprint, identity_of
from gpt_pipeline.storage.manifest import utc_now

REPORT_VERSION = "3"
"""Raised by hand when pages that are written already say something wrong: all of them are then written anew.

Not for a new look, which a page gets with its next result.
"""

_RECORD = "report.json"


def report_fingerprint(experiment: Experiment) -> str:
    """Return the identity of what the report would show now: config, training, evaluations."""
    folder = experiment.folder
    config = identity_of(experiment.config)
    del config["storage"], config["hardware"]  # where and on what it runs
    for block in (config["data"], *config["data"].get("mix", {}).values()):
        del block["local_dataset_path"]
        for key in ("source", "tokenizer"):
            if isinstance(path := block.get(key), str) and is_path(path):
                del block[key]
    training = read_kept(folder.training, lambda value: {**value}, otherwise="the report lacks it")
    return fingerprint(
        "report",
        config={"experiment": config, "training": training},
        upstream=sorted(result.fingerprint for result in summarize_evaluations(folder.evaluations)),
        code_version=REPORT_VERSION,
    )


def report_is_outdated(experiment: Experiment) -> bool:
    """Whether there is something to report (an evaluation, or a finished training) that the page does not show."""
    folder = experiment.folder
    if not folder.training.is_file() and not summarize_evaluations(folder.evaluations):
        return False
    return not report_shows(experiment, report_fingerprint(experiment))


def report_shows(experiment: Experiment, identity: str) -> bool:
    """Whether the page is there and shows what `report_fingerprint` identified."""
    folder = experiment.folder
    return folder.report.is_file() and shown_fingerprint(folder.root) == identity


def note_report(root: Path, identity: str) -> None:
    """Note what the page that was just written in the experiment's folder `root` shows."""
    write_json(root / _RECORD, {"fingerprint": identity, "created_at": utc_now()})


def shown_fingerprint(root: Path) -> str | None:
    """Return the identity of what the report in the experiment's folder `root` shows; None if there is none."""
    return read_kept(root / _RECORD, lambda value: str(value["fingerprint"]), otherwise="the report is written again")
