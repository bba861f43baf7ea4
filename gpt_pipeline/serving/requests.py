"""What may be asked, in OpenAI's form. Nothing is ignored: what this server does not do is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "tool_calls": ([],),
    "annotations": ([],),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "include_obfuscation": (False,),
    "top_p": (1,),
    "top_k": (0, -1),
    "store": (False,),
    "modalities": (["text"],),
}
"""Values that ask for nothing, which some clients always send."""

LONGEST_STOP, MOST_STOPS, MOST_CHOICES, MOST_LOGPROBS = 200, 16, 128, 20
_LEAST_TEMPERATURE = 0.001  # below, logits divided by it leave float32


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(
        isinstance(each, str) and 0 < len(each) <= LONGEST_STOP for each in stops
    ):
        raise ValueError(f"need a string, or a list of strings, of 1 to {LONGEST_STOP} characters")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"found {len(stops)} strings, need at most {MOST_STOPS}")
    return tuple(stops)


def _prompts(value: Any) -> Any:
    """Return the prompts, each a text or a tuple of token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(map(_is_id, value))):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_NEED_PROMPT)
    if all(isinstance(each, str) for each in value):
        return tuple(value)
    if all(isinstance(each, list) and each and all(map(_is_id, each)) for each in value):
        return tuple(map(tuple, value))
    raise ValueError(_NEED_PROMPT)


_NEED_PROMPT = "need a string, a list of strings, a list of token ids, or a list of such lists; none of them empty"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _temperature(value: float) -> float:
    if 0 < value < _LEAST_TEMPERATURE:
        raise ValueError(f"need 0, for always the likeliest token, or at least {_LEAST_TEMPERATURE}")
    return value


def _top_k(value: int) -> int:
    if value < 1:  # what is neutral was left out before
        raise ValueError("need at least 1, or 0 or -1, for no limit")
    return value


def _content(value: Any) -> Any:
    """Return the text of a message, whose parts may come one by one."""
    if isinstance(value, list) and all(map(_is_text_part, value)):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise ValueError("need a string, or a list of parts of type text: this server reads text alone")
    return value


def _is_text_part(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text" and isinstance(value.get("text"), str)


class _Plain(BaseModel):
    """JSON whose null is the same as leaving a key out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: each for key, each in value.items() if each is not None and not _is_neutral(key, each)}


def _is_neutral(key: str, value: Any) -> bool:
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in _NEUTRAL.get(key, ()))


class StreamOptions(_Plain):
    """How a stream is sent."""

    include_usage: bool = False


class _Request(_Plain):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_temperature)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, AfterValidator(_top_k)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Annotated[Any, BeforeValidator(_stops)] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Who asks; it changes nothing."""

    @model_validator(mode="after")
    def _fits_together(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: need stream: true beside it")
        return self


class CompletionRequest(_Request):
    """The body of `/v1/completions`."""

    prompt: Annotated[Any, BeforeValidator(_prompts)] = ("",)
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: found 0, need at least 1, or echo: true")
        return self


class ChatMessage(_Plain):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
    reasoning_content: str = ""
    """Of an earlier answer."""


class ChatRequest(_Request):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The same by its newer name."""

    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    reasoning_effort: Literal["none"] | None = None
    """`none`: answer at once, where documents may reason first."""

    @model_validator(mode="after")
    def _is_a_question(self) -> ChatRequest:
        if (last := self.messages[-1].role) != "user":
            raise ValueError(f"messages: found the role {last!r} in the last one, need 'user'")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: need logprobs: true beside it")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: need it or max_completion_tokens, not both")
        return self
