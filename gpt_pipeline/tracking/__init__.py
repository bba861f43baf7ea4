"""MLflow, and nothing else that talks to it."""
