"""What MLflow lacks of an experiment: the one module of this package that leads to MLflow."""

from __future__ import annotations

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.progress.evaluations import logged_marks
from gpt_pipeline.tracking.registered_model import Registered, forget_registered, registration_is_pending
from gpt_pipeline.tracking.training_run import earlier_logs_are_pending, training_log_is_pending


def is_log_pending(experiment: Experiment) -> bool:
    """Whether MLflow lacks something of the experiment's training, or of an earlier one, as the folders tell.

    With `evaluation.register_model`, the model of a finished training belongs to it.
    """
    fingerprint = wanted_fingerprint(experiment)
    if fingerprint is None:
        return False
    folder = experiment.folder
    if training_log_is_pending(folder, fingerprint) or earlier_logs_are_pending(folder, fingerprint):
        return True
    return experiment.config.evaluation.register_model and registration_is_pending(folder, fingerprint)


def forget_lost_runs(experiment: Experiment, tracking_uri: str) -> int:
    """Make those evaluations pending again whose runs MLflow has lost: its store was wiped, or is another one.

    Returns how many. The log of a training whose run is lost becomes pending too, and so does its registered model.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    from gpt_pipeline.tracking.lost_runs import lost_runs
    from gpt_pipeline.tracking.training_run import forget_sent, sent_runs

    logged = {path: str(mark.get("run_id")) for path, mark in logged_marks(experiment.folder).items()}
    trainings, registered = sent_runs(experiment.folder), Registered.read(experiment.folder)
    models = [] if registered is None else [registered.run_id]
    lost = lost_runs(
        [*logged.values(), *trainings.values(), *models],
        tracking_uri=tracking_uri,
        experiment_name=experiment.display_name,
    )
    if lost.intersection(models):
        forget_registered(experiment.folder)
    for folder, run_id in trainings.items():
        if run_id in lost:
            forget_sent(folder)
    gone = [path for path, run_id in logged.items() if run_id in lost]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)
