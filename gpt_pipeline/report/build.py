"""The report: one self-contained HTML file that opens with a double click and needs no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_pipeline import __version__
from gpt_pipeline.evaluation.result import SHARES
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.experiment.differences import Difference
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import (
    Chart,
    Point,
    Series,
    draw_standalone,
    loss_chart,
    points_of,
    reward_chart,
    settled,
    small_chart,
    smooth_series,
)
from gpt_pipeline.report.contents import CheckpointRow, Contents, read_contents
from gpt_pipeline.report.cost import Record, seconds_at
from gpt_pipeline.report.figures import Figure, figures_of
from gpt_pipeline.report.metrics import METRICS, measured
from gpt_pipeline.report.page import page_environment
from gpt_pipeline.report.tables import kind_table
from gpt_pipeline.storage.atomic import write_text
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.names import slug

_TEXTS_OPEN = 3  # so that the loss is not far below; the others unfold


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """One of the large numbers at the top."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class OtherExperiment:
    """An experiment of the same project that this one is compared with."""

    display_name: str
    differences: Sequence[Difference]
    """Values of this experiment, then of the other."""


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """How far the training is, in words."""

    word: str
    """`finished`, `running`, `stopped`, `died` or `not started`."""

    detail: str


def build_report(
    folder: ExperimentFolder,
    *,
    title: str,
    status: TrainingStatus,
    config: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    command: str | None = None,
    other: OtherExperiment | None = None,
) -> Path:
    """Write the report of the experiment in `folder`; return its path.

    `config` is the experiment's configuration by section, `facts` those of the data stages by stage, `command` what
    makes the same again, `other` an experiment to compare it with. Everything else is read from the folder; the page
    says what does not exist yet.
    """
    contents = read_contents(folder)
    environment = page_environment()
    environment.tests["counts"] = _is_counts
    page = environment.get_template("report.html.j2").render(
        title=title,
        status=status,
        contents=contents,
        texts_open=_TEXTS_OPEN,
        key_figures=_key_figures(contents),
        reward_figures=_reward_figures(contents),
        loss_figures=_loss_figures(contents),
        progress_figures=_progress_figures(contents),
        answer_figures=_answer_figures(contents),
        metrics=measured(row.metrics for row in contents.rows),
        leaders=_leaders(contents),
        config=config,
        other=other,
        cost=contents.cost,
        exercises=kind_table(contents.evaluated),
        facts=facts,
        command=command,
        versions=_versions(contents),
        fingerprints=_fingerprints(contents),
        generated_at=utc_now(),
        program_version=__version__,
    )
    write_text(folder.report, page)
    return folder.report


def report_charts(folder: ExperimentFolder) -> dict[str, str]:
    """Return the report's charts as SVG documents that stand alone, by a name for a file."""
    contents = read_contents(folder)
    figures = {f"loss {each.name}": each for each in _loss_figures(contents)}
    others = (*_reward_figures(contents), *_progress_figures(contents), *_answer_figures(contents))
    figures |= {each.name: each for each in others}
    return {slug(name): draw_standalone(each.chart) for name, each in figures.items()}


def _is_counts(value: Any) -> bool:
    """Whether a fact is a table of numbers by name."""
    return isinstance(value, Mapping) and all(isinstance(each, int | float) for each in value.values())


