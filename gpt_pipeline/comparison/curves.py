"""The curves of several experiments on the same axes: losses, and beside them speed, memory and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import (
    CURVES,
    Chart,
    Series,
    curve_style,
    points_of,
    settled,
    small_chart,
    smooth_series,
)
from gpt_pipeline.report.cost import Record
from gpt_pipeline.report.figures import Figure, figures_of
from gpt_pipeline.training.config import PASSES
from gpt_pipeline.training.metrics import read_metrics

Records = Mapping[str, Sequence[Record]]
"""Of each experiment by its name, the best first: one has the same colour and dashes in each chart."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    key: str
    label: str
    is_time: bool = False


_STEPS = _Axis(key="step", label="step")
_TOKENS = _Axis(key="tokens_seen", label="training tokens")
_TIME = _Axis(key="seconds", label="training time", is_time=True)


def read_records(experiments: Sequence[Experiment], *, known: Records | None = None, most: int = CURVES) -> Records:
    """Return the metrics of the first experiments that have validation losses; those that are `known` are not read."""
    found: dict[str, Sequence[Record]] = {}
    for experiment in experiments:
        if len(found) == most:
            break
        records = (known or {}).get(experiment.name) or read_metrics(experiment.folder.metrics)
        if points_of(records, "validation", _TOKENS.key, "val_loss"):
            found[experiment.name] = records
    return found


def losses_chart(records: Records, *, metric: str = "val_loss", axis: _Axis = _TOKENS) -> Chart:
    """Return a loss that the trainers estimated (of `training.config.ESTIMATES`) against training tokens."""
    curves = [
        Series(name=name, points=points_of(own, "validation", axis.key, metric), **curve_style(number))
        for number, (name, own) in enumerate(records.items())
    ]
    return _loss_chart(wording.of_metric(metric), curves, axis)


def loss_figures(records: Records, metric: str) -> list[Figure]:
    """Return the estimates of a loss along three axes, the training losses, and rewards: first where all go by them."""
    word = wording.of_metric(metric)
    places = (("by tokens", _TOKENS), ("by steps", _STEPS), ("by time", _TIME))
    estimates = [(f"{word} {place}", losses_chart(records, metric=metric, axis=axis)) for place, axis in places]
    # The loss that moves rewarded answers is no measure of a model.
    on_text = {name: [each for each in own if each.get("reward") is None] for name, own in records.items()}
    training = _loss_chart("training loss", _smooth(on_text, "train_loss"), _TOKENS)
    losses, rewards = [*estimates, ("training loss by tokens", training)], _reward_charts(records)
    return figures_of([*rewards, *losses] if _go_by_rewards(records) else [*losses, *rewards])


def main_chart(records: Records) -> Chart:
    """Return the one chart that tells most: right answers where all go by rewards, else validation losses."""
    return _passes_chart(records) if _go_by_rewards(records) else losses_chart(records)


def _go_by_rewards(records: Records) -> bool:
    """Whether all of the experiments were asked what is rewarded."""
    return bool(records) and len(_passes_chart(records).series) == len(records)


def _passes_chart(records: Records) -> Chart:
    curves = [
        Series(name=name, points=points_of(own, "validation", _STEPS.key, PASSES), **curve_style(number))
        for number, (name, own) in enumerate(records.items())
    ]
    return _share_chart("Held-out pass@1 against step", "share of answers", curves)


def _reward_charts(records: Records) -> list[tuple[str, Chart]]:
    """Return how often sampled answers are right, to held-out questions and in training; empty without rewards."""
    sampled = _smooth(records, "reward", _STEPS)
    in_training = _share_chart("Mean reward against step", "mean reward", sampled)
    return [("held-out pass@1 by steps", _passes_chart(records)), ("mean reward by steps", in_training)]


def figures_beside(records: Records) -> list[Figure]:
    """Return speed, memory and learning rate along the axis of the losses."""
    wanted = (
        ("Speed", "tokens_per_second", "tokens per second"),
        ("Memory", "memory_gb", "GB, highest so far"),
        ("Learning rate", "learning_rate", "learning rate"),
    )
    return figures_of(
        [
            (name, small_chart(name, label, _with_points(_smooth(records, key)), x_label=_TOKENS.label))
            for name, key, label in wanted
        ]
    )


def _smooth(records: Records, key: str, axis: _Axis = _TOKENS) -> list[Series]:
    return [
        smooth_series(name, points_of(own, "train", axis.key, key), **curve_style(number))
        for number, (name, own) in enumerate(records.items())
    ]


def _loss_chart(word: str, curves: Sequence[Series], axis: _Axis) -> Chart:
    title = f"{word.capitalize()} in nats per token against {axis.label}"
    return settled(_chart(title, "nats per token", curves, axis))


def _share_chart(title: str, y_label: str, curves: Sequence[Series]) -> Chart:
    return replace(_chart(title, y_label, curves, _STEPS), y_from_zero=True)


def _chart(title: str, y_label: str, curves: Sequence[Series], axis: _Axis) -> Chart:
    series = _with_points(curves)
    return Chart(title=title, x_label=axis.label, y_label=y_label, series=series, x_is_time=axis.is_time)


def _with_points(curves: Sequence[Series]) -> tuple[Series, ...]:
    return tuple(each for each in curves if each.points)
