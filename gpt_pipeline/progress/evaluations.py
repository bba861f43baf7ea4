"""Which checkpoints still need an evaluation, read from the folders alone, so that no history is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    checkpoint_key,
    checkpoint_path,
    list_checkpoints,
    manifest_path,
    newer_manifests,
    uncounted_checkpoints,
)
from gpt_pipeline.checkpoints.retention import prune
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.result import EvaluationResult, alias_of, evaluation_fingerprint, summarize_evaluations
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import weights_path
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.finished import read_finished_training
from gpt_pipeline.training.heartbeat import trainer_state

State = Literal["missing", "outdated", "done"]


@dataclass(frozen=True, kw_only=True)
class WantedEvaluation:
    """The evaluation that a checkpoint should have."""

    checkpoint: CheckpointInfo
    fingerprint: str
    state: State
    """`outdated`: these weights were evaluated with other questions, settings or code. `done`: evaluated and in
    MLflow, with the alias `best_model` if these weights are the best."""

    @property
    def partition(self) -> str:
        return checkpoint_key(self.checkpoint.step)


def wanted_evaluations(experiment: Experiment, settings: EvaluationConfig | None = None) -> list[WantedEvaluation]:
    """Return one entry per checkpoint in the experiment's folder, oldest first; `settings` in place of the file's.

    The best checkpoint of a finished training counts too where it has no `checkpoint_step_<N>.pt` of its own.
    Empty until the token shards are finished. Only manifests are read: no weights, no torch.
    """
    from gpt_pipeline.data.tokens.choose import find_shards, known_shards  # numpy

    shards = find_shards(experiment.data, experiment.data_folder)
    if shards is None:
        return []
    of_parts = {name: known_shards(part.data, part.data_folder) for name, part in experiment.parts.items() if name}
    parts = {name: part.fingerprint for name, part in of_parts.items() if part is not None}
    done = {result.fingerprint: result for result in summarize_evaluations(experiment.folder.evaluations)}
    evaluated = {result.checkpoint["weights_sha256"] for result in done.values()}
    best = best_checkpoint(experiment.folder.checkpoints)
    wanted = []
    for checkpoint in _checkpoints(experiment.folder, best):
        fingerprint = evaluation_fingerprint(
            settings or experiment.config.evaluation,
            weights_sha256=checkpoint.weights_sha256,
            shards_fingerprint=shards.fingerprint,
            max_length=experiment.config.data.max_length,
            parts=parts,
        )
        state: State = "outdated" if checkpoint.weights_sha256 in evaluated else "missing"
        if fingerprint in done:
            state = "done" if _is_logged(experiment.folder, done[fingerprint], best) else "missing"
        wanted.append(WantedEvaluation(checkpoint=checkpoint, fingerprint=fingerprint, state=state))
    return wanted


def pending_evaluations(experiment: Experiment) -> list[WantedEvaluation]:
    """Return those of `wanted_evaluations` that are not done."""
    return [wanted for wanted in wanted_evaluations(experiment) if wanted.state != "done"]


def passed_over(experiment: Experiment) -> dict[str, str]:
    """Return the names of the checkpoints in the folder that are never evaluated, and why.

    The one that the file names to continue from is left out: of the original scripts, it needs no manifest. So is one
    without a manifest while a trainer is at work, which writes that last.
    """
    folder, named = experiment.folder, experiment.config.storage.checkpoint_to_resume
    found = uncounted_checkpoints(folder.checkpoints, is_saving=trainer_state(folder.root) == "running")
    return {name: why for name, why in found.items() if name != named}


def prune_at_rest(experiment: Experiment, *, say: Say) -> None:
    """Remove the checkpoints of a finished training that stayed only to be evaluated, and say which.

    None goes that an experiment file of the folder names, nor any where one of these files cannot be read. A folder is
    left to a trainer at work, which removes checkpoints as it saves, and as it is where a newer version has written.
    """
    folder = experiment.folder
    if trainer_state(folder.root) == "running" or newer_manifests(folder.checkpoints):
        return
    try:
        superseded = _superseded(experiment)
        named = [path for path in _named_in_files(experiment) if path.exists()] if superseded else []
        among = {info.path.name for info in superseded if not any(map(info.path.samefile, named))}
        removed = prune(folder, keep_last=experiment.cadence.keep_last, among=among, say=say)
    except (OSError, UserError) as error:  # a folder of another user's, say
        say(f"Checkpoints that are no longer needed stay: {error}")
        return
    if removed:
        names = ", ".join(info.path.name for info in removed)
        say(f"Removed, since evaluated, in MLflow and followed by newer ones: {names}")


def _superseded(experiment: Experiment) -> list[CheckpointInfo]:
    """Return the checkpoints that the finished training left before its newest ones, evaluated and in MLflow.

    None of another training, and none that was put there after the end of this one, is among them.
    """
    folder = experiment.folder
    finished = read_finished_training(folder)
    if finished is None:
        return []
    end = folder.training.stat().st_mtime
    checkpoints = list_checkpoints(folder.checkpoints)
    own = [info for info in checkpoints if info.fingerprint == finished.fingerprint and _last_changed(info) <= end]
    # The file may have been edited for the next training: the number that this one had counts too.
    told = [int(info.settings.get("evaluation.keep_last", 0)) for info in own]
    keep_last = max([experiment.cadence.keep_last, *told])
    done = {wanted.checkpoint.path for wanted in wanted_evaluations(experiment) if wanted.state == "done"}
    return [info for info in own[:-keep_last] if info.path in done]


def _last_changed(info: CheckpointInfo) -> float:
    """Return when the checkpoint's files were written, or put there, by the file system's clock."""
    stats = [path.stat() for path in (info.path, manifest_path(info.path))]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in stats)  # a copy may keep the first, never the second


def _named_in_files(experiment: Experiment) -> Iterator[Path]:
    """Yield the checkpoints that experiments beside this one name to start or to continue from.

    A step or a name counts whichever experiment it is of.

    Raises:
        UserError: an experiment file has a problem, so that nobody knows what it needs.
    """
    checkpoints = experiment.folder.checkpoints
    folders = {experiment.file.parent, experiment.file.resolve().parent}  # a link has neighbours at both ends
    for found in (found for folder in folders for found in find_experiments(folder)):
        if found.experiment is None:
            raise UserError(found.problem)
        config = found.experiment.config
        yield checkpoints / str(config.storage.checkpoint_to_resume)
        if config.start_from is None:
            continue
        if config.start_from.step is not None:
            yield checkpoint_path(checkpoints, config.start_from.step)
        weights = weights_path(config.start_from, found.file)
        if weights is not None:
            yield weights


def mark_logged(folder: ExperimentFolder, result: EvaluationResult, *, run_id: str, alias: str | None) -> None:
    """Note beside the results that this one is in MLflow; until then it stays pending, and is logged when possible.

    An `alias` is removed from the notes of other weights: there is only one best.
    """
    if alias is not None:
        for path, mark in logged_marks(folder).items():
            if mark.get("alias") == alias and mark.get("weights_sha256") != result.checkpoint["weights_sha256"]:
                write_json(path, {**mark, "alias": None})
    mark = {"run_id": run_id, "alias": alias, "weights_sha256": result.checkpoint["weights_sha256"]}
    write_json(_log_mark(folder, result), mark)


def _checkpoints(folder: ExperimentFolder, best: CheckpointInfo | None) -> list[CheckpointInfo]:
    checkpoints = list_checkpoints(folder.checkpoints)
    # During training the best is replaced every few steps; evaluating each would only slow the training down.
    is_finished = best is not None and folder.training.is_file()
    if best is not None and is_finished and best.step not in {checkpoint.step for checkpoint in checkpoints}:
        checkpoints.append(best)
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def _is_logged(folder: ExperimentFolder, result: EvaluationResult, best: CheckpointInfo | None) -> bool:
    mark = _read_mark(_log_mark(folder, result))
    alias = alias_of(result, best)
    # A stale alias is removed when the checkpoint it belongs to now is logged.
    return mark is not None and (alias is None or mark.get("alias") == alias)


def logged_marks(folder: ExperimentFolder) -> dict[Path, Mapping[str, Any]]:
    """Return the notes of all results that are in MLflow, by the files that hold them."""
    found = {path: _read_mark(path) for path in sorted(folder.logged_evaluations.glob("*.json"))}
    return {path: mark for path, mark in found.items() if mark is not None}


def _read_mark(path: Path) -> Mapping[str, Any] | None:
    # Logged again, an evaluation changes nothing in MLflow.
    return read_kept(path, lambda mark: {**mark}, otherwise="the evaluation is logged again")


def _log_mark(folder: ExperimentFolder, result: EvaluationResult) -> Path:
    return folder.logged_evaluations / result.path.name
