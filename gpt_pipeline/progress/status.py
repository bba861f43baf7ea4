"""How far an experiment is, and the command that comes next. Only folders are read; torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    all_checkpoints,
    best_checkpoint,
)
from gpt_pipeline.errors import NewerFileError, UserError
from gpt_pipeline.evaluation.evaluate import evaluation_is_under_way
from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    alike_newest,
    losses_key,
    rank_of,
    ranking_metric,
    summarize_evaluations,
)
from gpt_pipeline.experiment.discover import ExperimentFile, find_experiments
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.training import start_in_words
from gpt_pipeline.mirror.order import state_for
from gpt_pipeline.progress.at_work import RunAtWork, pages_addresses, runs_at_work
from gpt_pipeline.progress.evaluations import WantedEvaluation, passed_over, wanted_evaluations
from gpt_pipeline.progress.failures import Failure, last_failure
from gpt_pipeline.progress.losses import losses_of
from gpt_pipeline.progress.report import report_is_outdated
from gpt_pipeline.progress.stages import SeenParts, StageProgress, data_progress
from gpt_pipeline.progress.tracking import is_log_pending
from gpt_pipeline.progress.training import TrainingProgress, asks_to_start_again, experiment_training
from gpt_pipeline.project import Project
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.names import as_typed
from gpt_pipeline.training.decision import refuse_newer
from gpt_pipeline.training.finished import training_state

PAGES_COMMAND = "gpt-pipeline ui"
"""What to do where there is nothing to do but to watch."""


@dataclass(frozen=True, kw_only=True)
class CheckpointStatus:
    """A checkpoint on disk."""

    file: str
    step: int
    size: int
    """Bytes."""

    val_loss: float | None
    """The trainer's estimate at this very step, nats per token; None where it made none there."""

    evaluated_loss: float | None
    """As an evaluation measured it on the held-out documents, nats per token."""

    ranked_by: str = "val_loss"
    """The metric by which the experiment's best checkpoint is chosen."""

    ranked_value: float | None = None
    """Of that metric, as the same evaluation measured it."""

    evaluation: str | None
    """`done`, `missing` or `outdated`; None where none is wanted, as for the best model during training."""

    @property
    def lacks_mlflow_alone(self) -> bool:
        """Whether its evaluation is finished, and counts as missing because MLflow lacks its run or its alias."""
        return self.evaluation == "missing" and self.evaluated_loss is not None


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best checkpoint so far."""

    step: int
    val_loss: float
    """Nats per token."""

    metric: str
    """By which it is the best, such as `val_loss`."""

    value: float

    evaluated: bool
    """Whether an evaluation measured it; otherwise it is the trainer's own estimate."""

    measured_on: str = ""
    """The same for values that compare: what stands for the held-out tokens and how they were measured."""


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What to do now."""

    command: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far one experiment is."""

    file: Path
    name: str
    """`experiment_name`; the file's own name where it cannot be read."""

    folder: Path | None
    problem: str | None
    """What is wrong with the experiment file, or what only a newer version can read; the rest is empty then."""

    family: str | None = None
    """The set of experiments that it belongs to."""

    failure: Failure | None = None
    """What its last run failed of, if it did."""

    stages: tuple[StageProgress, ...] = ()
    start: str = ""
    """The weights that training begins with, or why they are not there; empty: random ones."""

    start_is_ready: bool = True
    start_can_be_made: bool = True
    """Whether running the experiment gives these weights, if they are not there."""

    training: TrainingProgress | None = None
    checkpoints: tuple[CheckpointStatus, ...] = ()
    checkpoint_bytes: int = 0
    """On disk; a best model that is a link to another checkpoint counts once."""

    uncounted: Mapping[str, str] = field(default_factory=dict)
    """Checkpoints that somebody put into the folder and that do not count, by name, and why."""

    evaluations_done: int = 0
    """Finished evaluations on disk, including those of checkpoints that were deleted since."""

    evaluations_pending: int = 0
    """Checkpoints without an evaluation, or with one by other questions, settings or code."""

    is_evaluating: bool = False
    """Whether evaluations are pending and one is being made, or begins to be, by whichever process."""

    tracking_is_pending: bool = False
    """Whether MLflow lacks something of the training."""

    best: Best | None = None
    report: Path | None = None
    report_is_outdated: bool = False
    mirror: str = ""
    """Where the copies are, and how far they are; empty: there is no mirror."""

    at_work: RunAtWork | None = None
    """The run that makes data or training now, or waits for its place."""

    pages: str | None = None
    """Where the project's web pages are open."""

    next: NextStep


def statuses(files: Sequence[Path], *, experiments: Path) -> list[Status]:
    """Return the status of each of `files`, or of all experiment files in the folder `experiments` if none is given.

    Raises:
        UserError: one of `files` is not an experiment, or the folder does not exist.
    """
    seen: SeenParts = {}
    if files:
        return [experiment_status(load_experiment(file), seen) for file in files]
    return [status_of(found, seen) for found in find_experiments(experiments)]


