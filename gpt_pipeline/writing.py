"""Text from a checkpoint for someone who watches: one prompt, a piece at a time, on the terminal.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.load import Weights, load_trained
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.formats.conversation import Message, prompt_of
from gpt_pipeline.data.formats.forms import PLAIN, with_names, without_marks
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.answers import encode_prompt
from gpt_pipeline.evaluation.generate import Pick, fit_prompt, greedy, longest_prompt, next_tokens
from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.shown import Say, on_terminal

End = Literal["ended", "limit", "context"]
"""Why a text is over: the model ended it, `max_new_tokens` were generated, or the context is full."""

_ENDS = {
    "limit": "stopped after {tokens} tokens: --max-new-tokens",
    "context": "stopped: prompt and text fill the {context} tokens that the model was trained at",
}


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How to generate."""

    pick: Pick
    max_new_tokens: int
    raw: bool
    """Whether a prompt is the beginning of a text as it is, rather than a question."""

    asked: Callable[[Sequence[Message]], str] = field(default=partial(prompt_of, form=PLAIN, reasons=True))
    """Puts a question, behind those before it, in the form of the training documents."""

    remembers: bool = False
    """Whether a conversation goes on: a question is asked behind those before it and their answers."""

    answered: Callable[[str], str] = str.strip
    """Takes the answer out of what was written, for the conversation to go on with; "" where it has none."""

    until: Callable[[Iterable[str]], Iterator[str]] = iter
    """Ends a text that goes on behind its answer, as a conversation does with the next question."""


@dataclass(kw_only=True)
class Writer:
    """A checkpoint's model, ready to generate."""

    model: LanguageModel
    tokenizer: Tokenizer
    checkpoint: CheckpointInfo
    context_length: int
    """Tokens of prompt and text together: no more than the model was trained at."""

    end: End | None = None
    """Why the last text ended; None while it is being generated, or when it was interrupted."""

    prompt_truncated: bool = False
    """Whether the last prompt lost its beginning so that it fits."""

    @classmethod
    def of_checkpoint(cls, path: Path, *, device: str, trained_length: int, weights: Weights = "raw") -> Writer:
        """Return the writer of the checkpoint `path`; `device` is as `hardware.device`.

        Raises:
            UserError: there is no such checkpoint, it is damaged or lacks these weights, or there is no such device.
        """
        with hold(path):
            trained = load_trained(path, device=devices.choose_kind(device), weights=weights)
        return cls(
            model=trained.model,
            tokenizer=trained.tokenizer,
            checkpoint=trained.info,
            context_length=min(trained_length, trained.model.config.context_length),
        )

    def write(self, prompt: str, manner: Manner, said: Sequence[Message] = ()) -> Iterator[str]:
        """Yield what the model generates after a question, or after a raw text, in pieces of whole characters.

        A question is put in the form of the training documents, so the text is its reasoning, then its answer. It is
        asked behind what was `said` before, of which the oldest is left out if there is no room for all. A prompt that
        would leave no room is cut as in `fit_prompt`.
        """
        asked, before = Message(role="user", content=prompt), [*said]
        raw = without_marks(prompt) if self.tokenizer.marks else prompt
        whole = encode_prompt(raw if manner.raw else manner.asked([*before, asked]), self.tokenizer)
        longest = longest_prompt(max_new_tokens=manner.max_new_tokens, context_length=self.context_length)
        while before and len(whole) > longest:
            del before[:2]
            whole = encode_prompt(manner.asked([*before, asked]), self.tokenizer)
        tokens = fit_prompt(whole, max_new_tokens=manner.max_new_tokens, context_length=self.context_length)
        self.prompt_truncated = len(tokens) < len(whole)
        return manner.until(whole_characters(self._tokens(tokens, manner), self.tokenizer))

    def _tokens(self, prompt: Sequence[int], manner: Manner) -> Iterator[int]:
        self.end = None
        cache = KVCache(self.model.config, capacity=self.context_length)
        ids = torch.tensor([prompt], device=self.model.head_weight.device)
        with torch.inference_mode():
            logits = self.model.forward_cached(ids, cache)
        following = next_tokens(self.model, logits, cache, manner.pick)
        for _ in range(manner.max_new_tokens):
            token = next(following, None)
            if token is None or int(token) in self.tokenizer.ends:
                self.end = "context" if token is None else "ended"
                return
            yield int(token)
        self.end = "limit"


def picker(*, temperature: float, top_k: int | None, seed: int) -> Pick:
    """Return a function that chooses a token for each row of logits, [B, V] -> [B].

    `temperature` 0 is greedy. Above, tokens are drawn with softmax(logits / temperature), among the `top_k` likeliest
    if that is given; the same seed draws the same.
    """
    if temperature == 0:
        return greedy
    generator, sampling = torch.Generator().manual_seed(seed), Sampling(temperature=temperature, top_k=top_k)

    def draw(logits: Tensor) -> Tensor:
        uniform = torch.rand(len(logits), dtype=torch.float64, generator=generator)
        # On the CPU in float64: the same draws on every device, but for the rounding of the logits themselves.
        return sampling.choose(logits.cpu().double(), uniform).to(logits.device)

    return draw


def whole_characters(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of the tokens; bytes of an incomplete character wait for the rest of it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.bytes_of(token)):
            yield with_names(text) if tokenizer.marks else text
    if rest := decoder.decode(b"", final=True):
        yield rest


def write_once(writer: Writer, manner: Manner, prompt: str, *, say: Say, said: Sequence[Message] = ()) -> str:
    """Stream what is generated after `prompt` to the standard output, and return it; `say` gets remarks on it.

    A raw prompt comes first, so that the output is the text as a whole.
    """
    if manner.raw:
        _put(prompt)
    pieces = []
    for piece in writer.write(prompt, manner, said):
        pieces.append(piece)
        _put(piece)
    _put("\n")
    if writer.prompt_truncated:
        context = writer.context_length
        most = longest_prompt(max_new_tokens=manner.max_new_tokens, context_length=context)
        room = f"which leave room for {context - most} more in the {context} that the model was trained at"
        say(f"[the prompt is longer than {most} tokens, {room}: its beginning was left out]")
    if writer.end in _ENDS:
        text = _ENDS[writer.end].format(tokens=manner.max_new_tokens, context=writer.context_length)
        say(f"[{text}]")
    return "".join(pieces)


def converse(writer: Writer, manner: Manner, *, say: Say) -> None:
    """Answer the standard input line by line until it ends: each by itself, or as one conversation.

    Ctrl+C interrupts an answer; between two answers it leaves.
    """
    asking = sys.stdin.isatty()
    if asking:
        say("One question a line. Ctrl+C stops an answer, Ctrl+D (Windows: Ctrl+Z and Enter) leaves.")
    said: list[Message] = []
    while (line := _next_line("> " if asking else "")) is not None:
        if not line.strip():
            continue
        try:
            written = write_once(writer, manner, line, say=say, said=said)
        except KeyboardInterrupt:
            _put("\n")
            say("[stopped]")
            continue
        if manner.remembers and (answer := manner.answered(written)):
            said += [Message(role="user", content=line), Message(role="assistant", content=answer)]


def _next_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            _put("\n")
        return None


def _put(text: str) -> None:
    text = on_terminal(text)  # the model may have learnt to write what a terminal obeys
    encoding = sys.stdout.encoding or "utf-8"
    # A console or a pipe on Windows may lack letters; a missing one must not end the text.
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
