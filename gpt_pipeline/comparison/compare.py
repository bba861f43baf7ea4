"""The figures of several experiments, in groups of those whose losses can be compared.

`same_losses` is the rule: means over the same held-out tokens with the same context and tokenizer. Where only the
tokenizer differs, bits per byte of the same held-out text compare. Answers compare where they are to the same questions
(`same_answers`). Whatever else differs is what the experiments are about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt_pipeline.comparison.standings import Comparison, Group, Reached, Standing
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import (
    OF_ANSWERS,
    OF_SAMPLES,
    EvaluationResult,
    rank_of,
    ranking_metric,
    same_answers,
    same_losses,
    same_samples,
)
from gpt_pipeline.experiment.differences import config_differences
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.progress.training import experiment_training
from gpt_pipeline.report.charts import CURVES
from gpt_pipeline.report.contents import CheckpointRow, Contents, read_contents
from gpt_pipeline.report.cost import Record, seconds_at
from gpt_pipeline.report.metrics import Metric
from gpt_pipeline.training.config import ESTIMATES

Same = Callable[[EvaluationResult, EvaluationResult], bool]
"""Whether two evaluations compare."""

_OF_SPLIT = ("tokenizer", "validation_fraction", "seed")
"""What decides, besides the documents, which tokens are held out, by the token shards' manifest."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    experiment: Experiment
    standing: Standing
    evaluation: EvaluationResult | None
    """The newest evaluation, whose test the figures come from."""

    records: Sequence[Record] = ()


def compare_experiments(experiments: Sequence[Experiment], *, problems: dict[str, str] | None = None) -> Comparison:
    """Return the experiments' figures, ranked by those of their best checkpoints, among those whose losses compare.

    With `problems`, experiments that cannot be read are left out and added to it, by the name of their file.

    Raises:
        UserError: two bear one name; without `problems`, one cannot be read, such as where its base folder is no path
            on this machine.
    """
    _require_different_names(experiments)
    return _comparison(list(_entries(experiments, problems)))


def compare_with_families(experiments: Sequence[Experiment]) -> tuple[Comparison, dict[str, Comparison]]:
    """Return the comparison of all, and that of each family by its name, reading each experiment once.

    Raises:
        ConfigError: an experiment cannot be read, such as where its base folder is no path on this machine.
    """
    keep = len(experiments) <= CURVES
    entries = {experiment.file: _entry(experiment, keep_records=keep) for experiment in experiments}
    of_families = {
        name: _comparison([entries[each.file] for each in members]) for name, members in families(experiments).items()
    }
    return _comparison([*entries.values()]), of_families


def _comparison(entries: Sequence[_Entry]) -> Comparison:
    waiting = [entry for entry in entries if entry.evaluation is None]
    sets = alike([entry.evaluation for entry in entries], same_losses)
    parts = [_ranked([entries[place] for place in places]) for places in sets]
    ordered = [*(entry for part in parts for entry in part), *waiting]
    return Comparison(
        groups=tuple(_group(part, parts[0]) for part in parts),
        across=tuple(_across_tokenizers(parts)),
        waiting=tuple(entry.standing for entry in waiting),
        differences=tuple(config_differences([entry.experiment.config for entry in ordered])),
        records={entry.standing.name: entry.records for entry in entries if entry.records},
    )


def are_one_family(experiments: Sequence[Experiment]) -> bool:
    """Whether all bear the name of one family, so that a key in which they differ is what they are about."""
    names = {each.config.family for each in experiments}
    return len(names) == 1 and None not in names


