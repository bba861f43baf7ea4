"""What the last run of an experiment failed of: a file for each experiment in the folder of Dagster's history.

It goes when a run that makes the same, or everything, ends well or is stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.project import Project
from gpt_pipeline.shown import without_password
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.manifest import utc_now

_logger = logging.getLogger(__name__)
_FOLDER = "failures"
_LONGEST = 4000  # letters


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed."""

    job: str
    text: str
    at: str
    """UTC, ISO 8601."""

    @property
    def in_words(self) -> str:
        """When it failed, and the first line of why."""
        return f"failed at {self.at.replace('T', ' ').rstrip('Z')} UTC: {self.text.partition(chr(10))[0]}"


def note_failure(project: Project, experiment: str, *, job: str, text: str) -> None:
    """Note what a run of the experiment, by its name as a key, failed of, where there is a history to note it in."""
    if not project.history.is_dir():
        return
    failure = Failure(job=job, text=without_password(text)[:_LONGEST], at=utc_now())
    path, *_ = failure_files(project, experiment)
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, dataclasses.asdict(failure))
    except OSError as error:  # of a disk that is full, say: what is to be noted matters more
        _logger.warning("what the run failed of is not noted for `gpt-pipeline status`: %s", error)


def forget_failure(project: Project, experiment: str, *, jobs: Collection[str] | None = None) -> None:
    """Note that a run ended well, or was stopped, that makes up for a failure of these jobs; None for any."""
    noted = last_failure(project, experiment)
    if noted is not None and (jobs is None or noted.job in jobs):
        for path in failure_files(project, experiment):
            path.unlink(missing_ok=True)


def last_failure(project: Project, experiment: str) -> Failure | None:
    """Return what the experiment's last run failed of; None if it did not fail."""
    return next((noted for path in failure_files(project, experiment) if (noted := _read(path)) is not None), None)


def _read(path: Path) -> Failure | None:
    return read_kept(
        path,
        lambda value: Failure(**known_fields(Failure, value)),
        otherwise="what the last run failed of is not shown",
    )


def failure_files(project: Project, experiment: str) -> list[Path]:
    """Return where it may be noted what the experiment's last run failed of; it is written into the first.

    In a history that several projects may share, the project is part of the name. Earlier versions left it out.
    """
    plain = project.history / _FOLDER / f"{experiment}.json"
    if os.path.realpath(project.history) == os.path.realpath(project.root / ".dagster"):
        return [plain]  # the name of a project that is moved must not matter
    place = hashlib.sha256(os.fsencode(os.path.realpath(project.root))).hexdigest()
    return [plain.with_name(f"{experiment}-{place[:SHORT]}.json"), plain]
