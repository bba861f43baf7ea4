"""Checkpoints on disk: written so that a crash at any moment leaves a valid one, verified before they are loaded."""
