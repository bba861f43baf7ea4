"""The MLflow store that trainings and evaluations are logged to, as a Dagster resource."""

import os
from dataclasses import dataclass

import dagster as dg

from gpt_pipeline.project import MLFLOW_PAGE_VARIABLE

_DEFAULT_PAGES = "http://127.0.0.1:5000"  # where `mlflow ui` serves unless told otherwise


@dataclass(frozen=True, kw_only=True)
class MlflowTracking:
    """Where MLflow keeps runs, and where a person sees them.

    A thin resource of ours rather than dagster-mlflow's: that one opens a run per Dagster run and ends it as FINISHED
    even when the Dagster run failed, whereas an evaluation must be one MLflow run however often it is attempted.
    It has no run config: a form to start a run is no place to send its log elsewhere, nor to show a store's password.
    """

    tracking_uri: str
    """Any URI that MLflow accepts, such as `sqlite:////data/mlflow.db` or `http://127.0.0.1:5000`."""

    @property
    def has_server(self) -> bool:
        return self.tracking_uri.startswith("http")

    @property
    def pages(self) -> str:
        """Address of MLflow's pages. A database has none by itself."""
        served = self.tracking_uri if self.has_server else os.environ.get(MLFLOW_PAGE_VARIABLE, _DEFAULT_PAGES)
        return served.rstrip("/")

    def links(self, *, experiment_id: str, run_id: str) -> dict[str, dg.MetadataValue]:
        """Return the metadata that leads to a run: its address and, where nobody serves it by itself, what to start."""
        address = dg.MetadataValue.url(f"{self.pages}/#/experiments/{experiment_id}/runs/{run_id}")
        if self.has_server:
            return {"mlflow_run": address}
        return {"mlflow_run": address, "mlflow_pages": dg.MetadataValue.text(f"gpt-pipeline ui, or {self.command}")}

    @property
    def command(self) -> str:
        """What serves the pages of a database."""
        return f'mlflow ui --backend-store-uri "{self.tracking_uri}" --workers 1'


def mlflow_resource(tracking_uri: str) -> dg.ResourceDefinition:
    """Return the resource for the definitions."""
    return dg.ResourceDefinition.hardcoded_resource(
        MlflowTracking(tracking_uri=tracking_uri), description="Where trainings and evaluations are logged."
    )
