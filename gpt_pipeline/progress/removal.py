"""Removing an experiment: what would go and what stays, and moving it to the trash or deleting it.

Folders go one by one, each by a rename into `<base_folder>/.trash/`, or, from another disk, into a `.trash` beside it;
what is made from others goes before them, and the experiment's own folder, then its file, last. So a removal that is
killed is finished by the next one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gpt_pipeline.data.config import is_path
from gpt_pipeline.data.stage import PARTS
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.evaluate import evaluation_is_under_way
from gpt_pipeline.experiment.config import DATA_FOLDER, TRASH
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import base_file, weights_path
from gpt_pipeline.launchers.protocol import ALIVE
from gpt_pipeline.launchers.submission import read_submission
from gpt_pipeline.mirror.order import is_sending
from gpt_pipeline.progress.at_work import runs_at_work
from gpt_pipeline.progress.data_users import (
    data_paths,
    has_known_data,
    held_users,
    record_of,
    shards_paths,
    users_of,
    why_users_are_unknown,
)
from gpt_pipeline.progress.failures import failure_files
from gpt_pipeline.project import Project
from gpt_pipeline.storage.lock import holder_of, is_locked
from gpt_pipeline.training.heartbeat import trainer_state

_DELETING = ".deleting"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A folder or file that goes."""

    path: Path
    size: int
    """Bytes; files with several names count with each, links as nothing."""

    count: int = 1
    """Folders that it stands for."""

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

    Data stays that another experiment uses, of this project or any other, and all of it where that cannot be known.

    Raises:
        UserError: something works on the experiment, or another one starts from it.
    """
    users = _Users.of(experiment)
    project, root = Project.of_experiments(experiment.file.parent), experiment.folder.root
    _refuse_at_work(experiment, project)
    _refuse_needed(experiment, users.known)
    data, stays = _own_data(experiment, users)
    _refuse_what_is_kept_in([*data, root], experiment, users.known)
    goes = [*data, root, record_of(experiment), *failure_files(project, experiment.name)[:1]]
    if file:
        goes.append(experiment.file)
    else:
        stays.append(f"{experiment.file}: the experiment file (--file takes it along)")
    stays += [line for path in goes for line in _linked(path)]
    if (mirror := experiment.config.storage.mirror) is not None:
        stays.append(f"its copy in the mirror {mirror}")
    stays.append("its runs in MLflow and in Dagster's history")
    items = tuple(_item(path, with_parts=path == root) for path in goes if os.path.lexists(path))
    return Removal(base_folder=experiment.base_folder, name=root.name, items=items, stays=tuple(stays))


def _item(path: Path, *, with_parts: bool) -> Item:
    parts = [(each.name, _size(each)) for each in path.iterdir()] if with_parts and not path.is_symlink() else []
    largest = tuple(sorted((part for part in parts if part[1]), key=lambda part: -part[1]))
    return Item(path=path, size=_size(path), inside=largest)


def _linked(path: Path) -> Iterator[str]:
    """Yield a line for each link that goes with `path`, and whose target therefore stays."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for each in (path, *inside):
        if each.is_symlink():
            yield f"{each.resolve()}: only the link to it goes, {each}; remove it yourself"


def summed(items: Sequence[Item]) -> list[Item]:
    """Return the items for a person: parts of one kind, of which each source file has one, as a single item."""
    found: dict[Path, list[Item]] = {}
    for item in items:
        found.setdefault(_kind(item.path), []).append(item)
    return [
        replace(of_kind[0], path=kind, size=sum(item.size for item in of_kind), count=len(of_kind))
        if len(of_kind) > 1
        else of_kind[0]
        for kind, of_kind in found.items()
    ]


def _kind(path: Path) -> Path:
    """Return a pattern for the parts of one kind; of anything else, the path itself."""
    return path.with_name(f"{path.name.rpartition('-')[0]}-*") if path.parent.name == PARTS else path


def remove(experiment: Experiment, shown: Removal, *, file: bool, delete: bool) -> list[Path]:
    """Move what was `shown` to the trash and return its folders there; with `delete`, delete it, and what was left.

    `shown` and `file` are what `plan_removal` gave and got. Nobody begins to use the data meanwhile.

    Raises:
        UserError: something else would go by now than was shown, or something cannot be moved; what went before it
            is in the trash, and the same call goes on.
    """
    takes_data = any(item.path.is_relative_to(experiment.data_folder) for item in shown.items)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    name = Path(_DELETING if delete else "") / f"{stamp}-{shown.name}"  # no name of a folder in the trash begins so
    with held_users(experiment.data_folder) if takes_data else nullcontext():
        if plan_removal(experiment, file=file) != shown:
            raise UserError(
                f"{experiment.file.name}: something has changed since it was shown what would go, so nothing went; "
                "look at it again"
            )
        moved = [_moved(item.path, shown.base_folder, name) for item in shown.items]
    if not delete:
        return [*dict.fromkeys(path.parent for path in moved)]
    places = (shown.base_folder, experiment.data_folder, experiment.data_folder / PARTS)
    for deleting in (place / TRASH / _DELETING for place in places):
        if deleting.is_dir():
            shutil.rmtree(deleting)
    return []


