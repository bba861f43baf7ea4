"""The `gpt-pipeline` command. The verbs are thin; what they do is in the packages that they call."""

from gpt_pipeline.cli.main import command, main

__all__ = ["command", "main"]