def status_of(found: ExperimentFile, seen: SeenParts) -> Status:
    """Return the status of a file that may be broken; `seen` is that of `data_progress`."""
    if found.experiment is None:
        return _broken(found.file, found.problem or "")
    try:
        return experiment_status(found.experiment, seen)
    except (UserError, OSError) as error:  # one that cannot be read must not hide the others
        return _broken(found.file, str(error))


def _broken(file: Path, problem: str) -> Status:
    command = NextStep(command=f"gpt-pipeline validate {_shown(file)}", why="correct the experiment file")
    return Status(file=file, name=file.name, folder=None, problem=problem, next=command)


def experiment_status(experiment: Experiment, seen: SeenParts | None = None) -> Status:
    """Return how far the experiment is, by what lies in its folders; `seen` is that of `data_progress`.

    Raises:
        ConfigError: the base folder is not a path on this machine.
    """
    folder = experiment.folder
    try:
        refuse_newer(folder)
        return _readable_status(experiment, seen)
    except NewerFileError as error:
        step = NextStep(command="update gpt_pipeline", why="a newer version wrote what only it can read")
        return Status(
            file=experiment.file, name=experiment.display_name, folder=folder.root, problem=str(error), next=step
        )


def _readable_status(experiment: Experiment, seen: SeenParts | None) -> Status:
    folder, project = experiment.folder, Project.of_experiments(experiment.file.parent)
    stages, runs = data_progress(experiment, seen), runs_at_work(project, experiment.name)
    maker = _maker(runs)
    wanted = wanted_evaluations(experiment)
    pending = sum(each.state != "done" for each in wanted)
    results = summarize_evaluations(folder.evaluations)
    decides = experiment.config.deciding_loss
    checkpoints = _checkpoints(folder.checkpoints)
    start = start_in_words(experiment)
    status = Status(
        file=experiment.file,
        name=experiment.display_name,
        folder=folder.root,
        problem=None,
        family=experiment.config.family,
        failure=None if maker is not None else last_failure(project, experiment.name),  # the last run is at work
        stages=stages,
        start=start.text,
        start_is_ready=start.is_ready,
        start_can_be_made=start.can_be_made,
        training=experiment_training(experiment),
        checkpoints=_statuses_of_checkpoints(
            checkpoints, wanted, results, losses_of(folder.metrics).validation, decides=decides
        ),
        checkpoint_bytes=_bytes_on_disk(folder.checkpoints),
        uncounted=passed_over(experiment),
        evaluations_done=len(results),
        evaluations_pending=pending,
        is_evaluating=pending > 0 and (_evaluates(runs) or evaluation_is_under_way(folder.evaluations)),
        tracking_is_pending=is_log_pending(experiment),
        best=_best(results, best_checkpoint(folder.checkpoints), decides),
        report=folder.report if folder.report.is_file() else None,
        report_is_outdated=stages[-1].state == "finished" and report_is_outdated(experiment),
        mirror=_mirror(experiment),
        at_work=maker,
        pages=next(iter(pages_addresses(project)), None),
        next=NextStep(command="", why=""),
    )
    step = _import_step(experiment, checkpoints) or _demanded_step(experiment, status) or next_step(status)
    return replace(status, next=step)


def _mirror(experiment: Experiment) -> str:
    url = experiment.config.storage.mirror
    if url is None:
        return ""
    state = state_for(experiment.folder, url)
    return f"{url}: {'nothing sent yet' if state is None else state.in_words}"


def _maker(runs: Sequence[RunAtWork]) -> RunAtWork | None:
    """Return the run that makes data or training."""
    return next((run for run in runs if run.job.startswith(("run_", "data_"))), None)


def _evaluates(runs: Sequence[RunAtWork]) -> bool:
    """Whether one of the runs evaluates: it loads what it needs before it holds the lock of its evaluation."""
    return any(run.job.startswith("evaluate_") for run in runs)


def _checkpoints(folder: Path) -> list[CheckpointInfo]:
    """Return the checkpoints by step; the best model only where it has no file of its own step."""
    found = {info.step: info for info in reversed(all_checkpoints(folder))}
    return [found[step] for step in sorted(found)]


def _statuses_of_checkpoints(
    checkpoints: Sequence[CheckpointInfo],
    wanted: Sequence[WantedEvaluation],
    results: Sequence[EvaluationResult],
    estimates: Mapping[int, float],
    *,
    decides: str,
) -> tuple[CheckpointStatus, ...]:
    states = {each.checkpoint.step: each.state for each in wanted}
    by_time = sorted(results, key=lambda result: result.created_at)
    found = {each.checkpoint["weights_sha256"]: each.metrics for each in by_time}  # of the newest
    metric = ranking_metric(alike_newest(results), decides)
    return tuple(
        CheckpointStatus(
            file=info.path.name,
            step=info.step,
            size=info.size,
            val_loss=estimates.get(info.step),
            evaluated_loss=found.get(info.weights_sha256, {}).get("val_loss"),
            ranked_by=metric,
            ranked_value=found.get(info.weights_sha256, {}).get(metric),
            evaluation=states.get(info.step),
        )
        for info in checkpoints
    )