def _moved(path: Path, base_folder: Path, name: Path) -> Path:
    """Move `path` into the folder `name` of the trash, beside it where the base folder's is on another disk."""
    try:
        try:
            target = _place_in(base_folder / TRASH / name, path)
            os.rename(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV or os.path.ismount(path):
                raise
            if not path.is_dir():  # the experiment file, or a note in Dagster's folder
                shutil.move(path, target)
                return target
            target = _place_in(path.parent / TRASH / name, path)
            os.rename(path, target)
    except OSError as error:
        remedy = (
            "it is a mount point; empty it yourself"
            if os.path.ismount(path)
            else "close what has it open, or ask who may write there"
        )
        raise UserError(
            f"{path}: cannot be moved to the trash: {error.strerror}; {remedy}, and run the same again"
        ) from error
    if _is_at_work(target):
        holder = holder_of(target)
        os.rename(target, path)
        raise UserError(f"{path}: {holder} has just begun to work there; stop it, or wait for its end")
    return target


def _is_at_work(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and is_locked(path)


def _place_in(folder: Path, path: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / path.name
    return folder / f"{path.parent.name}-{path.name}" if os.path.lexists(name) else name


def _refuse_at_work(experiment: Experiment, project: Project) -> None:
    root = experiment.folder.root
    runs = runs_at_work(project, experiment.name)
    if runs:
        raise UserError(f"{experiment.file.name}: {runs[0].in_words} works on it; stop it, or wait for its end")
    if trainer_state(root) == "running":
        raise UserError(f"{root}: a training is running there; stop it, or wait for its end")
    if evaluation_is_under_way(experiment.folder.evaluations):
        raise UserError(f"{root}: an evaluation is running there; stop it, or wait for its end")
    if is_sending(experiment.folder):
        raise UserError(f"{root}: its finished work is being sent to the mirror; wait for the end of that")
    note = read_submission(experiment.folder)
    if note is not None and note.state in ALIVE:  # as it was last seen, which `launch --stop` brings up to date
        raise UserError(f"{root}: {note.described}; stop it: gpt-pipeline launch {experiment.file} --stop")


def _refuse_needed(experiment: Experiment, others: Iterable[Experiment]) -> None:
    file = experiment.file.resolve()
    later = [
        _called(each, beside=experiment)
        for each in others
        if each.config.start_from is not None and base_file(each.config.start_from, each.file) == file
    ]
    if later:
        raise UserError(
            f"{experiment.file.name}: {', '.join(later)} start from it; remove these first, or have them start from a "
            "checkpoint (start_from.file) that you keep elsewhere"
        )


def _refuse_what_is_kept_in(folders: Iterable[Path], experiment: Experiment, others: Iterable[Experiment]) -> None:
    """Raise UserError where a folder that goes holds what an experiment names in its file, or the file itself."""
    named = [(experiment, "its file", experiment.file), *((experiment, *each) for each in _named_data(experiment))]
    for other in others:
        named += [(other, *each) for each in _named_paths(other)]
    for folder in map(os.path.realpath, folders):
        for owner, what, path in named:
            if Path(os.path.realpath(path)).is_relative_to(folder):
                raise UserError(
                    f"{folder}: {_called(owner, beside=experiment)} needs {path} in it ({what}); move that elsewhere, "
                    "or remove that experiment first"
                    if owner is not experiment
                    else f"{folder}: {path} lies in it ({what}); move that elsewhere first"
                )


def _named_paths(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Yield keys of an experiment with the paths of one's own that they name, and its file."""
    yield "its file", experiment.file
    yield "storage.base_folder", experiment.base_folder
    start_from = experiment.config.start_from
    weights = None if start_from is None else weights_path(start_from, experiment.file)
    if weights is not None:
        yield "start_from", weights
    yield from _named_data(experiment)


def _named_data(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    for part in experiment.parts.values():
        if part.data.local is not None:
            yield f"data.{part.data.local_key}", Path(part.data.local)
        if isinstance(part.data.tokenizer, str) and is_path(part.data.tokenizer):
            yield "data.tokenizer", Path(part.data.tokenizer)


@dataclass(frozen=True, kw_only=True)
class _Users:
    """Who else may use the experiment's data."""

    known: Sequence[Experiment]
    """The other experiments of the project, and those of others that are on record."""

    unknown: str | None
    """Why there may be more; None if there are none."""

    @classmethod
    def of(cls, experiment: Experiment) -> _Users:
        found = find_experiments(experiment.file.parent)
        neighbours = [each.experiment for each in found if each.experiment is not None and each.file != experiment.file]
        broken = [f"{each.file} cannot be read, and may use it; mend it first" for each in found if each.problem]
        own = {each.folder.root for each in (experiment, *neighbours)}
        recorded, unread = _recorded(experiment, {record_of(each) for each in (experiment, *neighbours)})
        strangers = _strangers(experiment, {*own, *(each.folder.root for each in recorded)})
        missing = why_users_are_unknown(experiment.data_folder)
        return cls(
            known=[*neighbours, *recorded],
            unknown=next(iter([*broken, *unread, *strangers, *([missing] if missing else [])]), None),
        )


def _recorded(experiment: Experiment, own: Set[Path]) -> tuple[list[Experiment], list[str]]:
    """Return the experiments on record but not in `own`, and lines on those that cannot be read here."""
    found, unread = [], []
    for user in users_of(experiment.data_folder):
        if user.record in own:
            continue
        why = "names another base folder here"
        try:
            other = user.experiment()
            if os.path.realpath(other.data_folder) == os.path.realpath(experiment.data_folder):
                found.append(other)
                continue
        except UserError as error:
            why = f"cannot be read here: {error}"
        unread.append(f"{user.file} may use it, but {why}; if that experiment is gone, delete {user.record}")
    return found, unread


def _strangers(experiment: Experiment, known: Iterable[Path]) -> list[str]:
    """Return lines on the experiments that have been trained in the base folder and of which nothing is known."""
    base, names = experiment.base_folder, {os.path.realpath(root) for root in known}
    folders = [each for each in base.iterdir() if (each / "job.json").is_file()] if base.is_dir() else []
    unknown = [each for each in folders if os.path.realpath(each) not in names and each.name != DATA_FOLDER]
    return [f"{each}, an experiment of no file here, may use it" for each in unknown if each.name[0] != "."]


def _own_data(experiment: Experiment, users: _Users) -> tuple[list[Path], list[str]]:
    """Return what goes of the data, what is made of others first, and lines on what stays."""
    found = [path for path in _paths_of(experiment) if path.exists() and path.is_relative_to(experiment.data_folder)]
    if not found:
        return [], []
    if users.unknown is not None:
        return [], [f"{experiment.data_folder}: {users.unknown}"]
    used: list[tuple[str, set[str]]] = []
    for other in users.known:
        problem, paths = _used_by(other)
        if problem:
            return [], [f"{experiment.data_folder}: {problem}"]
        used.append((_called(other, beside=experiment), {os.path.realpath(path) for path in paths}))
    own, shared = [], Counter[str]()
    for path in found:
        names = [name for name, theirs in used if os.path.realpath(path) in theirs]
        if names:
            shared[f"{_kind(path)}: used by {', '.join(names)}"] += 1
        elif _is_at_work(path):
            raise UserError(f"{path}: is being made by {holder_of(path)}; wait for its end, or stop it")
        else:
            own.append(path)
    return own, [line if count == 1 else f"{line} ({count:,} folders)" for line, count in shared.items()]


def _paths_of(experiment: Experiment) -> list[Path]:
    try:
        return data_paths(experiment)
    except UserError:  # the weights are gone by which its questions are found, which therefore stay
        return [*shards_paths(experiment)]


def _used_by(other: Experiment) -> tuple[str, list[Path]]:
    """Return why it is not known what the experiment uses, "" if it is known, and the data that it uses."""
    try:
        has_begun = record_of(other).is_file() or other.folder.job.is_file()
        if not has_begun:
            return "", _paths_of(other)
        if has_known_data(other):
            return "", data_paths(other)
    except UserError as error:
        return f"{other.file} may use it: {error}", []
    return f"{other.file} has begun to use it, and its data is not complete; finish or remove that one first", []


def _called(other: Experiment, *, beside: Experiment) -> str:
    """Return which file another experiment has; elsewhere, its path, for projects have files of the same name."""
    return other.file.name if other.file.parent == beside.file.parent else str(other.file)


def _size(path: Path) -> int:
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())
