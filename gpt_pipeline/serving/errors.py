"""Refusals in OpenAI's form: a status, a message for a person, a code for a program."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

INVALID, OVERLOADED, SERVER = "invalid_request_error", "server_overloaded", "server_error"
_RETRY_SECONDS = 1
UNREADABLE = 400
"""The status with which FastAPI itself answers a body that it cannot read."""

_NEEDS = {
    "model_attributes_type": "need a JSON object",
    "model_type": "need a JSON object",
    "list_type": "need a list",
    "too_short": "need at least one",
}
"""What pydantic says in the words of its own types."""


class ApiError(Exception):
    """A request that gets no answer but this."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """Return the error as JSON values."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """Return the refusal of a model that is not served; names the nearest."""
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return ApiError(
        f"model: found {name!r}, need one of {', '.join(known)}{guess}",
        status=404,
        param="model",
        code="model_not_found",
    )


def too_long(*, prompt: int, new: int, context: int, param: str) -> ApiError:
    """Return the refusal of what does not fit the context."""
    return ApiError(
        f"the context of this model is {context} tokens, but {prompt + new} were asked for: {prompt} of the prompt and "
        f"{new} new ones; shorten the prompt, or ask for fewer",
        param=param,
        code="context_length_exceeded",
    )


def no_key() -> ApiError:
    """Return the refusal of a request without the server's key."""
    return ApiError(
        "this server needs its key: Authorization: Bearer KEY",
        status=401,
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def too_large(most: int) -> ApiError:
    """Return the refusal of a body of more than `most` bytes."""
    return ApiError(f"the body is larger than {most:,} bytes; send less", status=413, code="request_too_large")


def unreadable() -> ApiError:
    """Return the refusal of a body that no reader of JSON takes."""
    return ApiError(
        "the body cannot be read, need JSON in UTF-8, without numbers of thousands of digits or brackets nested "
        "thousands deep",
        status=UNREADABLE,
    )


def queue_is_full(size: int) -> ApiError:
    """Return the refusal of a request for which there is no room now."""
    return ApiError(
        f"the queue of {size} texts is full; try again in a moment",
        status=429,
        kind=OVERLOADED,
        code="rate_limit_exceeded",
        headers={"retry-after": str(_RETRY_SECONDS)},
    )


def time_is_over(seconds: float) -> ApiError:
    """Return the end of a request that took too long."""
    return ApiError(
        f"the answer was not finished within {seconds:g} s; ask for fewer tokens",
        status=504,
        kind=SERVER,
        code="timeout",
        headers={"x-should-retry": "false"},  # OpenAI's clients would send the same again, twice
    )


def invalid(error: RequestValidationError) -> ApiError:
    """Return the first problem of a request's body as a refusal."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    place = [str(each) for each in first["loc"] if each != "body"]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return ApiError(
            f"{param}: this server does not know or support it; leave it out", param=param, code="unsupported_parameter"
        )
    if first["type"] == "missing":
        return ApiError(f"{param or 'the body'}: missing, need it", param=param, code="missing_required_parameter")
    reason = _NEEDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace(
        "Input should be", "need", 1
    )
    if param is None and first["type"] == "value_error":  # of several keys together; the message names them
        return ApiError(reason, param=reason.partition(":")[0], code="invalid_value")
    shown = repr(first["input"])
    found = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return ApiError(f"{param or 'the body'}: found {found}: {reason}", param=param, code="invalid_value")
