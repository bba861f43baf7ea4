"""The `gpt-pipeline` command: one module a verb, each of them thin; what they do lies in the packages they call."""

from gpt_pipeline.cli.main import command, main

__all__ = ["command", "main"]
