"""Removing an experiment: what would go and what stays, and moving it to the trash or deleting it.

Folders go one by one, each by a rename into `<base_folder>/.trash/`; what is made from others goes before them, and the
experiment's own folder, then its file, last. So a removal that is killed is finished by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpt_pipeline.checkpoints.retention import evaluator_is_at_work
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.config import DATA_FOLDER
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import base_file
from gpt_pipeline.progress.at_work import runs_at_work
from gpt_pipeline.progress.stages import data_progress
from gpt_pipeline.project import Project
from gpt_pipeline.storage.lock import is_locked
from gpt_pipeline.training.heartbeat import trainer_state

TRASH = ".trash"
_DELETING = ".deleting"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A folder or file that goes."""

    path: Path
    size: int
    """Bytes; files with several names count with each."""

    inside: tuple[tuple[str, int], ...] = ()
    """Of the experiment's own folder: its largest parts by name, with their bytes."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What removing an experiment takes away."""

    base_folder: Path
    name: str
    items: tuple[Item, ...]
    """In the order in which they go."""

    stays: tuple[str, ...]
    """What does not go, and why, a line each."""

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def plan_removal(experiment: Experiment, *, file: bool) -> Removal:
    """Return what goes with the experiment, its `file` too if that is asked for; nothing is changed.

    Data stays that another experiment of the project uses, and all of it where that cannot be known.

    Raises:
        UserError: something works on the experiment, or another one starts from it.
    """
    others = _others(experiment)
    _refuse_at_work(experiment)
    _refuse_needed(experiment, others)
    data, stays = _own_data(experiment, others)
    root = experiment.folder.root
    items = [Item(path=path, size=_size(path)) for path in data]
    if root.is_dir():
        parts = sorted(((each.name, _size(each)) for each in root.iterdir()), key=lambda part: -part[1])
        items.append(Item(path=root, size=_size(root), inside=tuple(part for part in parts if part[1])))
    if file:
        items.append(Item(path=experiment.file, size=_size(experiment.file)))
    else:
        stays.append(f"{experiment.file}: the experiment file (--file takes it along)")
    stays.append("its runs in MLflow and in Dagster's history")
    return Removal(base_folder=experiment.base_folder, name=root.name, items=tuple(items), stays=tuple(stays))


def remove(removal: Removal, *, delete: bool) -> Path | None:
    """Move what goes to the trash and return its folder there; with `delete`, delete it, and what an earlier call left.

    Raises:
        UserError: something cannot be moved; what went before it is in the trash, and the same call goes on.
    """
    trash = removal.base_folder / TRASH
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    deleting = trash / _DELETING  # no name of an experiment's folder in the trash begins like this one
    target = (deleting if delete else trash) / f"{stamp}-{removal.name}"
    for item in removal.items:
        _move(item.path, target)
    if not delete:
        return target if removal.items else None
    if deleting.is_dir():
        shutil.rmtree(deleting)
    return None


def _move(path: Path, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        os.rename(path, target / path.name)
    except OSError as error:
        if path.is_file():  # the experiment file may lie on another disk
            shutil.move(path, target / path.name)
            return
        raise UserError(
            f"{path}: cannot be moved to {target}: {error.strerror}; close what has it open, and run the same again"
        ) from error


def _others(experiment: Experiment) -> list[Experiment]:
    found = find_experiments(experiment.file.parent)
    return [each.experiment for each in found if each.experiment is not None and each.file != experiment.file]


def _refuse_at_work(experiment: Experiment) -> None:
    root, project = experiment.folder.root, Project.of_experiments(experiment.file.parent)
    runs = runs_at_work(project, experiment.name)
    if runs:
        raise UserError(f"{experiment.file.name}: {runs[0].in_words} works on it; stop it, or wait for its end")
    if trainer_state(root) == "running":
        raise UserError(f"{root}: a training is running there; stop it, or wait for its end")
    if evaluator_is_at_work(root):
        raise UserError(f"{root}: an evaluation is running there; stop it, or wait for its end")


def _refuse_needed(experiment: Experiment, others: Iterable[Experiment]) -> None:
    file = experiment.file.resolve()
    later = [
        each.file.name
        for each in others
        if each.config.start_from is not None and base_file(each.config.start_from, each.file) == file
    ]
    if later:
        raise UserError(
            f"{experiment.file.name}: {', '.join(later)} start from it; remove these first, or have them start from a "
            "checkpoint (start_from.file) that you keep elsewhere"
        )


def _own_data(experiment: Experiment, others: Sequence[Experiment]) -> tuple[list[Path], list[str]]:
    """Return the folders of data that go, what is made of others first, and lines on those that stay."""
    folders = [folder for folder in _data_folders(experiment) if folder.is_dir()]
    if unknown := _unknown(experiment, others):
        told = [f"{experiment.data_folder}: {unknown} may use it, and cannot be read here"] if folders else []
        return [], told
    used = {each.file.name: {*_data_folders(each)} for each in others}
    own, stays = [], []
    for folder in folders:
        users = [name for name, theirs in used.items() if folder in theirs]
        if users:
            stays.append(f"{folder}: used by {', '.join(users)}")
        elif is_locked(folder):
            raise UserError(f"{folder}: is being made; wait for its end, or stop it")
        else:
            own.append(folder)
    return own, stays


def _unknown(experiment: Experiment, others: Sequence[Experiment]) -> str | None:
    """Return whom the data may belong to as well, of whom nothing is known."""
    broken = [each.file.name for each in find_experiments(experiment.file.parent) if each.problem is not None]
    known = {each.folder.root for each in (experiment, *others)}
    base = experiment.base_folder
    folders = [each for each in base.iterdir() if (each / "job.json").is_file()] if base.is_dir() else []
    strangers = [each.name for each in folders if each not in known and each.name != DATA_FOLDER]
    return next(iter([*broken, *strangers]), None)


def _data_folders(experiment: Experiment) -> list[Path]:
    """Return the folders of the experiment's finished data, with the parts that they were put together from.

    Those that are made of others come first.
    """
    found = [stage.folder for stage in reversed(data_progress(experiment)) if stage.folder is not None]
    parts = [folder for part in experiment.parts.values() for folder in _part_folders(part)]
    inside = experiment.data_folder
    return [folder for folder in dict.fromkeys([*parts, *found]) if folder.is_relative_to(inside)]


def _part_folders(experiment: Experiment) -> Iterator[Path]:
    documents = DocumentsStage(config=experiment.data, data_folder=experiment.data_folder)
    shards = ShardsStage(config=experiment.data, data_folder=experiment.data_folder)
    if documents.find() is None:
        return
    if shards.tokenizer.identity is not None:
        yield from (each.part.folder for each in shards.parts())
    yield from (each.part.folder for each in documents.parts())


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())
