"""The MLflow store that trainings and evaluations are logged to, as a Dagster resource."""

import os
from dataclasses import dataclass, field

import dagster as dg

from gpt_pipeline.progress.at_work import pages_addresses
from gpt_pipeline.project import MLFLOW_PAGE_VARIABLE, Project
from gpt_pipeline.shown import without_password
from gpt_pipeline.tracking.addresses import run_page

_DEFAULT_PAGES = "http://127.0.0.1:5000"  # where `mlflow ui` serves unless told otherwise


@dataclass(frozen=True, kw_only=True)
class MlflowTracking:
    """Where MLflow keeps runs, and where they can be viewed.

    Not dagster-mlflow's resource, which logs comparisons alone: that one opens a run per Dagster run and ends it as
    FINISHED even if the Dagster run failed, whereas an evaluation must be one MLflow run however often it is attempted.
    This one has no run config: the form
    that starts a run must neither redirect its log nor show a store's password.
    """

    tracking_uri: str = field(repr=False)
    """Any URI that MLflow accepts, such as `sqlite:////data/mlflow.db` or `http://127.0.0.1:5000`."""

    @property
    def has_server(self) -> bool:
        return self.tracking_uri.startswith("http")

    @property
    def served(self) -> str | None:
        """Address at which MLflow's pages are open now; None for a database that `gpt-pipeline ui` does not serve."""
        if self.has_server:
            return without_password(self.tracking_uri).rstrip("/")
        address = os.environ.get(MLFLOW_PAGE_VARIABLE) or next(iter(pages_addresses(Project.here())[1:]), None)
        return address and address.rstrip("/")

    @property
    def pages(self) -> str:
        """Address of MLflow's pages: where they are open now, else their usual one."""
        return self.served or _DEFAULT_PAGES

    def links(self, *, experiment_id: str, run_id: str) -> dict[str, dg.MetadataValue]:
        """Return metadata that leads to a run: its address and, for a database, the command that serves it."""
        address = dg.MetadataValue.url(run_page(self.pages, experiment_id, run_id))
        if self.has_server:
            return {"mlflow_run": address}
        return {"mlflow_run": address, "mlflow_pages": dg.MetadataValue.text(f"gpt-pipeline ui, or {self.command}")}

    @property
    def command(self) -> str:
        """The command that serves the pages of a database; a password is left out."""
        return f'mlflow ui --backend-store-uri "{without_password(self.tracking_uri)}" --workers 1'


def mlflow_resource(tracking_uri: str) -> dg.ResourceDefinition:
    """Return the resource for the definitions."""
    tracking = MlflowTracking(tracking_uri=tracking_uri)
    return dg.ResourceDefinition(
        lambda _: tracking, config_schema={}, description="Where trainings and evaluations are logged."
    )
