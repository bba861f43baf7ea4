"""The tags by which MLflow's runs are filtered and nested: the same names on trainings and evaluations.

The run of a training is the parent of its evaluations. MLflow may see either first, and an earlier version of the
program nested none: whoever logs something of a training gives its runs whatever tags they lack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.tracking.store import MAX_RUNS, OpenStore, shortened

if TYPE_CHECKING:
    from mlflow.entities import Run

OF_TRAINING_TAG = "training_fingerprint"
"""On an evaluation's run: the training that its checkpoint is of."""

PARENT_TAG = "mlflow.parentRunId"
VERSION_TAG = "gpt_pipeline_version"
"""The version of the program that trained or evaluated."""


_COMPLETE_TAG = "gpt_pipeline.evaluations_have"
"""On a training's run: a digest of the tags that the runs of its evaluations have all been given."""


def experiment_tags(experiment: Experiment) -> dict[str, str]:
    """Return what its runs are filtered by: the file, the project's folder, and what is trained on what."""
    config = experiment.config
    return {
        "experiment_file": experiment.file.name,
        "project": project_of(experiment),
        "objective": config.training.objective,
        "architecture": config.model.architecture,
        "data_source": config.data.origin,
        **({} if config.family is None else {"family": config.family}),
        **({} if config.start_from is None else {"starts_from": config.start_from.text}),
    }


def project_of(experiment: Experiment) -> str:
    """Return the name of the folder that holds `experiments/`."""
    return experiment.file.parent.parent.name


def evaluation_runs(store: OpenStore, training_fingerprint: str, *, having: str = "") -> list[Run]:
    """Return the runs of the evaluations of a training; `having` is a further condition, in MLflow's language."""
    of_training = f"tags.{OF_TRAINING_TAG} = '{training_fingerprint}'" + (f" and {having}" if having else "")
    return list(store.client.search_runs([store.experiment_id], filter_string=of_training, max_results=MAX_RUNS))


def complete_tags(store: OpenStore, runs: Iterable[Run], tags: Mapping[str, str], *, parent: Run | None = None) -> None:
    """Give the runs those `tags` that they lack, and `parent`, in one call a run; one that has all of it is left alone.

    A tag that a run has stands: it may be of another version of the experiment file. The parent may have changed: its
    run was lost, and the training logged again.
    """
    from mlflow.entities import RunTag

    for run in runs:
        had = run.data.tags
        lacking = {key: shortened(value) for key, value in tags.items() if key not in had}
        if parent is not None and had.get(PARENT_TAG) != parent.info.run_id:
            lacking[PARENT_TAG] = parent.info.run_id
        if lacking:
            store.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in lacking.items()])


def complete_evaluations(
    store: OpenStore,
    own: Run,
    tags: Mapping[str, str],
    *,
    training_fingerprint: str,
    parent: Run | None,
    if_unknown: Callable[[], object],
) -> None:
    """Give the run of an evaluation, those of the training's others, and the training's, `parent`, what they lack.

    The others are asked for once for each set of tags, since there may be thousands: the training's run, completed
    last, says that they have them. As long as it does not say so, `if_unknown` is called before it does. A run that is
    made after that finds its parent itself.
    """
    mark = hashlib.sha256("\n".join(sorted(tags)).encode()).hexdigest()
    if parent is not None and parent.data.tags.get(_COMPLETE_TAG) == mark:
        complete_tags(store, [own], tags, parent=parent)
        return
    complete_tags(store, evaluation_runs(store, training_fingerprint), tags, parent=parent)
    if_unknown()
    if parent is not None:
        complete_tags(store, [parent], tags)
        store.client.set_tag(parent.info.run_id, _COMPLETE_TAG, mark)
