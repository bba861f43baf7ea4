"""The finished stages that a later one needs, or a clear word about the one that is missing."""

from __future__ import annotations

from typing import TypeVar

from gpt_pipeline.data.formats import shards_name, stage_names
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress import training as progress
from gpt_pipeline.storage.manifest import StageResult, not_finished
from gpt_pipeline.training.finished import FinishedTraining

_Stage = TypeVar("_Stage", StageResult, FinishedTraining)


def finished_documents(experiment: Experiment) -> StageResult:
    """Return the finished stage of documents.

    Raises:
        DataError: it is not finished.
    """
    from gpt_pipeline.data.documents.stage import find_documents

    found = find_documents(experiment.data, experiment.data_folder)
    return _required(found, stage_names(experiment.data).documents, experiment)


def known_documents(experiment: Experiment) -> StageResult:
    """Return the stage of documents as it was finished, also where its files were deleted since.

    Raises:
        DataError: it is not finished, or its manifest was deleted.
    """
    from gpt_pipeline.data.documents.stage import DocumentsStage

    found = DocumentsStage(config=experiment.data, data_folder=experiment.data_folder).known()
    return _required(found, stage_names(experiment.data).documents, experiment)


def known_shards(experiment: Experiment) -> StageResult:
    """Return the stage of the shards as it was finished, also where its files were deleted since.

    Raises:
        DataError: it is not finished, or a manifest by which it is found was deleted.
    """
    from gpt_pipeline.data.tokens import choose

    found = choose.known_shards(experiment.data, experiment.data_folder)
    return _required(found, shards_name(experiment.data), experiment)


def finished_shards(experiment: Experiment) -> StageResult:
    """Return the finished stage of the shards that the training reads.

    Raises:
        DataError: it is not finished.
    """
    from gpt_pipeline.data.tokens.choose import find_shards

    return _required(find_shards(experiment.data, experiment.data_folder), shards_name(experiment.data), experiment)


def finished_training(experiment: Experiment) -> FinishedTraining:
    """Return the finished training.

    Raises:
        DataError: it is not finished.
    """
    finished_shards(experiment)  # names what comes first where that is missing
    return _required(progress.finished_training(experiment), "training", experiment)


def _required(stage: _Stage | None, name: str, experiment: Experiment) -> _Stage:
    if stage is None:
        raise not_finished(name, experiment.data_folder, of=repr(experiment.display_name), file=experiment.file)
    return stage
