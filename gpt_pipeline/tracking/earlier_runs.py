"""The lines of earlier trainings in an experiment's folder, which MLflow may lack when a new configuration takes over.

They lie where they were moved to (`previous/<number>-<time>/`), with the note of what was sent, or still in the folder
itself while the new configuration has not begun. Each goes to its own run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.training_run import lacks_lines_or_end, log_training
from gpt_pipeline.training.demand import Demand, earlier_trainings


def earlier_logs_are_pending(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether MLflow lacks something of a training in `folder` other than the one with `fingerprint`."""
    return bool(_lacking(folder, fingerprint))


def log_earlier_trainings(
    folder: ExperimentFolder,
    *,
    fingerprint: str,
    tracking_uri: str,
    experiment_name: str,
    tags: Mapping[str, str],
    draw_losses: Callable[[Path], str],
) -> None:
    """Send what MLflow lacks of the trainings in `folder` other than the one with `fingerprint`.

    A run that is yet to be made gets the settings that the training's checkpoints have kept, if it left any.

    Raises:
        TrackingError: as `log_training`; what was sent is noted, and the rest can be sent later.
    """
    for other, earlier in _lacking(folder, fingerprint).items():
        checkpoints = [info for info in list_checkpoints(earlier.checkpoints) if info.fingerprint == other]
        newest = checkpoints[-1] if checkpoints else None
        log_training(
            earlier,
            fingerprint=other,
            tracking_uri=tracking_uri,
            experiment_name=experiment_name,
            parameters=dict(newest.settings) if newest else {},
            tags={**tags, **({"shards_fingerprint": newest.shards_fingerprint} if newest else {})},
            draw_losses=draw_losses,
        )


def _lacking(folder: ExperimentFolder, fingerprint: str) -> dict[str, ExperimentFolder]:
    """Return the folder of each other training that is not all in MLflow, by fingerprint.

    Of several with one fingerprint the last: it went through the steps of those before it, to the same numbers.
    """
    last: dict[str, ExperimentFolder] = {}
    for candidate in (*earlier_trainings(folder), folder):
        demand = Demand.read(candidate)
        if demand is not None and demand.fingerprint != fingerprint:
            last[demand.fingerprint] = candidate
    return {other: found for other, found in last.items() if lacks_lines_or_end(found, other)}
