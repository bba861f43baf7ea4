"""A Dagster logger for a person at a terminal: the messages of the stages, one plain line each, no engine events."""

import logging
import sys

import dagster as dg

_OF_THE_ENGINE = "Dependencies for step "  # what it says, without an event, of the steps after one that failed


class _StageMessages(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        return meta.get("dagster_event") is None and not str(meta.get("orig_message")).startswith(_OF_THE_ENGINE)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        return f"{meta.get('step_key') or 'run'}: {meta.get('orig_message') or record.getMessage()}"


@dg.logger(config_schema={}, description="Plain lines on stderr.")
def plain_console(context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger that prints what the stages say."""
    logger = logging.Logger("gpt_pipeline", level=logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_StageMessages())
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    return logger
