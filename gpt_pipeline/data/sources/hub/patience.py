"""Retries for a busy hub: bounded, as slow as the hub asks, and each wait is reported.

huggingface_hub's own retries can neither be stopped during a wait nor continue a file that was cut.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from gpt_pipeline.shown import Say

# httpx or httpx2, whichever this release of huggingface_hub is built on
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]

_BUSY = (408, 425, 429)
_FAULTS = range(500, 600)
_TRANSIENT = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}  # names of httpx's classes
_SLICE = 0.5  # seconds between checks, during a wait, of whether it is still wanted
_WORTHWHILE = 1 << 20  # bytes; an attempt that fetched this much does not count as a failure
_RESET = re.compile(r"(?:^|;)\s*t=(\d+)")  # seconds left, in the hub's own RateLimit header

T = TypeVar("T")


class CutShortError(Exception):
    """An answer that ended before its last byte."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to keep trying."""

    attempts: int = 6
    """Requests for one thing that may fail in a row without fetching anything."""

    first_wait: float = 1.0
    """Seconds before the second attempt; each further wait is twice as long."""

    longest_wait: float = 60.0
    """Seconds, unless the hub says how long."""

    longest_asked: float = 900.0
    """Seconds that the hub may ask for; its rate limits reset after 300."""

    silence: float = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    """Seconds without a connection, an answer or another byte after which an attempt counts as failed."""

    sleep: Callable[[float], None] = time.sleep

    def wait_before_next(self, error: Exception, *, failures: int) -> float | None:
        """Return the seconds to wait after this many failures in a row, or None to give up."""
        if not is_transient(error) or failures >= self.attempts:
            return None
        asked = asked_wait(error)
        if asked is not None and asked > self.longest_asked:
            return None
        own = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
        # Never sooner than asked, and not all workers at once.
        return (own if asked is None else asked) * (1 + random.random() / 8)


def persist(
    attempt: Callable[[], T],
    *,
    what: str,
    patience: Patience,
    say: Say,
    gained: Callable[[], int] = lambda: 0,
    still_wanted: Callable[[], None] = lambda: None,
) -> T:
    """Return what `attempt` returns, retrying after failures that may pass; the last failure is raised.

    `gained` returns how many bytes have been fetched; `still_wanted` raises if nobody needs them any more.
    """
    failures = 0
    while True:
        before = gained()
        try:
            return attempt()
        except (TransportError, CutShortError) as error:
            failures = 1 if gained() - before >= _WORTHWHILE else failures + 1
            wait = patience.wait_before_next(error, failures=failures)
            if wait is None:
                raise
            say(f"{what}: {_reason(error)}; waiting {_seconds(wait)}, attempt {failures + 1} of {patience.attempts}")
        _pause(wait, patience, still_wanted)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _BUSY or error.response.status_code in _FAULTS
    return isinstance(error, CutShortError) or any(kind.__name__ in _TRANSIENT for kind in type(error).__mro__)


def asked_wait(error: BaseException) -> float | None:
    """Return the seconds that the hub's answer asks to wait, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers: Mapping[str, str] = error.response.headers
    if (after := headers.get("Retry-After", "").strip()).isdigit():
        return float(after)
    if after:
        return _seconds_until(after)
    reset = _RESET.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset and error.response.status_code == 429 else None


def _pause(seconds: float, patience: Patience, still_wanted: Callable[[], None]) -> None:
    left = seconds
    while left > 0:
        still_wanted()
        patience.sleep(min(left, _SLICE))
        left -= _SLICE


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    return f"the connection failed ({type(error).__name__})"


def _seconds(wait: float) -> str:
    return f"{wait:.0f} s" if wait >= 1 else f"{wait:.1f} s"


def _seconds_until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except ValueError:  # neither a number nor a date: treat it as absent
        return None
