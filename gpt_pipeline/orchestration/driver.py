"""One experiment from the command line, through the same Dagster definitions and history that the UI shows.

Dagster alone cannot do this in one run: a partitioned evaluation beside an unpartitioned training needs the
checkpoints' names before they exist. So the run of data and training is accompanied by a second process that
evaluates each checkpoint while the next one is trained; the report is a run of its own at the end.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import IJob, InMemoryJob
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.execute_in_process import merge_run_tags
from dagster._core.origin import JobPythonOrigin
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.utils import make_new_run_id

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.tokenizer_stage import fetch_tokenizer
from gpt_pipeline.errors import StoppedError, UserError
from gpt_pipeline.experiment.discover import find_experiments, load_alone
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.mirroring import send_to_mirror
from gpt_pipeline.experiment.resume import require_checkpoint_to_resume
from gpt_pipeline.experiment.start_from import StartNotReadyError
from gpt_pipeline.experiment.training import base_experiment, find_start
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.notify.addresses import find_addresses
from gpt_pipeline.notify.message import Ending, broken_message, message_of
from gpt_pipeline.notify.send import tell
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.dead_runs import close_dead_runs, process_tag
from gpt_pipeline.orchestration.failures import failure_text, is_stop, stop_text
from gpt_pipeline.orchestration.history import explained_history, open_instance, remote_origin
from gpt_pipeline.orchestration.pool_wait import wait_in_pools
from gpt_pipeline.orchestration.rebuild import reconstructable_job
from gpt_pipeline.orchestration.stages import finished_shards
from gpt_pipeline.orchestration.stoppable import NEVER, stoppable
from gpt_pipeline.orchestration.termination import heed_termination
from gpt_pipeline.orchestration.trainer_launch import PROGRESS_DESCRIPTOR
from gpt_pipeline.progress.evaluations import (
    WantedEvaluation,
    passed_over,
    pending_evaluations,
    prune_at_rest,
    wanted_evaluations,
)
from gpt_pipeline.progress.failures import forget_failure, note_failure
from gpt_pipeline.progress.report import report_is_outdated
from gpt_pipeline.progress.several import End, Ended
from gpt_pipeline.progress.stages import data_progress
from gpt_pipeline.progress.tracking import forget_lost_runs, is_log_pending
from gpt_pipeline.progress.training import asks_to_start_again, finished_training
from gpt_pipeline.project import Project
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.alive import show_life
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.storage.process_group import own_group

_logger = logging.getLogger(__name__)
_FOLLOWER = "gpt_pipeline.orchestration.follower"
LAST_CALL, STOP = b"\0", b"s"  # orders to the follower; any other byte than the first is a signal's number, and a stop
_QUIET_SECONDS = 2.0  # a wait that is not worth a word
_MIRROR_SECONDS = 30.0  # for a mirror to say what it lacks, where nothing else is to do
_DOCUMENTS_PER_FILE = 120_000  # of SYNTH, about


@dataclass(frozen=True, kw_only=True)
class Session:
    """A project's definitions and history, opened to run one experiment."""

    project: Project
    experiment: Experiment
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    @classmethod
    @contextmanager
    def open(
        cls,
        project: Project,
        experiment: Experiment,
        *,
        say: Say,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Session]:
        """Open the session for the block; the process works in the project's folder from here on.

        A run that has to wait for others tells `say` for whom, and ends once `stopped` returns true, as at a signal.
        """
        project.enter()
        with explained_history(project), open_instance(project) as instance:
            wait_in_pools(instance, project, say=say, stopped=stopped)
            definitions = build_definitions(project)
            yield cls(project=project, experiment=experiment, definitions=definitions, instance=instance)

    def execute(
        self,
        job: str,
        *,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Execute a job in this process; `options` are the assets' run options by the asset's last name.

        Raises:
            UserError: a step failed; in the step's own words where it has any.
            StoppedError: the run was interrupted.
        """
        ops = {f"{self.experiment.name}__{asset}": {"config": config} for asset, config in (options or {}).items()}
        definition = self.definitions.resolve_job_def(job)
        ephemeral = definition.as_ephemeral_job(resource_defs={}, input_values={})
        own = merge_run_tags(definition, partition, tags, None, self.instance, None)
        here = InMemoryJob(ephemeral.with_executor_def(stoppable(dg.in_process_executor)))
        self._execute(here, run_config={"ops": ops}, tags=own)

    def execute_in_workers(self, job: str) -> None:
        """Execute a job with a process for each step, as many at a time as there are processors; raises as `execute`.

        What the steps leave lies on disk and in the history; this process keeps nothing of it.
        """
        rebuilt = reconstructable_job(job, self.project)
        self._execute(rebuilt, run_config={}, tags=rebuilt.get_definition().run_tags, code=rebuilt.get_python_origin())

    def _execute(
        self,
        job: IJob,
        *,
        run_config: Mapping[str, Any],
        tags: Mapping[str, str],
        code: JobPythonOrigin | None = None,
    ) -> None:
        definition, run_id = job.get_definition(), make_new_run_id()
        try:
            with self._at_work(run_id):
                run = self.instance.create_run_for_job(
                    definition,
                    run_id=run_id,
                    run_config={"loggers": {"plain": {"config": {}}}, **run_config},
                    tags={**tags, **process_tag(run_id), MAX_RETRIES_TAG: NEVER, keys.COMMAND_TAG: "yes"},
                    remote_job_origin=remote_origin(definition.name),
                    job_code_origin=code,
                )
                events = list(execute_run_iterator(job, run, self.instance))
        except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
            raise StoppedError from None
        ended = self.instance.get_run_by_id(run_id)
        if ended is None or not ended.is_success:
            raise _problem(events)

    @contextmanager
    def _at_work(self, run_id: str) -> Iterator[None]:
        """Show that this process is alive while it executes a run, and let Dagster's pages stop it.

        Afterwards SIGTERM does what it did. Dagster leaves it as SIGINT was: ignored, where a shell started the
        command in the background.
        """
        here = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with show_life(self.experiment.folder.base, ProcessId.here()), heed_termination(self.instance, run_id):
                yield
        finally:
            if here:
                signal.signal(signal.SIGTERM, before)

    def evaluate(self, pending: WantedEvaluation, *, questions: int | None = None, force: bool = False) -> None:
        """Evaluate one checkpoint; see `execute` for what it raises."""
        keys.add_checkpoint_partitions(self.instance, self.experiment, [pending.partition])
        options = {"force": force} if questions is None else {"force": force, "num_questions": questions}
        self.execute(
            keys.evaluate_job(self.experiment),
            partition=pending.partition,
            tags={keys.EVALUATION_TAG: pending.fingerprint},
            options={"evaluation": options},
        )


@contextmanager
def stop_at_sigterm() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl+C does, outside Dagster's runs too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_complete(experiment: Experiment) -> bool:
    """Whether data, training, evaluations and report are all finished, as the folders tell."""
    return (
        all(stage.state == "finished" for stage in data_progress(experiment))
        and finished_training(experiment) is not None
        and not asks_to_start_again(experiment)
        and not pending_evaluations(experiment)
        and not is_log_pending(experiment)
        and not report_is_outdated(experiment)
    )


def is_recorded(session: Session) -> bool:
    """Whether Dagster's history knows the experiment's training and report; not so after it was deleted."""
    wanted = [keys.asset_key(session.experiment, name) for name in ("training", "report")]
    return all(session.instance.get_latest_materialization_event(key) is not None for key in wanted)


def run_experiment(session: Session, *, force: bool, say: Say) -> bool:
    """Materialize everything for the session's experiment; False if there was nothing to do.

    Raises:
        UserError: a stage failed.
        StoppedError: the user stopped it.
    """
    experiment = session.experiment
    _close_dead_runs(session, say)
    _look_for_lost_runs(session, say)
    if not force and is_complete(experiment) and is_recorded(session):
        send_to_mirror(experiment)  # what an earlier run could not, or what a mirror lacks that is new to the file
        _wait_for_mirror(experiment, say, patience=_MIRROR_SECONDS)
        return False
    if not force:
        require_checkpoint_to_resume(experiment)  # before the hours that the data may take
    session = _with_its_tokenizer(session, say)
    experiment = _make_start(session, say)
    session = replace(session, experiment=experiment)
    experiment.folder.root.mkdir(parents=True, exist_ok=True)
    say("Starting the run ...")
    announce_evaluator(experiment.folder.root)  # the follower takes seconds to start, the first checkpoints need not
    if _has_work_for_several(experiment):
        session.execute_in_workers(keys.data_job(experiment))
    with _output_of_groups(), _progress_on_terminal(), _follower(session, say):
        session.execute(keys.run_job(experiment), options={"training": {"force": force}})
    evaluate_experiment(session, say=say)
    _wait_for_mirror(experiment, say)
    prune_at_rest(experiment, say=say)
    return True


def _wait_for_mirror(experiment: Experiment, say: Say, *, patience: float = math.inf) -> None:
    if experiment.config.storage.mirror is not None:
        wait_until_sent(experiment.folder, say=say, patience=patience)


def run_alone(experiment: Experiment, *, force: bool, say: Say) -> bool:
    """Open a session for the experiment and run it; see `run_experiment`. The addresses are told how it ended.

    Raises:
        UserError: also if the addresses cannot be used.
    """
    project = Project.of_experiments(experiment.file.parent)
    say("Opening the project's history ...")
    find_addresses(project)  # raises: what keeps a notification from being sent is better known before the hours
    begun = time.monotonic()

    def told(ending: Ending, problem: str = "") -> None:
        seconds = time.monotonic() - begun
        try:
            message = message_of(experiment, ending, seconds=seconds, problem=problem)
        except Exception as error:  # the run itself must end as it did
            say(f"not notified: what to say cannot be read ({type(error).__name__}: {error})")
            return
        tell(project, message, say=say)

    try:
        with Session.open(project, experiment, say=say) as session:
            worked = run_experiment(session, force=force, say=say)
    except (StoppedError, KeyboardInterrupt):
        told("stopped")
        raise
    except Exception as error:
        if isinstance(error, UserError):
            note_failure(project, experiment.name, job=keys.run_job(experiment), text=str(error))
        told("failed", str(error) or type(error).__name__)
        raise
    if worked:
        told("finished")
    forget_failure(project, experiment.name)
    return worked


def run_each(files: Sequence[Path], *, force: bool, say: Say) -> list[Ended]:
    """Run the experiments in `files` one after the other; return how each ended.

    One that fails does not keep the next from running; a stop does.
    """
    ended: list[Ended] = []
    for number, file in enumerate(files, start=1):
        say(f"[{number}/{len(files)}] {file.name}")
        begun = time.monotonic()
        state, problem = _run_one(file, force=force, say=say)
        if problem:
            say(f"{file.name} {state}: {problem}")
        ended.append(Ended(file=file, state=state, problem=problem, seconds=time.monotonic() - begun))
        if state == "stopped":
            break
    left = files[len(ended) :]
    return [*ended, *(Ended(file=file, state="not started", problem="", seconds=0.0) for file in left)]


def _run_one(file: Path, *, force: bool, say: Say) -> tuple[End, str]:
    """Run the experiment in `file`; return how it ended, and what kept it from its end."""
    try:
        experiment = load_alone(file)
    except UserError as error:
        tell(Project.of_experiments(file.parent), broken_message(file.name, str(error)), say=say)
        return "failed", str(error)
    try:
        return ("finished" if run_alone(experiment, force=force, say=say) else "nothing to do"), ""
    except (StoppedError, KeyboardInterrupt):
        return "stopped", ""
    except (UserError, OSError) as error:
        return "failed", str(error)
    except Exception as error:  # a mistake of ours must not keep the next from running, either
        _logger.exception("%s", file.name)
        return "failed", f"{type(error).__name__}: {error}"


def _with_its_tokenizer(session: Session, say: Say) -> Session:
    """Return the session of the experiment read anew if its tokenizer had to be fetched, whose ids the model needs."""
    experiment = session.experiment
    if not fetch_tokenizer(experiment.data, experiment.data_folder, say):
        return session
    definitions = build_definitions(session.project)
    return replace(session, experiment=load_experiment(experiment.file), definitions=definitions)


def _make_start(session: Session, say: Say) -> Experiment:
    """Make the weights that the experiment starts from: train that experiment, or convert them; return it read anew."""
    experiment = session.experiment
    base = base_experiment(experiment)
    if base is not None and not _has_start(experiment):
        say(f"{experiment.file.name} starts from {base.file.name}, whose training is not finished: that runs first.")
        _run_base(session, base, say)
        say(f"{base.file.name} is trained; now {experiment.file.name}.")
    if experiment.config.start_from is not None and base is None:
        from gpt_pipeline.exchange.import_model import convert_start  # torch

        convert_start(experiment, say=say)
        return load_experiment(experiment.file)
    return experiment


def _run_base(session: Session, base: Experiment, say: Say) -> None:
    """Run the experiment that the session's starts from, in its own project if that is another one."""
    found = [each.experiment for each in find_experiments(session.project.experiments)]
    own = next((each for each in found if each is not None and each.file.resolve() == base.file), None)
    if own is not None:
        run_experiment(replace(session, experiment=own), force=False, say=say)
        return
    project = Project.of_experiments(base.file.parent)
    say(f"{base.file} belongs to the project in {project.root}, and runs there.")
    try:
        with Session.open(project, load_alone(base.file), say=say) as elsewhere:
            run_experiment(elsewhere, force=False, say=say)
    finally:
        session.project.enter()


def _has_start(experiment: Experiment) -> bool:
    try:
        return find_start(experiment) is not None
    except StartNotReadyError:
        return False


def _has_work_for_several(experiment: Experiment) -> bool:
    """Whether the data is still to be made and is of several of SYNTH's files: then each gets a process of its own."""
    limits = [part.document_limit for part in experiment.data.parts.values()]
    several = any(limit is None or limit > _DOCUMENTS_PER_FILE for limit in limits) and (os.cpu_count() or 1) > 1
    return several and find_shards(experiment.data, experiment.data_folder) is None


def evaluate_experiment(session: Session, *, questions: int | None = None, force: bool = False, say: Say) -> int:
    """Evaluate the checkpoints that have no such evaluation (all, with `force`), then the report; return how many.

    One that has it, but is unknown to Dagster's history, is only reported again. A checkpoint that cannot be evaluated
    does not keep the others from it: the problems are raised at the end.

    Raises:
        UserError: what kept some from being evaluated, or the report from being written.
        StoppedError: the user stopped it.
    """
    experiment = session.experiment
    _close_dead_runs(session, say)
    _look_for_lost_runs(session, say)
    settings = experiment.config.evaluation
    if questions is not None:
        settings = replace(settings, num_questions=questions)
    if list_checkpoints(experiment.folder.checkpoints):
        finished_shards(experiment)  # raises: until they are made, no evaluation is wanted
    for name, why in passed_over(experiment).items():
        say(f"{name} is not evaluated: {why}")
    wanted = wanted_evaluations(experiment, settings)
    recorded = session.instance.get_materialized_partitions(keys.asset_key(experiment, "evaluation"))
    chosen = [each for each in wanted if force or each.state != "done" or each.partition not in recorded]
    problems = []
    for each in chosen:
        announce_evaluator(experiment.folder.root)
        say(f"evaluating {each.checkpoint.path.name}")
        try:
            session.evaluate(each, questions=questions, force=force)
        except UserError as error:
            problems.append(f"{each.checkpoint.path.name}: {error}")
    if report_is_outdated(experiment):
        session.execute(keys.report_job(experiment))
    if problems:
        raise UserError("\n".join(problems))
    return len(chosen)


def _close_dead_runs(session: Session, say: Say) -> None:
    for run_id in close_dead_runs(session.instance, [session.experiment]):
        say(f"Run {run_id} was killed earlier; Dagster's history now shows it as failed.")


def _look_for_lost_runs(session: Session, say: Say) -> None:
    """Have logged again what a wiped MLflow, or another one, does not have; one that is down is only mentioned."""
    try:
        lost = forget_lost_runs(session.experiment, session.project.tracking_uri)
    except UserError as error:
        say(str(error))
        return
    if lost:
        say(f"MLflow has lost {counted(lost, 'evaluation')}, to be logged again from the results.")


@contextmanager
def _output_of_groups() -> Iterator[None]:
    """Let what is started in the block, in groups of its own, write to a terminal that stops others (`stty tostop`)."""
    if os.name == "nt":
        yield
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # which children inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


@contextmanager
def _progress_on_terminal() -> Iterator[None]:
    """Let the trainer draw its progress bar on this terminal, past Dagster's capture of the output."""
    if not sys.stderr.isatty():
        yield
        return
    descriptor = os.dup(sys.stderr.fileno())
    os.environ[PROGRESS_DESCRIPTOR] = str(descriptor)
    try:
        yield
    finally:
        del os.environ[PROGRESS_DESCRIPTOR]
        os.close(descriptor)


@contextmanager
def _follower(session: Session, say: Say) -> Iterator[None]:
    """Evaluate checkpoints in a second process while the block trains; afterwards wait until all are evaluated."""
    command = [sys.executable, "-m", _FOLLOWER, str(session.experiment.file)]
    group = {} if os.name == "nt" else own_group()
    # Half the cores: the training beside it has the better use for them.
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    orders, order = os.pipe()  # both ends stay open here: a signal that comes when the follower is gone writes, too
    child = subprocess.Popen(command, stdin=orders, env=environment, **group)
    try:
        with _told_of_signals(order):
            yield
            say("waiting for the last evaluations")
            os.write(order, LAST_CALL)
            child.wait()
    except BaseException:
        os.write(order, STOP)
        try:
            child.wait(_QUIET_SECONDS)
        except subprocess.TimeoutExpired:
            say("waiting for the evaluation under way, if there is one")
            child.wait()
        raise
    finally:
        os.close(order)
        os.close(orders)


@contextmanager
def _told_of_signals(order: int) -> Iterator[None]:
    """Have the follower, which reads the other end of `order`, told at once when a signal arrives here.

    Else it would learn of a stop when the training has saved its last checkpoint, and begin to evaluate that.
    """
    if os.name == "nt":  # the system's function wants a socket there
        yield
        return
    os.set_blocking(order, False)
    before = signal.set_wakeup_fd(order, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


def _problem(events: Iterable[DagsterEvent]) -> Exception:
    """Return what ended a run: a stop request, or what the failed steps say; the rest is in the Dagster UI."""
    texts = []
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            error = data.error.cause or data.error if data.error else None
            if error is not None and is_stop(error):
                return StoppedError(stop_text(error))
            texts.append(failure_text(event))
        elif event.event_type == dg.DagsterEventType.RUN_CANCELED:
            error = event.job_canceled_data.error
            return StoppedError(stop_text(error) if error else "")
    return UserError("\n".join(texts) or "the run failed before its first step; its log is in the Dagster UI")
