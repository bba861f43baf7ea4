"""The states of a run that is not over, for everyone who asks Dagster what is under way."""

import dagster as dg

UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def is_under_way(instance: dg.DagsterInstance, job_name: str) -> bool:
    """Whether a run of the job waits, begins, works or ends."""
    return instance.get_runs_count(dg.RunsFilter(job_name=job_name, statuses=list(UNFINISHED))) > 0
