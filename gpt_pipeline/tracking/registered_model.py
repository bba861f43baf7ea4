"""The best checkpoint of a finished training as a version of a registered model in MLflow, once per weights.

A version bears the hash of its weights as a tag, by which it is found again. So no second one is made by whoever was
killed between making it and noting it, by another machine, or by a training that comes to the same weights. Its files
are the model for `transformers`, kept with the training's run. The alias `best` is that of the newest training.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.storage.atomic import known_fields, read_kept, rewrite_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.store import OpenStore, TrackingError, open_store
from gpt_pipeline.tracking.training_run import FINGERPRINT_TAG
from gpt_pipeline.training.finished import best_of, find_finished_training

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS_TAG = "gpt_pipeline.weights"
ALIAS = "best"
NOTE_NAME = "registered.json"
"""In the experiment's folder: what was registered last."""

_MODEL_FOLDER = "models"
_DIGITS = 12  # of the weights' hash, in the folder's name
_TURN_SECONDS = 30.0
_REMEDY = "it is kept in the experiment's folder, and registered once MLflow works"

WriteModel = Callable[[Path, Path], str]
"""Writes the model of a checkpoint's file into a folder that does not exist yet; returns the hash of its weights."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model: `registered.json`."""

    name: str
    version: str
    run_id: str
    """Of the training that it is the best of."""

    weights_sha256: str

    @classmethod
    def read(cls, folder: ExperimentFolder) -> Registered | None:
        return read_kept(
            folder.root / NOTE_NAME,
            lambda value: cls(**known_fields(cls, value)),
            otherwise="MLflow is asked whether it has the model",
        )


def registration_is_pending(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether the best checkpoint of the training with `fingerprint`, if that is finished, is to be registered."""
    best, noted = _best(folder, fingerprint), Registered.read(folder)
    return best is not None and (noted is None or noted.weights_sha256 != best.weights_sha256)


def forget_registered(folder: ExperimentFolder) -> None:
    """Have MLflow asked again whether it has the model."""
    (folder.root / NOTE_NAME).unlink(missing_ok=True)


def register_model(
    folder: ExperimentFolder, *, fingerprint: str, tracking_uri: str, experiment_name: str, write_model: WriteModel
) -> Registered | None:
    """Register the best checkpoint of the training with `fingerprint`, or find that done; None if it is not finished.

    The model is named like the experiment. `write_model` is called only if MLflow has no version of these weights.

    Raises:
        TrackingError: MLflow cannot be reached, is busy, or refuses; or it does not have the training's run yet.
        UserError: the model cannot be written.
    """
    best = _best(folder, fingerprint)
    if best is None:
        return None
    name = folder_name(experiment_name, key="experiment_name")
    open_here: Callable[[], AbstractContextManager[OpenStore]] = partial(
        open_store,
        tracking_uri,
        experiment_name=experiment_name,
        what="the model",
        remedy=_REMEDY,
        lock=folder.root / ".mlflow.lock",
        wait_seconds=_TURN_SECONDS,
    )
    with _place_alone(folder) as place:
        with open_here() as store:
            _run_of(store, folder, fingerprint)
            known = _known_version(store, name, best)
        # The model takes a while, in which others may write to MLflow, or train anew.
        if known is None and write_model(best.path, place) != best.weights_sha256:
            raise TrackingError(f"the best checkpoint in {folder.root} is another one by now; it is registered later")
        with open_here() as store:
            run = _run_of(store, folder, fingerprint)
            version = known or _known_version(store, name, best) or _made(store, run, name, best, place)
            store.client.set_registered_model_alias(name, ALIAS, version.version)
    found = Registered(
        name=name, version=str(version.version), run_id=run.info.run_id, weights_sha256=best.weights_sha256
    )
    rewrite_json(folder.root / NOTE_NAME, dataclasses.asdict(found))
    return found


def _best(folder: ExperimentFolder, fingerprint: str) -> CheckpointInfo | None:
    """Return the best checkpoint of the training; None while it is not finished."""
    finished = find_finished_training(folder, fingerprint)
    return None if finished is None else best_of(folder, finished)


@contextmanager
def _place_alone(folder: ExperimentFolder) -> Iterator[Path]:
    """Yield a path for the model's files, which are gone afterwards; one process of a machine registers at a time."""
    place = folder.root / ".registering"
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(folder.root / ".registering.lock", wait_seconds=_TURN_SECONDS))
        except Timeout:
            raise TrackingError(f"the model in {folder.root} is being registered by another process") from None
        try:
            shutil.rmtree(place, ignore_errors=True)  # of one that was killed
            yield place / "model"
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _known_version(store: OpenStore, name: str, best: CheckpointInfo) -> ModelVersion | None:
    """Return the model's version of these weights, the same one each time; None if there is none."""
    found = store.client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{best.weights_sha256}'")
    return min((each for each in found if each.name == name), key=lambda each: int(each.version), default=None)


def _run_of(store: OpenStore, folder: ExperimentFolder, fingerprint: str) -> Run:
    run = store.find(tag=FINGERPRINT_TAG, value=fingerprint)
    if run is None:
        raise TrackingError(
            f"MLflow does not have the run of the training in {folder.root} yet, or has it in its trash (restore it "
            "there); the model comes after it"
        )
    return run


def _made(store: OpenStore, run: Run, name: str, best: CheckpointInfo, files: Path) -> ModelVersion:
    """Keep the model's files with the run, and make a version of them."""
    folder = f"{_MODEL_FOLDER}/{best.weights_sha256[:_DIGITS]}"
    store.log_folder(run, files, folder)
    _make_model(store, name)
    return store.client.create_model_version(
        name,
        f"{str(run.info.artifact_uri).rstrip('/')}/{folder}",
        run_id=run.info.run_id,
        tags=_tags(best),
        description=f"Step {best.step:,}, in the files that Hugging Face's `transformers` loads.",
    )


def _make_model(store: OpenStore, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(best: CheckpointInfo) -> dict[str, str]:
    return {
        WEIGHTS_TAG: best.weights_sha256,
        FINGERPRINT_TAG: best.fingerprint,
        "step": str(best.step),
        "architecture": best.model.architecture,
    }