def _key_figures(contents: Contents) -> list[KeyFigure]:
    newest = contents.last("train") or {}
    figures = [*_quality_figures(contents)]
    figures.append(
        KeyFigure(
            label="Tokens seen",
            value=wording.count(newest.get("tokens_seen")),
            note=f"in {wording.duration(newest.get('seconds'))} of training" if newest else "no training yet",
        )
    )
    speeds = [y for _, y in points_of(contents.records, "train", "step", "tokens_per_second")]
    figures.append(
        KeyFigure(
            label="Speed",
            value=wording.count(sorted(speeds)[len(speeds) // 2] if speeds else None),
            note="tokens per second, median",
        )
    )
    return figures


def _quality_figures(contents: Contents) -> list[KeyFigure]:
    best, newest = contents.best, contents.newest
    if best is None or newest is None:
        return [_training_loss_figure(contents)]
    metric = contents.ranked_by
    others = [] if metric == "val_loss" else [f"validation loss {wording.decimal(best.metrics['val_loss'])}"]
    details = [wording.at_step(best.step), *others, f"{wording.decimal(best.metrics['val_bpb'], 2)} bits per byte"]
    ranking = next(each for each in METRICS if each.key == metric)
    value = wording.percent(best.metrics[metric]) if ranking.share else wording.decimal(best.metrics[metric])
    figures = [KeyFigure(label=f"Best {wording.of_metric(metric)}", value=value, note=" · ".join(details))]
    for label, key in (("Right answers", "correct"), ("Well-formed", "well_formed")):
        share = share_of(newest.evaluation.answers, key) if newest.evaluation is not None else None
        if share is not None:
            low, high = (f"{100 * limit:.0f}" for limit in share.interval)
            asked = f"{share.successes} of {share.total} at step {newest.step:,} · 95 % interval {low} to {high} %"
            figures.append(KeyFigure(label=label, value=f"{100 * share.value:.0f} %", note=asked))
    return figures


def _training_loss_figure(contents: Contents) -> KeyFigure:
    validation = contents.last("validation")
    if validation is not None:
        note = f"while training, at step {validation['step']:,}; no checkpoint is evaluated yet"
        return KeyFigure(label="Validation loss", value=wording.decimal(validation.get("val_loss")), note=note)
    return KeyFigure(label="Validation loss", value=wording.NOTHING, note="not measured yet")


def _loss_figures(contents: Contents) -> list[Figure]:
    """Return the loss against steps, tokens and time, and whole where the others leave out its steep beginning."""
    records = contents.records
    at_steps = _losses_at(contents, lambda row: row.step)
    at_tokens = _losses_at(contents, lambda row: row.tokens_seen)
    at_times = _losses_at(contents, lambda row: seconds_at(records, row.step))
    chart = partial(loss_chart, records, vocab_size=contents.vocab_size)
    by_step = chart(x_key="step", x_label="step", evaluations=at_steps)
    by_tokens = chart(x_key="tokens_seen", x_label="training tokens", evaluations=at_tokens)
    by_time = chart(x_key="seconds", x_label="training time", x_is_time=True, evaluations=at_times)
    charts = [("by steps", settled(by_step)), ("by tokens", settled(by_tokens)), ("by time", settled(by_time))]
    if settled(by_step) != by_step:
        charts.append(("with the steep beginning", by_step))
    return figures_of(charts)


def _losses_at(contents: Contents, place: Callable[[CheckpointRow], float | None]) -> list[Point]:
    """Return the losses that rank the evaluations against what `place` gives, where it gives something."""
    metric = "val_loss" if contents.ranked_by in SHARES else contents.ranked_by
    places = [(place(row), row.metrics[metric]) for row in contents.evaluated]
    return [(float(x), loss) for x, loss in places if x is not None]


def _progress_figures(contents: Contents) -> list[Figure]:
    wanted = (
        ("Learning rate", "learning_rate", "learning rate", 3),
        ("Speed", "tokens_per_second", "tokens per second", 1),
        ("Memory", "memory_gb", "GB, highest so far", 5),
        ("Gradient norm", "gradient_norm", "norm before clipping", 4),
    )
    charts = []
    for name, key, label, colour in wanted:
        curve = smooth_series(name, points_of(contents.records, "train", "step", key), colour=colour)
        charts.append((name, small_chart(name, label, (curve,))))
    return figures_of(charts)


def _reward_figures(contents: Contents) -> list[Figure]:
    """Return what a training on rewards goes by; nothing of another one."""
    chart = replace(reward_chart(contents.records), width=Chart.width, height=Chart.height)
    return figures_of([("rewards", chart)])


def _answer_figures(contents: Contents) -> list[Figure]:
    """Return the shares of well-formed and right answers against the step; at least two checkpoints are needed."""
    wanted = (("well-formed", "well_formed", 3), ("right", "correct", 2), ("word F1", "token_f1", 1))
    curves = [
        Series(name=name, points=_points_by_step(contents.answered, key), colour=colour) for name, key, colour in wanted
    ]
    series = tuple(each for each in curves if len(each.points) > 1)
    return figures_of([("Answers", small_chart("Answers to held-out questions", "share of answers", series))])


def _points_by_step(rows: Sequence[CheckpointRow], key: str) -> tuple[Point, ...]:
    return tuple((float(row.step), row.metrics[key]) for row in rows if key in row.metrics)


def _leaders(contents: Contents) -> dict[str, frozenset[int]]:
    """Return, by metric, the step of the best checkpoint and of those within noise of it."""
    found = {}
    for metric in METRICS:
        places = metric.leaders([row.result_of(metric) for row in contents.rows])
        found[metric.key] = frozenset(contents.rows[place].step for place in places)
    return found


def _versions(contents: Contents) -> dict[str, str]:
    """Return what the training and the newest evaluation ran with and on; of an unfinished one what it said first."""
    training: Record = (contents.training or {}).get("versions") or {}
    begun = [record for record in contents.records if record.get("event") in ("started", "resumed")]
    if begun and "device" not in training:  # not finished, or by a version that did not record it
        training = {**training, "begun": begun[-1].get("message", "")}
    versions = {f"training · {name}": str(version) for name, version in training.items()}
    newest = contents.newest.evaluation if contents.newest else None
    if newest is not None:
        versions |= {f"evaluation · {name}": version for name, version in newest.versions.items()}
        versions["evaluation · device"] = newest.device
    return versions


def _fingerprints(contents: Contents) -> dict[str, str]:
    found = {"training": (contents.training or contents.job or {}).get("fingerprint")}
    newest = contents.newest.evaluation if contents.newest else None
    if newest is not None:
        found["training"] = found["training"] or newest.checkpoint.get("training_fingerprint")
        found |= {"token shards": newest.upstream.get("shards"), "documents": newest.upstream.get("english")}
    return {name: value for name, value in found.items() if value}
