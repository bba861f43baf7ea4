"""What the page shows of one experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpt_pipeline.evaluation.result import SHARES, EvaluationResult, find_evaluation, ranking_metric
from gpt_pipeline.evaluation.shares import Share
from gpt_pipeline.experiment.discover import ExperimentFile
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.losses import Losses
from gpt_pipeline.progress.status import PAGES_COMMAND, NextStep, Status
from gpt_pipeline.progress.training import TrainingProgress
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import ESTIMATE_COLOURS, Chart, Point, Series, settled, smoothed
from gpt_pipeline.report.metrics import METRICS
from gpt_pipeline.start_page.state import NewestRun, State, state_of
from gpt_pipeline.training.config import ESTIMATES, PASSES

_TEXTS = 3
_LABELS = {metric.key: metric.label for metric in METRICS}
_REMEMBERED = 256  # experiments whose newest texts are kept
_CHART_WIDTH, _CHART_HEIGHT = 460, 240  # small, so that its letters can be read on a narrow screen


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the page leads to."""

    assets: str
    runs: str
    sensors: str
    comparison: str
    """The asset in Dagster."""

    comparison_page: str
    job: Callable[[Experiment], str]
    """That makes an experiment's data and training."""

    mlflow_runs: Callable[[Sequence[str]], str]
    """Of the experiments that MLflow has under these numbers."""

    report: Callable[[str], str]
    """Of the experiment with that key."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to a held-out question."""

    question: str
    answer: str
    expected: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a model goes on with a held-out document."""

    beginning: str
    written: str
    original: str


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a model wrote in its newest evaluation."""

    answers: tuple[Answer, ...] = ()
    continuations: tuple[Continuation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link, and what to know of it."""

    text: str
    address: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One experiment."""

    key: str
    """Unique on the page, as `experiment.discover` names the file."""

    title: str
    file: Path
    state: State
    step: int | None = None
    max_steps: int | None = None
    facts: tuple[tuple[str, str], ...] = ()
    chart: Chart | None = None
    texts: Texts = Texts()  # frozen
    texts_step: int | None = None
    links: tuple[Link, ...] = ()
    mlflow_id: str | None = None
    next: NextStep | None = None
    """None where it would be to open this page."""


def broken_card(found: ExperimentFile, problem: str) -> Card:
    """Return the card of an experiment of which only a problem can be shown."""
    return Card(key=found.name, title=found.file.name, file=found.file, state=State(word="broken", detail=problem))


def card_of(
    experiment: Experiment,
    status: Status,
    *,
    run: NewestRun | None,
    losses: Losses,
    results: Sequence[EvaluationResult],
    mlflow_id: str | None,
    addresses: Addresses,
) -> Card:
    """Return the card of an experiment; `results` by step, `mlflow_id` as MLflow numbers the experiment."""
    training = status.training
    assert training is not None  # only of one that could be read
    newest = results[-1] if results else None
    return Card(
        key=experiment.name,
        title=status.name,
        file=status.file,
        state=state_of(status, run),
        step=None if training.state == "absent" else training.step,
        max_steps=training.max_steps,
        facts=tuple(_facts(status, training, newest)),
        chart=_chart(losses, results, experiment.config.deciding_loss),
        texts=Texts() if newest is None else _texts(newest.path.parent, newest.fingerprint, newest.created_at),
        texts_step=None if newest is None else newest.step,
        mlflow_id=mlflow_id,
        links=tuple(_links(experiment, status, run, mlflow_id, addresses)),
        next=None if status.next.command in (status.pages, PAGES_COMMAND) else status.next,
    )


def _facts(status: Status, training: TrainingProgress, newest: EvaluationResult | None) -> Iterator[tuple[str, str]]:
    if training.eta_seconds is not None:
        yield "time left", wording.duration(training.eta_seconds)
    if training.state == "running" and training.tokens_per_second is not None:
        yield "speed", f"{wording.count(training.tokens_per_second)} tokens/s"
    if training.reward is not None:
        yield "mean reward", wording.decimal(training.reward)
    elif training.train_loss is not None:
        yield "training loss", wording.decimal(training.train_loss)
    if training.pass_at_1 is not None and training.val_step is not None:
        yield "pass@1, held out", f"about {wording.decimal(training.pass_at_1)} at step {training.val_step:,}"
    if training.val_loss is not None and training.val_step is not None:
        yield "validation loss", f"about {wording.decimal(training.val_loss)} at step {training.val_step:,}"
    if status.best is not None and status.best.evaluated:
        best = status.best
        yield (
            "best checkpoint",
            f"{wording.at_step(best.step)}, {wording.words(best.metric)} {wording.decimal(best.value)}",
        )
    if newest is not None and newest.metrics.get("num_questions"):
        asked = round(newest.metrics["num_questions"])
        right = Share(successes=round(newest.metrics["correct"] * asked), total=asked)
        yield "right answers", f"{right.successes} of {right.total}, {right}, at step {newest.step:,}"
    if status.checkpoints:
        yield "checkpoints", f"{len(status.checkpoints)}, {wording.size(status.checkpoint_bytes)}"
    if status.evaluations_done or status.evaluations_pending:
        to_come = "in progress" if status.is_evaluating else "to do"
        more = f", {status.evaluations_pending} {to_come}" if status.evaluations_pending else ""
        yield "evaluations", f"{status.evaluations_done} done{more}"
    if training.damaged:
        yield "damaged", f"{', '.join(training.damaged)}; the one before is used"


def _chart(losses: Losses, results: Sequence[EvaluationResult], decides: str) -> Chart:
    known = [each for each in results if "val_loss" in each.metrics]
    if losses.rewards:
        return _reward_chart(losses, known, ranking_metric(known, decides))
    metric = ranking_metric(known, decides if decides in losses.estimates else "val_loss")
    series = (
        Series(name="train", points=smoothed(_points(losses.train)), colour=1),
        *(
            Series(name=word, points=_points(losses.estimates.get(key, {})), colour=colour)
            for (key, word), colour in zip(ESTIMATES.items(), ESTIMATE_COLOURS, strict=True)
        ),
        Series(name="checkpoints", points=_evaluated(known, metric), colour=3, look="dots"),
    )
    return settled(_small("Loss in nats per token against the step", "nats per token", series))


def _reward_chart(losses: Losses, results: Sequence[EvaluationResult], metric: str) -> Chart:
    """Return how often sampled answers are right; that of the checkpoints where an evaluation asks them too."""
    shares = _evaluated(results, metric) if metric in SHARES else ()
    series = (
        Series(name="mean reward", points=smoothed(_points(losses.rewards)), colour=1),
        Series(name="pass@1, held out", points=_points(losses.estimates.get(PASSES, {})), colour=2),
        Series(name=f"checkpoints, {_LABELS[metric]}", points=shares, colour=3, look="dots"),
    )
    return replace(_small("Right answers against the step", "share of answers", series), y_from_zero=True)


def _small(title: str, y_label: str, series: Sequence[Series]) -> Chart:
    return Chart(
        title=title,
        x_label="step",
        y_label=y_label,
        series=tuple(each for each in series if each.points),
        width=_CHART_WIDTH,
        height=_CHART_HEIGHT,
    )


def _evaluated(results: Sequence[EvaluationResult], metric: str) -> tuple[Point, ...]:
    return tuple((float(each.step), float(each.metrics[metric])) for each in results)


def _points(losses: Mapping[int, float]) -> tuple[Point, ...]:
    return tuple((float(step), loss) for step, loss in losses.items())


@lru_cache(maxsize=_REMEMBERED)
def _texts(folder: Path, fingerprint: str, _created_at: str) -> Texts:
    """Return the first texts of an evaluation: of the same questions or documents from checkpoint to checkpoint."""
    result = find_evaluation(folder, fingerprint)
    if result is None:
        return Texts()
    return Texts(
        answers=tuple(_answer(each) for each in result.answers[:_TEXTS]),
        continuations=tuple(_continuation(each) for each in result.continuations[:_TEXTS]),
    )


def _answer(value: Any) -> Answer:
    return Answer(
        question=str(value.get("question", "")),
        answer=str(value.get("answer") or value.get("generated") or "").strip(),
        expected=str(value.get("expected", "")),
        is_right=value.get("correct") is True,
    )


def _continuation(value: Any) -> Continuation:
    return Continuation(
        beginning=str(value.get("beginning", "")),
        written=str(value.get("generated", "")),
        original=str(value.get("original", "")),
    )


def _links(
    experiment: Experiment, status: Status, run: NewestRun | None, mlflow_id: str | None, addresses: Addresses
) -> Iterator[Link]:
    if status.report is not None:
        note = "does not show the newest results" if status.report_is_outdated else ""
        yield Link(text="report", address=addresses.report(experiment.name), note=note)
    yield Link(text="Dagster job", address=addresses.job(experiment))
    if run is not None:
        yield Link(text="newest run", address=run.page)
    if mlflow_id is not None:
        yield Link(text="MLflow runs", address=addresses.mlflow_runs([mlflow_id]))
