"""What is answered, in OpenAI's form."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_pipeline.data.formats.forms import with_names
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.serving.batch import Token
from gpt_pipeline.serving.jobs import Job, Update
from gpt_pipeline.serving.models import Served


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every body of one answer begins with."""

    served: Served
    kind: str
    id: str
    created: int

    @classmethod
    def of(cls, served: Served, kind: str, prefix: str) -> Head:
        """Return the head of a new answer."""
        return cls(served=served, kind=kind, id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()))

    def body(self, choices: Sequence[Mapping[str, Any]], kind: str | None = None) -> dict[str, Any]:
        """Return a whole answer, or a part of it that is of another `kind`."""
        return {
            "id": self.id,
            "object": kind or self.kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
            "choices": list(choices),
        }


def model_body(served: Served) -> dict[str, Any]:
    """Return a model as `/v1/models` lists it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "gpt_pipeline",
        "step": served.step,
        "max_model_len": served.writer.context_length,
        "chat": served.chat is not None,
    }


def usage_of(job: Job) -> dict[str, int]:
    """Return how many tokens a request took."""
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.new_tokens,
        "total_tokens": job.prompt_tokens + job.new_tokens,
    }


@dataclass(kw_only=True)
class _Place:
    """Where in a text its next token begins: a character that several tokens make up counts once."""

    offset: int = 0

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def passed(self, token: int, tokenizer: Tokenizer) -> int:
        """Return the place of this token, and go on behind it."""
        before, text = self.offset, self._decoder.decode(tokenizer.bytes_of(token))
        self.offset += len(with_names(text) if tokenizer.marks else text)
        return before


@dataclass(kw_only=True)
class Completion:
    """The choices of a completion, as updates of them come in."""

    tokenizer: Tokenizer
    with_logprobs: bool
    echoed: Sequence[tuple[int, ...]] = ()
    """What of each prompt begins the texts of its choices; empty: nothing."""

    choices: int = 1
    """For each prompt."""

    _places: dict[int, _Place] = field(default_factory=dict)

    def choice(self, update: Update) -> dict[str, Any]:
        """Return what is new of one choice."""
        return {
            "index": update.number,
            "text": update.content,
            "logprobs": self._logprobs(update.number, update.piece.tokens) if self.with_logprobs else None,
            "finish_reason": update.finish,
        }

    def echo(self, number: int, scored: Sequence[Token] | None) -> dict[str, Any]:
        """Return the prompt as the beginning of a choice, by its tokens with their logprobs where they were told."""
        ids = self.echoed[number // self.choices]
        tokens = [Token(id=each) for each in ids] if scored is None else scored[len(scored) - len(ids) :]
        text = self.tokenizer.decode(ids)
        logprobs = self._logprobs(number, tokens) if self.with_logprobs else None
        self._places[number] = _Place(offset=len(text))
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, number: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [token_text(token.id, self.tokenizer) for token in tokens]
        place = self._places.setdefault(number, _Place())
        offsets = [place.passed(token.id, self.tokenizer) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        # Two tokens may read alike; the likelier one stays.
        return {token_text(id_, self.tokenizer): value for id_, value in reversed(token.top)}


def joined_completions(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return whole choices made of their parts, which are in order."""
    whole: dict[int, dict[str, Any]] = {}
    for part in parts:
        choice = whole.setdefault(part["index"], {**part, "text": "", "logprobs": None})
        choice["text"] += part["text"]
        choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
        if part["logprobs"] is not None:
            before = choice["logprobs"] or {name: [] for name in part["logprobs"]}
            choice["logprobs"] = {name: [*before[name], *values] for name, values in part["logprobs"].items()}
    return [whole[number] for number in sorted(whole)]


@dataclass(kw_only=True)
class Chat:
    """The choices of a chat's answer, as updates of them come in."""

    tokenizer: Tokenizer
    with_logprobs: bool

    def delta(self, update: Update) -> dict[str, Any]:
        """Return what is new of one choice."""
        new = {"reasoning_content": update.reasoning, "content": update.content}
        return {
            "index": update.number,
            "delta": {name: text for name, text in new.items() if text},
            "logprobs": self._logprobs(update.piece.tokens) if self.with_logprobs else None,
            "finish_reason": update.finish,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._named(token.id, token.logprob),
                    "top_logprobs": [self._named(id_, value) for id_, value in token.top],
                }
                for token in tokens
            ]
        }

    def _named(self, id_: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(id_, self.tokenizer)
        letters = text.encode() if id_ in self.tokenizer.marks.values() else self.tokenizer.bytes_of(id_)
        return {"token": text, "logprob": logprob, "bytes": list(letters) or None}


def opening_delta(number: int) -> dict[str, Any]:
    """Return the part with which a choice of a streamed chat begins."""
    return {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def joined_deltas(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return whole choices of a chat made of their parts, which are in order."""
    whole: dict[int, dict[str, Any]] = {}
    for part in parts:
        message = {"role": "assistant", "content": ""}
        empty = {"index": part["index"], "message": message, "logprobs": None, "finish_reason": None}
        choice = whole.setdefault(part["index"], empty)
        for name in ("reasoning_content", "content"):
            if text := part["delta"].get(name):
                choice["message"][name] = choice["message"].get(name, "") + text
        choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
        if part["logprobs"] is not None:
            before = choice["logprobs"] or {"content": []}
            choice["logprobs"] = {"content": [*before["content"], *part["logprobs"]["content"]]}
    return [whole[number] for number in sorted(whole)]


def token_text(id_: int, tokenizer: Tokenizer) -> str:
    """Return a token as text: one that is a part of a character as `bytes:` and their values."""
    if id_ == tokenizer.eot_token:
        return tokenizer.eot
    letters = tokenizer.bytes_of(id_)
    try:
        text = letters.decode()
        return with_names(text) if tokenizer.marks else text
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{letter:02x}" for letter in letters)
