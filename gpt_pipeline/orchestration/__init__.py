"""The Dagster project: assets, checks, jobs, sensors. Thin: each asset calls one domain function."""
