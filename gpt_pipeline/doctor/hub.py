"""The Hugging Face hub: whether it answers, and whether the token is one that it takes. The token is never shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gpt_pipeline.data.config import SYNTH
from gpt_pipeline.findings import Finding, note, ok, problem

_SECONDS = 5.0  # for a connection, and for an answer
_ALL_SECONDS = 12.0  # for everything, the name's address included, which knows no time limit of its own
_REFUSED = (401, 403)
_ELSEWHERE = "or name a folder with SYNTH's files: data.local_dataset_path"

_Value = TypeVar("_Value")


def look_at_hub(*, endpoint: str | None = None, token: str | None = None) -> Iterator[Finding]:
    """Look at whether the hub answers; `endpoint` and `token` are huggingface_hub's own settings where null."""
    from huggingface_hub import constants, get_token

    address = endpoint or str(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        yield note("hub", "HF_HUB_OFFLINE is set: nothing is downloaded", f"unset it for downloads, {_ELSEWHERE}")
        return
    token = token or get_token()
    try:
        status = within(_ALL_SECONDS, lambda: _ask(f"{address}/api/datasets/{SYNTH}", token))
    except (OSError, _transport_error()) as error:
        text = f"{address} does not answer ({_reason(error)}); what is downloaded already can be used"
        yield note("hub", text, f"look at the network and the proxy (HTTPS_PROXY), {_ELSEWHERE}")
        return
    if status in _REFUSED and token is not None:
        text = f"{address} refuses the token that is set"
        yield problem("hub", text, "run `hf auth login`, or unset HF_TOKEN: SYNTH needs none")
    elif status != 200:
        yield note("hub", f"{address} answers {status} for {SYNTH}", f"try again later, {_ELSEWHERE}")
    else:
        yield ok("hub", f"{address} answers; {'the token is valid' if token else 'no token, and SYNTH needs none'}")


def within(seconds: float, ask: Callable[[], _Value]) -> _Value:
    """Return what `ask` returns.

    Raises:
        TimeoutError: it takes longer; what it does then ends with this process.
        Exception: whatever `ask` raises.
    """
    answers: list[_Value] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # carried over to the caller
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answers[0]


def _ask(url: str, token: str | None) -> int:
    from huggingface_hub.utils import build_hf_headers, get_session

    answer: Any = get_session().get(url, headers=build_hf_headers(token=token or False), timeout=_SECONDS)
    return int(answer.status_code)


def _transport_error() -> type[Exception]:
    from gpt_pipeline.data.sources.hub.patience import TransportError

    return TransportError


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
