"""The newest run of each experiment, as Dagster's history has it, for the start page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.events import DagsterEvent

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import process_of
from gpt_pipeline.shown import without_password
from gpt_pipeline.start_page.state import NewestRun, RunState

_Picked = tuple[Mapping[str, str], dg.RunRecord]
"""A run of assets that somebody picked by hand, behind the jobs that make the same, by experiment."""

_PICKED = 50  # of such runs, the newest are looked at
_WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)
_ENDS: Mapping[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
}


class NewestRuns:
    """Finds the newest run that makes an experiment's data or training."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._errors: dict[str, str] = {}

    def __call__(self, experiments: Sequence[Experiment]) -> Mapping[str, NewestRun]:
        """Return the newest run of each experiment that has one, by the experiment's name."""
        records = self._instance.get_run_records(dg.RunsFilter(job_name=IMPLICIT_ASSET_JOB_NAME), limit=_PICKED)
        picked = [(keys.jobs_of(record.dagster_run), record) for record in records]
        found = {experiment.name: self._newest(experiment, picked) for experiment in experiments}
        return {name: self._described(record.dagster_run) for name, record in found.items() if record is not None}

    def _newest(self, experiment: Experiment, picked: Sequence[_Picked]) -> dg.RunRecord | None:
        jobs = (keys.run_job(experiment), keys.data_job(experiment))
        records = [
            record for job in jobs for record in self._instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)
        ]
        records += [record for jobs_of_run, record in picked if jobs_of_run.get(experiment.name) in jobs]
        return max(records, key=lambda record: record.create_timestamp, default=None)

    def _described(self, run: dg.DagsterRun) -> NewestRun:
        process = process_of(run)
        state = _ENDS.get(run.status, "waiting" if run.status in _WAITING else "working")
        return NewestRun(
            state=state,
            page=f"/runs/{run.run_id}",
            process="" if process is None else f"process {process.pid} on {process.host}",
            error=self._error(run.run_id) if state == "failed" else "",
        )

    def _error(self, run_id: str) -> str:
        """Return why a run failed; its history is read once, since it does not change any more."""
        if run_id not in self._errors:
            self._errors[run_id] = self._read_error(run_id)
        return self._errors[run_id]

    def _read_error(self, run_id: str) -> str:
        for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
            for entry in self._instance.all_logs(run_id, of_type=kind):
                if entry.dagster_event is not None:
                    return without_password(_words(entry.dagster_event))
        return ""


def _words(event: DagsterEvent) -> str:
    if event.is_step_failure:
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return data.user_failure_data.description
        error = data.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return error.message.strip()
    return event.message or ""
