"""All experiment files of a folder; a broken one is reported and does not affect the others."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.document import SUFFIXES
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.problems import quoted
from gpt_pipeline.project import OTHER_FILES
from gpt_pipeline.storage.names import as_typed, slug

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """One file of the folder: an experiment, or the problem with it."""

    name: str
    """The slug of the file's stem, numbered if another file has it too; unique in the folder."""

    file: Path
    experiment: Experiment | None = None
    problem: str | None = None
    """What to tell the user; None if `experiment` is set."""


def find_experiments(folder: Path) -> list[ExperimentFile]:
    """Return the YAML files of `folder` by name, except hidden ones and those that belong to Dagster.

    Of two files that would share a name or a folder for their results, the second has a problem that names the first.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        first = as_typed(folder / "my-idea.yaml", Path.cwd())
        raise UserError(f"{folder}: no such folder; `gpt-pipeline init {first}` makes it, with a first experiment")
    files = sorted(filter(_may_be_experiment, folder.iterdir()), key=lambda file: (slug(file.stem), file.name))
    return list(_distinct(files))


def folder_state(folder: Path) -> tuple[object, ...]:
    """Return what differs once a file of `folder` was changed, added or removed; of no folder, nothing."""
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def load_alone(file: Path) -> Experiment:
    """Return the experiment in `file`, after a look at its neighbours, which must not have its name or its folder.

    Raises:
        UserError: as `load_experiment`; or a neighbour has them, which Dagster then shows in its place; or the file is
            called what no experiment is, so that Dagster does not show it.
    """
    experiment = load_experiment(file)
    if not _may_be_experiment(experiment.file):
        raise UserError(
            f"{file}: found the file's name {quoted(file.name)}, need one that ends in .yaml or .yml, does not begin "
            "with a dot, and is none of the project's own files; rename it"
        )
    for found in find_experiments(experiment.file.parent):
        if found.file == experiment.file and found.problem is not None:
            raise UserError(found.problem)
    return experiment


def files_named(path: Path) -> list[Path]:
    """Return the experiment files that `path` names: those of a folder, those that fit a pattern, or the file itself.

    Raises:
        UserError: the folder has none, or the pattern fits none.
    """
    if path.is_dir():
        found = sorted(filter(_may_be_experiment, path.iterdir()))
    elif not path.exists() and glob.has_magic(str(path)):
        found = sorted(filter(_may_be_experiment, map(Path, glob.glob(str(path)))))
    else:
        return [path]
    if not found:
        raise UserError(f"{path}: found no experiment file there, need at least one; `gpt-pipeline init` writes one")
    return found


def refuse_taken(experiments: Sequence[Experiment], folder: Path) -> None:
    """Raise UserError where one of `experiments`, new in `folder`, would share a name or a folder with another.

    The other is one of them, or stands in a file of `folder` that none of them is to replace.
    """
    files = {each.file for each in experiments}
    neighbours = find_experiments(folder) if folder.is_dir() else []
    taken: dict[str, Path] = {}
    for each in (*(found.experiment for found in neighbours if found.file not in files), *experiments):
        if each is not None:
            _take(taken, each)


def _may_be_experiment(file: Path) -> bool:
    return file.suffix in SUFFIXES and not file.name.startswith(".") and file.name not in OTHER_FILES


def _distinct(files: list[Path]) -> Iterator[ExperimentFile]:
    taken: dict[str, Path] = {}
    for name, file in _named(files):
        try:
            experiment = load_experiment(file)
            _take(taken, experiment)
        except UserError as error:
            yield ExperimentFile(name=name, file=file, problem=str(error))
        except Exception as error:  # a mistake of ours must not take the others away, either
            _logger.exception("%s", file)
            yield ExperimentFile(name=name, file=file, problem=f"{file}: {type(error).__name__}: {error}")
        else:
            yield ExperimentFile(name=name, file=file, experiment=experiment)


def _named(files: list[Path]) -> Iterator[tuple[str, Path]]:
    names = {slug(file.stem) for file in files}
    seen: set[str] = set()
    for file in files:
        name = slug(file.stem)
        if name in seen:
            name = next(other for number in count(2) if (other := f"{name}_{number}") not in names | seen)
        seen.add(name)
        yield name, file


def _take(taken: dict[str, Path], experiment: Experiment) -> None:
    """Reserve the experiment's name and folder.

    Raises:
        UserError: another file has one of them, or the folder is not a path on this machine.
    """
    file, folder = experiment.file, str(experiment.folder.root)
    wanted = {
        f"name {experiment.name}": f"{file}: has the same name as {{}}, `{experiment.name}`; rename one of the files",
        # lower: Windows and macOS do not tell `Mine` from `mine`.
        f"folder {folder.lower()}": f"{file}: experiment_name: would write into the same folder as {{}}, {folder}; "
        "give one of them another name",
    }
    for key, text in wanted.items():
        if key in taken:
            raise UserError(text.format(taken[key]))
    taken.update(dict.fromkeys(wanted, file))
