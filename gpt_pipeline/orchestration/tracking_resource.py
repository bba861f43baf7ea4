"""The MLflow store that evaluations are logged to, as a Dagster resource."""

import dagster as dg


class MlflowTracking(dg.ConfigurableResource):
    """Where MLflow keeps runs.

    A thin resource of ours rather than dagster-mlflow's: that one opens a run per Dagster run and ends it as FINISHED
    even when the Dagster run failed, whereas an evaluation must be one MLflow run however often it is attempted.
    """

    tracking_uri: str
    """Any URI that MLflow accepts, such as `sqlite:////data/mlflow.db` or `http://127.0.0.1:5000`."""
