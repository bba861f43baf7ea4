"""The figures of several experiments, and whether they can be compared.

Losses can be compared when they are means over the same held-out tokens with the same context; answers when they are to
the same questions. Whatever else differs is what the experiments are about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.experiment.differences import Difference, config_differences
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.progress.training import experiment_training
from gpt_pipeline.report.contents import CheckpointRow, Contents, read_contents
from gpt_pipeline.report.cost import Cost, seconds_at

_RANKED_BY = "val_loss"
_OF_ANSWERS = ("num_questions", "max_new_tokens", "num_documents", "seed")
"""Keys of an evaluation's configuration that decide the answers and leave the losses alone."""

_OF_SPLIT = ("tokenizer", "validation_fraction", "seed")
"""Keys of the token shards' manifest: what decides, besides the documents, which tokens are held out."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one checkpoint reached."""

    step: int
    tokens_seen: int | None
    seconds: float | None
    """Training time up to it."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One experiment's figures; what does not exist yet is None."""

    name: str
    display_name: str
    status: str
    parameters: int
    cost: Cost
    best: Reached | None
    """Lowest validation loss of its evaluations."""

    last: Reached | None
    """Newest of its evaluated checkpoints."""

    rank: int | None = None
    """1 is best; None where it cannot be ranked."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several experiments."""

    standings: tuple[Standing, ...]
    """Best first where they are ranked, else in the order asked for; those without evaluations at the end."""

    differences: tuple[Difference, ...]
    """Values in the order of `standings`."""

    obstacles: tuple[str, ...]
    """Why losses, and therefore everything else, cannot be compared; empty if they can."""

    answer_obstacles: tuple[str, ...]
    """Why the answers' metrics alone cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    experiment: Experiment
    standing: Standing
    evaluation: EvaluationResult | None
    """The newest evaluation, whose test the figures come from."""


def compare_experiments(experiments: Sequence[Experiment]) -> Comparison:
    """Return the experiments' figures, ranked by the lowest validation loss if the losses can be compared.

    Raises:
        ConfigError: a base folder is not a path on this machine.
    """
    entries = [_entry(experiment) for experiment in experiments]
    judged = [entry for entry in entries if entry.evaluation is not None]
    obstacles = _obstacles(judged, _loss_differences)
    ranked = _ranked(judged) if len(judged) > 1 and not obstacles else judged
    ordered = [*ranked, *(entry for entry in entries if entry.evaluation is None)]
    return Comparison(
        standings=tuple(entry.standing for entry in ordered),
        differences=tuple(config_differences([entry.experiment.config for entry in ordered])),
        obstacles=tuple(obstacles),
        answer_obstacles=tuple(_obstacles(judged, _answer_differences)),
    )


def _entry(experiment: Experiment) -> _Entry:
    contents = read_contents(experiment.folder)
    standing = Standing(
        name=experiment.name,
        display_name=experiment.display_name,
        status=experiment_training(experiment).word,
        parameters=parameter_count(experiment.config.model),
        cost=contents.cost,
        best=_reached(contents, contents.best),
        last=_reached(contents, contents.newest),
    )
    newest = contents.newest.evaluation if contents.newest else None
    return _Entry(experiment=experiment, standing=standing, evaluation=newest)


def _reached(contents: Contents, row: CheckpointRow | None) -> Reached | None:
    if row is None or row.evaluation is None:
        return None
    return Reached(
        step=row.step,
        tokens_seen=row.tokens_seen,
        seconds=seconds_at(contents.records, row.step),
        metrics=row.evaluation.metrics,
    )


def _loss(entry: _Entry) -> float:
    assert entry.standing.best is not None  # only judged entries come here
    return entry.standing.best.metrics[_RANKED_BY]


def _ranked(judged: Sequence[_Entry]) -> list[_Entry]:
    """Return the entries with their ranks, best first; equal losses share one."""
    losses = [_loss(entry) for entry in judged]
    ordered = sorted(judged, key=_loss)
    ranks = [1 + sum(loss < _loss(entry) for loss in losses) for entry in ordered]
    return [
        replace(entry, standing=replace(entry.standing, rank=rank)) for entry, rank in zip(ordered, ranks, strict=True)
    ]


def _obstacles(judged: Sequence[_Entry], differences: Callable[[_Entry, _Entry], list[str]]) -> list[str]:
    """Return a line for each experiment whose test differs from the first one's."""
    lines = []
    for entry in judged[1:]:
        found = differences(judged[0], entry)
        if found:
            names = f"{judged[0].standing.name} and {entry.standing.name}"
            lines.append(f"{names}: {'; '.join(found)}")
    return lines


def _loss_differences(one: _Entry, other: _Entry) -> list[str]:
    assert one.evaluation is not None
    assert other.evaluation is not None
    return [*_split_differences(one, other), *_config_differences(one.evaluation, other.evaluation, of_answers=False)]


def _answer_differences(one: _Entry, other: _Entry) -> list[str]:
    assert one.evaluation is not None
    assert other.evaluation is not None
    found = _config_differences(one.evaluation, other.evaluation, of_answers=True)
    if not found and _questions(one.evaluation) != _questions(other.evaluation):
        found.append("other questions")
    return found


def _config_differences(one: EvaluationResult, other: EvaluationResult, *, of_answers: bool) -> list[str]:
    keys = [key for key in {**one.config, **other.config} if (key in _OF_ANSWERS) == of_answers]
    return [
        f"{_place(key)} is {one.config.get(key, 'not known')} and {other.config.get(key, 'not known')}"
        for key in keys
        if one.config.get(key) != other.config.get(key)
    ]


def _place(key: str) -> str:
    return f"data.{key}" if key == "max_length" else f"evaluation.{key}"


def _questions(result: EvaluationResult) -> list[tuple[Any, Any]]:
    return [(answer.get("synth_id"), answer.get("question")) for answer in result.answers]


def _split_differences(one: _Entry, other: _Entry) -> list[str]:
    """Return why the held-out tokens are not the same, by the manifests of the shards; empty if they are."""
    assert one.evaluation is not None
    assert other.evaluation is not None
    if one.evaluation.upstream == other.evaluation.upstream:
        return []
    settings = [_split_settings(entry) for entry in (one, other)]
    found = [
        f"another {_split_word(key)} ({settings[0][key]} and {settings[1][key]})"
        for key in _OF_SPLIT
        if all(key in values for values in settings) and settings[0][key] != settings[1][key]
    ]
    if one.evaluation.upstream.get("english") != other.evaluation.upstream.get("english"):
        counts = f"{one.experiment.config.data.amount} and {other.experiment.config.data.amount}"
        found.append(f"validation split of other documents (data.num_samples {counts})")
    return found or ["another validation split (the token shards have other fingerprints)"]


def _split_settings(entry: _Entry) -> Mapping[str, Any]:
    """Return the settings of the shards that the evaluation read; empty if they are gone."""
    from gpt_pipeline.data.tokens.shards import known_shards

    assert entry.evaluation is not None
    stage = known_shards(entry.experiment.data, entry.experiment.data_folder)
    same = stage is not None and stage.fingerprint == entry.evaluation.upstream.get("shards")
    return stage.manifest.config if same and stage is not None else {}


def _split_word(key: str) -> str:
    return {"validation_fraction": "share held out", "seed": "choice of held-out articles"}.get(key, key)