def families(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """Return the experiments of each family that has several, by its name."""
    found: dict[str, list[Experiment]] = {}
    for each in experiments:
        if each.config.family is not None:
            found.setdefault(each.config.family, []).append(each)
    return {name: members for name, members in found.items() if len(members) > 1}


def are_alike(results: Sequence[EvaluationResult | None], metric: Metric) -> bool:
    """Whether a metric of evaluations whose losses compare does so: of answers, that they are to the same questions."""
    return not metric.of_answers or len(alike_by(metric, results)) < 2


def alike_by(metric: Metric, results: Sequence[EvaluationResult | None]) -> list[list[int]]:
    """Return the places of the results whose answers the metric compares, set by set; others are in none."""
    measured = [result if result is not None and metric.key in result.metrics else None for result in results]
    return alike(measured, same_samples if metric.of_samples else same_answers)


def alike(results: Sequence[EvaluationResult | None], same: Same) -> list[list[int]]:
    """Return the places of the results that compare with each other, set by set, in order; None is in no set."""
    sets: dict[int, list[int]] = {}  # by the place of the first
    for place, result in enumerate(results):
        if result is not None:
            first = next((n for n in sets if (other := results[n]) is not None and same(other, result)), place)
            sets.setdefault(first, []).append(place)
    return [*sets.values()]


def _require_different_names(experiments: Sequence[Experiment]) -> None:
    """Raise UserError where two files, of two projects say, bear one name: figures are shown and found by it."""
    seen: dict[str, Experiment] = {}
    for each in experiments:
        other = seen.setdefault(each.name, each)
        if other is not each:
            raise UserError(
                f"found {other.file} and {each.file}, need files of different names to tell their figures apart; "
                "rename one, whose results are found by its experiment_name all the same"
            )


def _entries(experiments: Sequence[Experiment], problems: dict[str, str] | None) -> Iterator[_Entry]:
    for experiment in experiments:
        try:
            yield _entry(experiment, keep_records=len(experiments) <= CURVES)
        except (UserError, OSError) as error:
            if problems is None:
                raise
            problems[experiment.file.name] = str(error)


def _entry(experiment: Experiment, *, keep_records: bool = False) -> _Entry:
    contents, training, config = read_contents(experiment.folder), experiment_training(experiment), experiment.config
    loss = config.deciding_loss if config.deciding_loss in ESTIMATES else "val_loss"
    standing = Standing(
        name=experiment.name,
        display_name=experiment.display_name,
        family=config.family,
        status=training.word,
        step=training.step,
        max_steps=training.max_steps,
        loss=loss,
        estimate=(contents.last("validation") or {}).get(loss),
        updated_at=_updated_at(contents),
        parameters=parameter_count(experiment.config.model),
        cost=contents.cost,
        best=_reached(contents, contents.best),
        last=_reached(contents, contents.newest),
    )
    newest = contents.newest.evaluation if contents.newest else None
    records = contents.records if keep_records else ()  # of many experiments they would fill the memory
    return _Entry(experiment=experiment, standing=standing, evaluation=newest, records=records)


def _updated_at(contents: Contents) -> str | None:
    times = [record.get("time") for record in contents.records[-1:]]
    times += [row.evaluation.created_at for row in contents.rows if row.evaluation is not None]
    return max((time for time in times if time), default=None)


def _reached(contents: Contents, row: CheckpointRow | None) -> Reached | None:
    if row is None or row.evaluation is None:
        return None
    return Reached(
        step=row.step,
        tokens_seen=row.tokens_seen,
        seconds=seconds_at(contents.records, row.step),
        evaluation=row.evaluation,
    )


def _group(part: Sequence[_Entry], first: Sequence[_Entry]) -> Group:
    apart = [] if part is first else [_line(first[0], part[0], _loss_differences(first[0], part[0]))]
    other_questions = [part[places[0]] for places in alike([entry.evaluation for entry in part], same_answers)[1:]]
    return Group(
        standings=tuple(entry.standing for entry in part),
        ranked_by=_ranking(part),
        held_out_of=_documents(part[0]),
        apart=tuple(apart),
        answer_obstacles=tuple(_line(part[0], other, _answer_differences(part[0], other)) for other in other_questions),
    )


def _ranking(part: Sequence[_Entry]) -> str:
    """Return the metric that ranks the entries: what all their trainings bring down; right answers where that differs.

    Post-training raises the validation loss on purpose: beside its base, only what both are for compares.
    """
    results = [entry.standing.best.evaluation for entry in part if entry.standing.best is not None]
    decides = {entry.experiment.config.deciding_loss for entry in part}
    if len(decides) == 1:
        return ranking_metric(results, *decides)
    asked_the_same = len(alike(results, same_answers)) == 1
    is_post = any(entry.experiment.config.training.is_post_training for entry in part)
    is_asked = all("correct" in result.metrics for result in results)
    return "correct" if is_post and asked_the_same and is_asked else "val_loss"


def _metric(standing: Standing, key: str) -> float:
    assert standing.best is not None  # only those with an evaluation come here
    return standing.best.metrics[key]


def _ranked(part: Sequence[_Entry]) -> list[_Entry]:
    """Return the entries with their ranks, best first; equal losses share one, and one alone has none."""
    if len(part) == 1:
        return [*part]
    metric = _ranking(part)

    def value(entry: _Entry) -> float:
        assert entry.standing.best is not None  # only those with an evaluation come here
        return rank_of(entry.standing.best.evaluation, metric)

    values = [value(entry) for entry in part]
    ordered = sorted(part, key=value)
    ranks = [1 + sum(other < value(entry) for other in values) for entry in ordered]
    return [
        replace(entry, standing=replace(entry.standing, rank=rank)) for entry, rank in zip(ordered, ranks, strict=True)
    ]


def _across_tokenizers(parts: Sequence[Sequence[_Entry]]) -> Iterator[tuple[Standing, ...]]:
    """Yield the experiments of several groups that bits per byte compare, those with the fewest first."""
    sets: list[list[Sequence[_Entry]]] = []
    for part in parts:
        fitting = next((each for each in sets if _have_same_text(each[0][0], part[0])), None)
        if fitting is None:
            sets.append([part])
        else:
            fitting.append(part)
    for each in sets:
        if len(each) > 1:
            standings = (entry.standing for part in each for entry in part)
            yield tuple(sorted(standings, key=lambda standing: _metric(standing, "val_bpb")))


def _have_same_text(one: _Entry, other: _Entry) -> bool:
    """Whether the held-out text is the same and measured alike, in tokens of different tokenizers."""
    assert one.evaluation is not None
    assert other.evaluation is not None
    settings = [_split_settings(entry) for entry in (one, other)]
    rest = [{key: value for key, value in each.items() if key != "tokenizer"} for each in settings]
    return (
        all(settings)
        and settings[0].get("tokenizer") != settings[1].get("tokenizer")
        and rest[0] == rest[1]
        and same_losses(one.evaluation, replace(other.evaluation, upstream=one.evaluation.upstream))
        and one.evaluation.upstream.get("english") == other.evaluation.upstream.get("english")
    )


def _line(one: _Entry, other: _Entry, differences: Sequence[str]) -> str:
    return f"{one.standing.name} and {other.standing.name}: {'; '.join(differences)}"


def _loss_differences(one: _Entry, other: _Entry) -> list[str]:
    assert one.evaluation is not None
    assert other.evaluation is not None
    return [*_split_differences(one, other), *_config_differences(one.evaluation, other.evaluation, of_answers=False)]


def _answer_differences(one: _Entry, other: _Entry) -> list[str]:
    assert one.evaluation is not None
    assert other.evaluation is not None
    return _config_differences(one.evaluation, other.evaluation, of_answers=True) or ["other questions"]


def _config_differences(one: EvaluationResult, other: EvaluationResult, *, of_answers: bool) -> list[str]:
    keys = [
        key for key in {**one.config, **other.config} if (key in OF_ANSWERS) == of_answers and key not in OF_SAMPLES
    ]
    return [
        f"{_place(key)} is {one.config.get(key, 'not known')} and {other.config.get(key, 'not known')}"
        for key in keys
        if one.config.get(key) != other.config.get(key)
    ]


def _place(key: str) -> str:
    return f"data.{key}" if key == "max_length" else f"evaluation.{key}"


def _documents(entry: _Entry) -> str:
    return entry.experiment.config.data.documents


def _split_differences(one: _Entry, other: _Entry) -> list[str]:
    """Return why the held-out tokens are not the same, by the manifests of the shards; empty if they are."""
    assert one.evaluation is not None
    assert other.evaluation is not None
    if one.evaluation.upstream == other.evaluation.upstream:
        return []
    settings = [_split_settings(entry) for entry in (one, other)]
    found = [
        f"another {_split_word(key)} ({_short(settings[0][key])} and {_short(settings[1][key])})"
        for key in _OF_SPLIT
        if all(key in values for values in settings) and settings[0][key] != settings[1][key]
    ]
    if one.evaluation.upstream.get("english") != other.evaluation.upstream.get("english"):
        documents = [_documents(entry) for entry in (one, other)]
        which = f"{documents[0]}, by other files or settings" if len({*documents}) == 1 else " and ".join(documents)
        found.append(f"validation split of other documents ({which})")
    elif settings[0].get("documents") != settings[1].get("documents"):
        found.append("other shares of the parts of the mix")
    return found or ["another validation split (the token shards have other fingerprints)"]


def _split_settings(entry: _Entry) -> Mapping[str, Any]:
    """Return what decided the split of the shards that the evaluation read; empty if they are gone."""
    from gpt_pipeline.data.tokens.choose import known_shards

    assert entry.evaluation is not None
    stage = known_shards(entry.experiment.data, entry.experiment.data_folder)
    same = stage is not None and stage.fingerprint == entry.evaluation.upstream.get("shards")
    return stage.manifest.facts.get("held_out", stage.manifest.config) if same and stage is not None else {}


def _short(value: Any) -> str:
    """Return a setting for a person: of a tokenizer, its kind and the first digits of its hash."""
    return re.sub(r"(?<=-[0-9a-f]{12})[0-9a-f]{52}$", "", str(value))


def _split_word(key: str) -> str:
    return {"validation_fraction": "share held out", "seed": "choice of held-out groups"}.get(key, key)
