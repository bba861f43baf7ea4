"""Who uses the data that experiments share: what each has there, and which experiments there are, also elsewhere.

A file in `<base_folder>/data/users/` holds the path and the text of the file of an experiment that data was made or
used for, whichever project it belongs to. It is written before the data is looked for. An empty file `complete` beside
them says that all users are on record: it is there if the first came when there was no data. Who removes data holds
the folder's lock, and so do those who put themselves on record.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.stage import PARTS
from gpt_pipeline.data.tokens.choose import shards_stage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.document import read_text
from gpt_pipeline.experiment.load import Experiment, read_experiment
from gpt_pipeline.experiment.training import prompts_stage
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import read_json, read_kept, write_json, write_text
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.storage.manifest import Manifest, StageResult
from gpt_pipeline.storage.names import slug

_USERS = "users"
_COMPLETE = "complete"
_NO_STAGES = frozenset({_USERS, "sources", "tokenizers"})  # what a look at documents leaves, too


@dataclass(frozen=True, kw_only=True)
class DataUser:
    """An experiment on record."""

    record: Path
    """Where it is on record."""

    file: str
    """Of the experiment, on the machine where it was used."""

    text: str

    def experiment(self) -> Experiment:
        """Return the experiment as it was when it was put on record.

        Raises:
            UserError: it cannot be read on this machine.
        """
        return read_experiment(Path(self.file), self.text)


def note_users(experiments: Iterable[Experiment], *, say: Say) -> None:
    """Put the experiments on record as users of their data folders, before they look for data there.

    What keeps one from being put on record, such as a folder that is only to be read, is told to `say`.
    """
    for experiment in experiments:
        try:
            _note(experiment)
        except (OSError, UserError, UnicodeEncodeError) as error:  # the last: a name of bytes that are not UTF-8
            say(
                f"{users_folder(experiment.data_folder)}: {experiment.file.name} cannot be put on record as a user of "
                f"this data ({error}); `gpt-pipeline remove` of another experiment may not know of it"
            )


def _note(experiment: Experiment) -> None:
    users, path = users_folder(experiment.data_folder), record_of(experiment)
    value = {"file": str(experiment.file), "text": read_text(experiment.file)}
    with held_users(experiment.data_folder):
        if not _has_data(experiment.data_folder):
            write_text(users / _COMPLETE, "")
        if read_kept(path, dict, otherwise="it is written anew") != value:
            write_json(path, value)


def users_folder(data_folder: Path) -> Path:
    """Return the folder of the records."""
    return data_folder / _USERS


def record_of(experiment: Experiment) -> Path:
    """Return where the experiment is on record as a user of data."""
    root = experiment.folder.root
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:SHORT]
    return users_folder(experiment.data_folder) / f"{slug(root.name)[-40:]}-{digest}"


def held_users(data_folder: Path) -> AbstractContextManager[None]:
    """Return a context in which nobody else puts a user on record or removes data."""
    users_folder(data_folder).mkdir(parents=True, exist_ok=True)
    return hold_lock(users_folder(data_folder) / ".lock", wait_seconds=-1)


def users_of(data_folder: Path) -> list[DataUser]:
    """Return the experiments on record in a data folder.

    Raises:
        UserError: a record cannot be read.
    """
    return [_read(path) for path in sorted(users_folder(data_folder).glob("*-*")) if not path.name.startswith(".")]


def _read(path: Path) -> DataUser:
    try:
        value = read_json(path)
        return DataUser(record=path, file=str(value["file"]), text=str(value["text"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: found no record of an experiment that uses the data ({type(error).__name__}); run that "
            "experiment again, which writes it, or delete the record if it is gone"
        ) from error


def why_users_are_unknown(data_folder: Path) -> str | None:
    """Return why data may have users that are not on record; None if it has none."""
    complete = users_folder(data_folder) / _COMPLETE
    if complete.is_file() or not _has_data(data_folder):
        return None
    return (
        "some of it is older than the records of who uses it, so another project may; if none does, make an empty file "
        f"{complete}"
    )


def _has_data(data_folder: Path) -> bool:
    """Whether there is data, finished or not, that somebody may use."""
    if not data_folder.is_dir():
        return False
    stages = [each for each in data_folder.iterdir() if each.name not in _NO_STAGES and not each.name.startswith(".")]
    return any(each.name != PARTS or any(each.iterdir()) for each in stages)


def data_paths(experiment: Experiment) -> list[Path]:
    """Return where the experiment's data lies, or will, finished or not; what is made of others comes first.

    Raises:
        UserError: the weights are missing by which its questions (`rl_prompts`) are found, or a state file is not
            readable.
    """
    prompts = prompts_stage(experiment) if experiment.config.has_rollouts else None
    paths = [] if prompts is None else [prompts.place()[0]]
    return [*dict.fromkeys([*paths, *shards_paths(experiment)])]


def shards_paths(experiment: Experiment) -> Iterator[Path]:
    """Yield the same without the questions."""
    if (mixed := _mixed_place(experiment)) is not None:
        yield mixed[0]
    stages = [stage for part in experiment.parts.values() for stage in _stages(part)]
    for documents, _, shards in stages:
        if shards.tokenizer.identity is not None:
            yield from (shards.part_of(part).folder for part in documents.own_parts())
        yield from (place[0] for place in [shards.place()] if place is not None)
        yield from shards.tokenizer.own_paths()
    for documents, folder, _ in stages:
        yield from (part.folder for part in documents.own_parts())
        yield folder
    for part in experiment.parts.values():
        yield from RawStage(config=part.data, data_folder=part.data_folder).own_paths()


def has_known_data(experiment: Experiment) -> bool:
    """Whether it is known what data the experiment uses; not while its raw files are incomplete, for one."""
    stages = [[*_stages(part)] for part in experiment.parts.values()]
    known = all(of_part and all(shards.place() for _, _, shards in of_part) for of_part in stages)
    return known and (experiment.config.data.mix is None or _mixed_place(experiment) is not None)


def _mixed_place(experiment: Experiment) -> tuple[Path, str] | None:
    return None if experiment.config.data.mix is None else shards_stage(experiment.data, experiment.data_folder).place()


def _stages(part: Experiment) -> Iterator[tuple[DocumentsStage, Path, ShardsStage]]:
    """Yield the stages behind the raw files of one of `Experiment.parts`, be they made or not."""
    for raw in RawStage(config=part.data, data_folder=part.data_folder).made():
        documents = DocumentsStage(config=part.data, data_folder=part.data_folder, given_raw=raw)
        place = documents.place()
        assert place is not None  # its raw files are given
        folder, fingerprint = place
        to_come = Manifest(stage=documents.name, fingerprint=fingerprint, config={})
        given = StageResult(folder=folder, manifest=to_come, reused=True)
        yield documents, folder, ShardsStage(config=part.data, data_folder=part.data_folder, given_documents=given)
