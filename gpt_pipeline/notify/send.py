"""Sending a message. A notification that fails never fails what it tells of."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from gpt_pipeline.errors import UserError
from gpt_pipeline.notify.addresses import Address, Addresses, find_addresses
from gpt_pipeline.notify.message import Message
from gpt_pipeline.project import Project
from gpt_pipeline.shown import Say

_STATUS = re.compile(r"error=(\d{3})\b")


def tell(project: Project, message: Message, *, say: Say) -> bool:
    """Send the message to the project's addresses; tell `say` where that failed. Return whether it reached them all."""
    try:
        found = find_addresses(project)
    except UserError as error:
        say(f"not notified: {error}")
        return False
    problems = send(found, message) if found is not None else []
    for problem in problems:
        say(f"not notified: {problem}")
    return found is not None and not problems


def send(addresses: Addresses, message: Message) -> list[str]:
    """Send the message to each address; return what kept it from any, without anything secret."""
    return [problem for each in addresses.addresses if (problem := _send(each, message))]


def _send(address: Address, message: Message) -> str:
    """Return why the message did not get through; "" if it did."""
    kinds = {"finished": "success", "stopped": "warning", "failed": "failure"}
    with _listening() as said:
        try:
            import apprise

            service = apprise.Apprise()
            if not service.add(address.secret):
                return f"{address!r}: apprise cannot read this address; its form is in apprise's documentation"
            if service.notify(title=message.title, body=message.body, notify_type=kinds[message.ending]):
                return ""
        except Exception as error:  # of any of its hundred services; a notification must not end a run
            return f"{address!r}: {type(error).__name__}"  # its text may hold the address
    return f"{address!r}: {_reason(said)}"


def _reason(said: list[str]) -> str:
    """Return what apprise's log tells of a failure, of which only a status is surely no secret."""
    status = next((found[1] for line in said if (found := _STATUS.search(line))), None)
    return f"the server answered {status}" if status else "the server did not take it, or was not reached"


class _Listener(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Keep what apprise and what it sends by log, which may show addresses, from every other handler."""
    lines: list[str] = []
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3")]
    before = [(logger, logger.propagate, [*logger.handlers]) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [_Listener(lines)]
    try:
        yield lines
    finally:
        for logger, propagate, handlers in before:
            logger.propagate, logger.handlers = propagate, handlers
