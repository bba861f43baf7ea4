"""Addresses on MLflow's pages, all built here.

An experiment's own address opens MLflow's view for GenAI, which has nothing to show of a training: every link names the
runs.
"""

from __future__ import annotations


def experiments_page(server: str) -> str:
    """Return the address of the list of all experiments."""
    return f"{server.rstrip('/')}/#/experiments"


def runs_page(server: str, experiment_id: str) -> str:
    """Return the address of the experiment's runs."""
    return f"{experiments_page(server)}/{experiment_id}/runs"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of one run."""
    return f"{runs_page(server, experiment_id)}/{run_id}"
