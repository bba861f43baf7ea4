"""An experiment and its mirror: what of it is to be there, what of its data is brought from there. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import prompts_stage, wanted_fingerprint
from gpt_pipeline.mirror.bring import bring_source, bring_stage, look
from gpt_pipeline.mirror.lease import newest_holder
from gpt_pipeline.mirror.names import training_prefix
from gpt_pipeline.mirror.order import Order, held_training, is_sending, start_anew, state_for, write_order
from gpt_pipeline.mirror.store import MirrorError, Store, open_store
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.lock import is_locked
from gpt_pipeline.storage.manifest import StageResult, finished


class Placed(Protocol):
    """A stage with a place of its own, of parts or not."""

    @property
    def name(self) -> str: ...

    def find(self) -> StageResult | None: ...

    def place(self) -> tuple[Path, str] | None: ...


def mirror_order(experiment: Experiment, fingerprint: str | None) -> Order | None:
    """Return what of the experiment is to be in its mirror: its finished data and the training `fingerprint`, if any.

    None: it has no mirror.
    """
    storage = experiment.config.storage
    if storage.mirror is None:
        return None
    base = experiment.base_folder
    folders = (each.relative_to(base).as_posix() for each in _folders(experiment) if each.is_relative_to(base))
    return Order(
        mirror=storage.mirror,
        keep_last=storage.mirror_keep_last or experiment.cadence.keep_last,
        fingerprint=fingerprint or "",
        stages=tuple(folders),
    )


def _folders(experiment: Experiment) -> Iterator[Path]:
    """Yield the folders of the experiment's finished data, and of what is known of its sources, before it."""
    from gpt_pipeline.data.documents.raw import RawStage

    for stage in data_stages(experiment):
        found = stage.known() if isinstance(stage, RawStage) else stage.find()
        if found is not None:
            yield from (stage.record_folder, found.folder) if isinstance(stage, RawStage) else (found.folder,)
    if experiment.config.has_rollouts:
        yield from _prompts(experiment)


def _prompts(experiment: Experiment) -> Iterator[Path]:
    try:
        stage = prompts_stage(experiment)
    except UserError:  # the weights to begin with cannot be had, which the training says
        return
    found = None if stage is None else stage.find()
    yield from () if found is None else [found.folder]


def send_to_mirror(experiment: Experiment) -> None:
    """Have what is finished of the experiment sent to its mirror, if it has one, by a process in the background.

    Its training is the one that the folder holds, also where the file has been changed for the next one.
    """
    if experiment.config.storage.mirror is not None:
        _send(experiment, held_training(experiment.folder) or wanted_fingerprint(experiment))


def send_data_to_mirror(experiment: Experiment) -> None:
    """Have the finished data of the experiment sent to its mirror, as `send_to_mirror`."""
    _send(experiment, None)


def _send(experiment: Experiment, fingerprint: str | None) -> None:
    order, folder = mirror_order(experiment, fingerprint), experiment.folder
    if order is None:
        return
    write_order(folder, order)
    if not (is_sending(folder) and is_locked(folder.root)):  # the agent of a trainer at work sees what is new
        start_anew(folder, order)


def data_stages(experiment: Experiment) -> Iterator[PartedStage]:
    """Yield the stages of the experiment's data, each after what it is made of."""
    from gpt_pipeline.data.tokens.choose import shards_stage

    for part in experiment.parts.values():
        yield from _stages_of_part(part)
    if experiment.config.data.mix is not None:
        yield shards_stage(experiment.data, experiment.data_folder)


def _stages_of_part(part: Experiment) -> Iterator[PartedStage]:
    from gpt_pipeline.data.documents.raw import RawStage
    from gpt_pipeline.data.documents.stage import DocumentsStage
    from gpt_pipeline.data.tokens.shards import ShardsStage

    data, folder = part.data, part.data_folder
    documents = DocumentsStage(config=data, data_folder=folder)
    shards = ShardsStage(config=data, data_folder=folder)
    yield RawStage(config=data, data_folder=folder, is_needed=lambda: documents.find() is None)
    yield documents
    yield from (shards.tokenizer, shards) if shards.tokenizer.is_made else (shards,)


def bring_all_data(experiment: Experiment, *, say: Say) -> None:
    """Bring all data stages of the experiment that its mirror has and that are not here; raises as `bring_data`."""
    for stage in data_stages(experiment):
        bring_data(experiment, stage, say=say)


def mirror_in_words(experiment: Experiment) -> list[tuple[str, str]]:
    """Return what the experiment's mirror has of its training, and how far sending is, as labels and texts.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    url, folder = experiment.config.storage.mirror, experiment.folder
    assert url is not None
    state, fingerprint = state_for(folder, url), wanted_fingerprint(experiment)
    lines = [("mirror", url), ("sent", "nothing yet" if state is None else state.in_words)]
    if fingerprint is None:
        return [*lines, ("training", "not known until its data and its start are made, or brought by --bring")]
    store, training = open_store(url), training_prefix(folder.root.name, fingerprint)
    newest, copy = newest_holder(store, training), look(store, training)
    steps = ", ".join(f"step {kept.step:,}" for kept in copy.checkpoints) or "none"
    size = sum(copy.objects.values())
    return [
        *lines,
        ("training", f"{training}: {counted(len(copy.objects), 'object')}, {size / 1e6:,.1f} MB"),
        ("writer", "none yet" if newest is None else f"{newest.in_words} (term {newest.term})"),
        ("checkpoints", steps),
    ]


def bring_data(experiment: Experiment, stage: Placed, *, say: Say) -> None:
    """Bring a data stage from the experiment's mirror, if it has one and the stage is there and not here.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    url = experiment.config.storage.mirror
    if url is None or stage.find() is not None:
        return
    try:
        _bring(open_store(url), experiment.base_folder, stage, say)
    except MirrorError as error:
        raise MirrorError(
            f"{error}. What it has of {stage.name} would be made here again: mend it and run again, or set "
            f"storage.mirror: null in {experiment.file.name} to go on without it"
        ) from error


def _bring(store: Store, base: Path, stage: Placed, say: Say) -> None:
    from gpt_pipeline.data.documents.raw import RawStage
    from gpt_pipeline.data.documents.stage import DocumentsStage

    if isinstance(stage, RawStage):
        bring_source(store, base, stage.record_folder.relative_to(base).as_posix(), say=say)
    place = stage.place()
    if place is None:
        return
    is_here = finished(*place) is not None or bring_stage(
        store, base, place[0].relative_to(base).as_posix(), place[1], say=say
    )
    if isinstance(stage, RawStage) and is_here:  # whose files nobody needs where the documents are
        _bring(store, base, DocumentsStage(config=stage.config, data_folder=stage.data_folder), say)
