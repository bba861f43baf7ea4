"""A model that writes on from one prompt, a piece of text at a time.

Shapes: T tokens of the prompt.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.load import load_model
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.documents import prompt_text
from gpt_pipeline.data.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.evaluation.generate import Pick
from gpt_pipeline.model.gpt import GPT, KVCache

End = Literal["ended", "limit", "context"]
"""Why a text is over: the model ended it, `max_new_tokens` were written, or the context is full."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How to write."""

    pick: Pick
    max_new_tokens: int
    raw: bool
    """Whether a prompt is the beginning of a text as it is, rather than a question."""


@dataclass(kw_only=True)
class Writer:
    """A checkpoint's model, ready to write."""

    model: GPT
    checkpoint: CheckpointInfo
    context_length: int
    """Tokens of prompt and text together: no more than the model was trained at."""

    end: End | None = None
    """Why the last text ended; None while it is being written, or when it was broken off."""

    prompt_truncated: bool = False
    """Whether the last prompt lost its beginning so that it fits."""

    @classmethod
    def of_checkpoint(cls, path: Path, *, device: str, trained_length: int) -> Writer:
        """Return the writer of the checkpoint `path`; `device` is `auto`, `cuda` or `cpu`.

        Raises:
            UserError: there is no such checkpoint, or it is damaged, or there is no such device.
        """
        chosen = _device(device)
        with hold(path):
            model, info = load_model(path, device=chosen)
        return cls(model=model, checkpoint=info, context_length=min(trained_length, model.config.context_length))

    def write(self, prompt: str, manner: Manner) -> Iterator[str]:
        """Yield what the model writes to a question, or after a raw text, in pieces of whole characters.

        To a question, asked in the form of the training documents, that is its reasoning, then its answer. A prompt
        that would leave no room (`max_new_tokens`, at most half of the context) loses its beginning.
        """
        tokens = [EOT_TOKEN, *gpt2().encode_ordinary(prompt if manner.raw else prompt_text(prompt))]
        longest = self.context_length - min(manner.max_new_tokens, self.context_length // 2)
        self.prompt_truncated = len(tokens) > longest
        if self.prompt_truncated:
            tokens = [EOT_TOKEN, *tokens[len(tokens) - longest + 1 :]]
        return whole_characters(self._tokens(tokens, manner))

    def _tokens(self, prompt: Sequence[int], manner: Manner) -> Iterator[int]:
        self.end = None
        cache = KVCache(self.model.config, capacity=self.context_length)
        ids = torch.tensor([prompt], device=self.model.head_weight.device)
        for _ in range(manner.max_new_tokens):
            if cache.length + ids.size(1) > self.context_length:
                self.end = "context"
                return
            with torch.inference_mode():
                chosen = manner.pick(self.model.forward_cached(ids, cache))
            token = int(chosen)
            if token == EOT_TOKEN:
                self.end = "ended"
                return
            yield token
            ids = chosen[:, None]
        self.end = "limit"


def whole_characters(tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of the tokens; bytes of a character that is not complete yet wait for the rest of it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        text = decoder.decode(gpt2().decode_single_token_bytes(token))
        if text:
            yield text
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "hardware.device", found=name, need="a device that is here: cpu", remedy="use --device cpu, or auto"
        )
    return name
