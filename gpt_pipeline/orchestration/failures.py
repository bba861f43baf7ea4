"""A user's mistake becomes a Dagster failure of one clear line, without a traceback of ours and without retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from gpt_pipeline.errors import UserError


@contextmanager
def explained() -> Iterator[None]:
    """Turn a `UserError` raised in the block into `dagster.Failure` with the same text."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
