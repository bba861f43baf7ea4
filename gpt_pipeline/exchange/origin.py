"""Where a model's weights come from, in words for its card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import hub_revision, weights_path
from gpt_pipeline.experiment.training import base_experiment, find_start
from gpt_pipeline.shown import in_markdown
from gpt_pipeline.training.job import OBJECTIVE, START_FROM

_FURTHER = {"pretrain": "trained further", "sft": "fine-tuned", "rl": "trained by rewards"}
_OTHERS = "other weights"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights come from."""

    made: str
    """`trained from scratch`, or how and from what, in markdown; before `by gpt_pipeline`."""

    learned: str
    """`The model was trained`, or what this training added; before `on`."""

    has_base: bool = False
    """Whether the training began with other weights, whose tokens it does not count."""

    on_hub: str | None = None
    """The model of the hub that it all began with."""


def origin_of(experiment: Experiment, info: CheckpointInfo) -> Origin:
    """Return where the weights of one of the experiment's checkpoints come from.

    Its training has noted what it began with; that has the names that the file gives it only where these are the same.
    """
    bases = [*_bases(experiment, info)]
    objective = info.settings.get(OBJECTIVE) or experiment.config.training.objective
    if not bases:
        return Origin(made=_made_alone(experiment, info), learned="The model was trained")
    whose, on_hub = ", which began with ".join(words for words, _ in bases), bases[-1][1]
    how, learned = _FURTHER[objective], f"It was {_FURTHER[objective]}"
    if not info.step:  # the base itself
        how, learned = "taken", "The training after it is"
    return Origin(made=f"{how} from {whose}", learned=learned, has_base=True, on_hub=on_hub)


def _made_alone(experiment: Experiment, info: CheckpointInfo) -> str:
    if not info.fingerprint:  # of an import
        return "taken from another program"
    # What a checkpoint that the file names had been made of, nobody knows.
    is_known = experiment.config.storage.checkpoint_to_resume in (None, "scratch")
    return "trained from scratch" if is_known else "trained"


def _bases(experiment: Experiment, info: CheckpointInfo) -> Iterator[tuple[str, str | None]]:
    """Yield what the checkpoint's training began with, then what that did: in markdown, and its name on the hub."""
    noted = info.settings.get(START_FROM)
    if not noted:
        return
    start, found = experiment.config.start_from, _start_of_file(experiment)
    if start is None or found is None or found.weights_sha256 != noted:
        yield _OTHERS, None  # the file has been changed since, or what it names
    elif (base := base_experiment(experiment)) is not None:
        yield f"the experiment *{in_markdown(base.display_name)}*", None
        yield from _bases(base, found)
    elif weights_path(start, experiment.file) is not None:
        yield f"weights of one's own (`{in_markdown(Path(start.text).name)}`)", None
    else:
        revision = hub_revision(start, experiment.folder)
        commit = f" at commit `{revision}`" if revision else ""
        yield f"[{start.text}](https://huggingface.co/{start.text}){commit}", start.text


def _start_of_file(experiment: Experiment) -> CheckpointInfo | None:
    """Return the checkpoint that the experiment file names now; None where it names none, or that cannot be had."""
    try:
        start = find_start(experiment)
    except UserError:
        return None
    return None if start is None else start.checkpoint
