"""From tokens to text: whole characters, up to a stop string, and in a chat reasoning apart from the answer."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpt_pipeline.data.formats.forms import with_names
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.serving.batch import Token


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text that nothing behind it can change any more, and the tokens that begin in it."""

    text: str = ""
    tokens: tuple[Token, ...] = ()


@dataclass(kw_only=True)
class Written:
    """A text as it grows; what may turn out to be a stop string is held back."""

    tokenizer: Tokenizer
    stops: Sequence[str] = ()
    stopped: bool = False
    """Whether a stop string ended it; that string does not belong to it."""

    _held: str = ""
    _given: int = 0
    _length: int = 0
    _tokens: list[tuple[int, Token]] = field(default_factory=list)
    """Those not given yet, each with the place of its first character."""

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: Token) -> Piece:
        """Return what is ready once this token is there."""
        self._tokens.append((self._length, token))
        return self._read(self._decoder.decode(self.tokenizer.bytes_of(token.id)))

    def end(self) -> Piece:
        """Return the rest, once no token follows."""
        if self.stopped:
            return Piece()
        piece = self._read(self._decoder.decode(b"", final=True))
        tokens = tuple(token for _, token in self._tokens)
        return Piece(text=piece.text + self._held, tokens=piece.tokens + tokens)

    def _read(self, text: str) -> Piece:
        text = with_names(text) if self.tokenizer.marks else text
        self._held += text
        self._length += len(text)
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            piece = self._give(min(found))
            self.stopped, self._held, self._tokens = True, "", []
            return piece
        return self._give(len(self._held) - held_back(self._held, self.stops))

    def _give(self, count: int) -> Piece:
        text, self._held = self._held[:count], self._held[count:]
        self._given += count
        ready = [token for start, token in self._tokens if start < self._given]
        self._tokens = self._tokens[len(ready) :]
        return Piece(text=text, tokens=tuple(ready))


def held_back(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)


@dataclass(kw_only=True)
class Parts:
    """The text of an answer as it grows, cut into reasoning and answer, each without the white space around it."""

    answer_mark: str | None
    """Ends the reasoning; None: all is the answer."""

    end_marks: Sequence[str] = ()
    """End the answer: with one of them the next message begins."""

    ended: bool = False
    _held: str = ""
    _begun: bool = False

    def add(self, text: str) -> Iterator[tuple[bool, str]]:
        """Yield what is ready: whether it is reasoning, and the text."""
        if self.ended:
            return
        self._held += text
        if self.answer_mark is not None:
            before, mark, after = self._held.partition(self.answer_mark)
            if not mark:
                yield from self._ready(is_reasoning=True, marks=[self.answer_mark])
                return
            yield from self._whole(before, is_reasoning=True)
            self.answer_mark, self._held, self._begun = None, after, False
        found = [place for mark in self.end_marks if (place := self._held.find(mark)) >= 0]
        if found:
            self.ended = True
            yield from self._whole(self._held[: min(found)], is_reasoning=False)
        else:
            yield from self._ready(is_reasoning=False, marks=self.end_marks)

    def end(self) -> Iterator[tuple[bool, str]]:
        """Yield the rest, once no text follows."""
        if not self.ended:
            yield from self._whole(self._held, is_reasoning=self.answer_mark is not None)

    def _ready(self, *, is_reasoning: bool, marks: Sequence[str]) -> Iterator[tuple[bool, str]]:
        # White space waits: it may be the last, or begin a mark.
        count = len(self._held[: len(self._held) - held_back(self._held, marks)].rstrip())
        text, self._held = self._held[:count], self._held[count:]
        if text := text if self._begun else text.lstrip():
            self._begun = True
            yield is_reasoning, text

    def _whole(self, text: str, *, is_reasoning: bool) -> Iterator[tuple[bool, str]]:
        rest = text.rstrip() if self._begun else text.strip()
        if rest:
            yield is_reasoning, rest
