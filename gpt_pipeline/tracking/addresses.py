"""Addresses on MLflow's pages, all built here.

An experiment's own address opens MLflow's view for GenAI, which has nothing to show of a training. So every link names
the runs, and the kind of work for which MLflow shows its menu.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

_KIND = "workflowType=machine_learning"


def runs_page(server: str, experiment_ids: Sequence[str]) -> str:
    """Return the address of the runs of one experiment or several; for none, that of the list of experiments."""
    pages = f"{server.rstrip('/')}/#"
    if not experiment_ids:
        return f"{pages}/experiments?{_KIND}"
    if len(experiment_ids) == 1:
        return f"{pages}/experiments/{experiment_ids[0]}/runs?{_KIND}"
    return f"{pages}/compare-experiments/s?{_KIND}&experiments={quote(json.dumps([*experiment_ids]))}"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of one run."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_KIND}"