def _bytes_on_disk(folder: Path) -> int:
    stats = [path.stat() for path in folder.glob("*.pt*") if path.is_file()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def _best(results: Sequence[EvaluationResult], model: CheckpointInfo | None, decides: str) -> Best | None:
    """Return the best of the evaluations that compare with the newest; before there is one, by the estimates."""
    if measured := alike_newest(results):
        metric = ranking_metric(measured, decides)
        best = min(measured, key=lambda result: (rank_of(result, metric), result.step))
        return Best(
            step=best.step,
            val_loss=float(best.metrics["val_loss"]),
            metric=metric,
            value=float(best.metrics[metric]),
            evaluated=True,
            measured_on=losses_key(best),
        )
    loss_of_model = None if model is None else model.metrics.get("val_loss")
    if model is None or loss_of_model is None:
        return None
    return Best(step=model.step, val_loss=loss_of_model, metric="val_loss", value=loss_of_model, evaluated=False)


def _import_step(experiment: Experiment, checkpoints: Sequence[CheckpointInfo]) -> NextStep | None:
    """Return what to do where the newest checkpoint is an imported one that the file does not name yet."""
    newest = checkpoints[-1] if checkpoints else None
    if newest is None or newest.step or newest.fingerprint or experiment.config.storage.checkpoint_to_resume:
        return None
    if training_state(experiment.folder, None) == "running":
        return None
    return NextStep(
        command=f"set storage.checkpoint_to_resume: {newest.path.name} in {_shown(experiment.file)}",
        why="it was imported; without this, training would start from new weights",
    )


def _demanded_step(experiment: Experiment, status: Status) -> NextStep | None:
    """Return what to do where the file asks a finished training to start again, or to go on from a checkpoint."""
    is_finished = status.training is not None and status.training.state == "finished"
    if not is_finished or not asks_to_start_again(experiment):
        return None
    if status.at_work is not None:
        return _watch(status, status.at_work.in_words)
    demand = f"storage.checkpoint_to_resume: {experiment.config.storage.checkpoint_to_resume}"
    return NextStep(
        command=f"gpt-pipeline plan {_shown(status.file)}",
        why=f"{demand} asks to train again: see what moves, then run",
    )


def next_step(status: Status) -> NextStep:
    """Return the command that takes the experiment further, or uses the finished model."""
    training, pending, name = status.training, status.evaluations_pending, _shown(status.file)
    assert training is not None  # only of a file that could be read
    if training.state == "running":
        return _watch(status, "watch it train; Ctrl+C where it runs stops it with a checkpoint")
    if training.state != "finished" and status.at_work is not None:
        return _watch(status, status.at_work.in_words)
    if training.state != "finished" and training.job is not None:
        return NextStep(command=f"gpt-pipeline run {name}", why=f"follows {training.job}")
    if not status.start_is_ready:
        make = NextStep(command=f"gpt-pipeline run {name}", why=f"{status.start}: that comes first")
        correct = NextStep(command=f"gpt-pipeline validate {name}", why="correct start_from: its weights are not there")
        return make if status.start_can_be_made else correct
    if training.state != "finished":
        return _before_its_end(name, status.stages, training)
    return _after_training(name, status, pending)


def _watch(status: Status, why: str) -> NextStep:
    return NextStep(command=status.pages or PAGES_COMMAND, why=why)


def _after_training(name: str, status: Status, pending: int) -> NextStep:
    if status.is_evaluating:
        what = f"{pending} evaluation{'s are' if pending > 1 else ' is'} in progress: watch, or wait for the end"
        return _watch(status, what)
    if any(stage.state != "finished" for stage in status.stages):
        return NextStep(command=f"gpt-pipeline run {name}", why="makes the data again that is missing or damaged")
    if pending:
        what = f"{pending} checkpoint{'s need' if pending > 1 else ' needs'} an evaluation"
        if sum(each.lacks_mlflow_alone for each in status.checkpoints) == pending:
            what = f"MLflow does not have all of {counted(pending, 'evaluation')} yet"
        return NextStep(command=f"gpt-pipeline evaluate {name}", why=what)
    if status.report_is_outdated:
        return NextStep(command=f"gpt-pipeline evaluate {name}", why="the report does not show the newest results")
    if status.tracking_is_pending:
        return NextStep(command=f"gpt-pipeline run {name}", why="MLflow does not have all of the training yet")
    return NextStep(
        command=f'gpt-pipeline generate {name} --prompt "..."', why="everything is done: try the model, or compare it"
    )


def _before_its_end(name: str, stages: Sequence[StageProgress], training: TrainingProgress) -> NextStep:
    plan, run = f"gpt-pipeline plan {name}", f"gpt-pipeline run {name}"
    if training.of_other_settings:
        return NextStep(
            command=plan, why="the file, its data or its start has changed since: see what can be used again"
        )
    if training.step and stages[-1].state == "finished":
        return NextStep(command=run, why=f"continues training after step {training.step:,}")
    if training.state == "absent" and all(stage.state == "absent" for stage in stages):
        return NextStep(command=plan, why="nothing is made yet: see time, memory and disk, then run")
    return NextStep(command=run, why="makes what is missing and continues")


def _shown(file: Path) -> str:
    return as_typed(file, Path.cwd())
