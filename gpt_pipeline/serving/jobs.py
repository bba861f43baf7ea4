"""One request on its way: its texts in the engine, its time, and its client, who may leave."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.serving.batch import Event, Failure, Prompt, Text, Token
from gpt_pipeline.serving.engine import Engine
from gpt_pipeline.serving.models import Served
from gpt_pipeline.serving.written import Parts, Piece, Written

_NOTHING = Piece()


class TimeOverError(Exception):
    """A request took longer than one may."""


class WriteError(Exception):
    """A text cannot be finished; says why."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a model is to write."""

    prompts: Sequence[tuple[int, ...]]
    choices: int = 1
    """Texts for each prompt."""

    limits: Sequence[int]
    """New tokens at the most, for each prompt."""

    ends: frozenset[int]
    sampling: Sampling | None
    seed: int | None
    stops: Sequence[str]
    top: int | None
    scores_prompt: bool = False
    parts: Callable[[], Parts] | None = None
    """Makes what cuts a text into reasoning and answer; None: it stays one."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is new of one text of a request."""

    number: int
    """Of the text: those of the first prompt come first."""

    prompt: Prompt | None = None
    piece: Piece = _NOTHING
    reasoning: str = ""
    """Of a text that is cut into parts; `content` is the answer. Otherwise `content` is the piece's text."""

    content: str = ""
    finish: str | None = None
    """`stop` or `length` where the text is over."""


@dataclass(kw_only=True)
class _Choice:
    text: Text
    written: Written
    parts: Parts | None
    tokens: int = 0
    """New ones that were looked at: more may have been written before the engine heard of the end."""


@dataclass(kw_only=True)
class Job:
    """The texts of one request."""

    order: Order
    events: asyncio.Queue[tuple[int, Event]]
    deadline: float
    choices: list[_Choice] = field(default_factory=list)

    @classmethod
    def start(cls, engine: Engine, served: Served, order: Order, *, seconds: float) -> Job:
        """Put the texts of an order into the queue; they may take `seconds` from now on.

        Raises:
            QueueFullError: there is no room for them.
        """
        loop = asyncio.get_running_loop()
        job = cls(order=order, events=asyncio.Queue(), deadline=loop.time() + seconds)
        seed = secrets.randbits(63) if order.seed is None else order.seed
        for prompt, limit in zip(order.prompts, order.limits, strict=True):
            for choice in range(order.choices):
                job._add(loop, served, prompt, limit=limit, key=f"{seed}/{choice}")
        engine.submit(served.name, [choice.text for choice in job.choices])
        return job

    def _add(
        self, loop: asyncio.AbstractEventLoop, served: Served, prompt: tuple[int, ...], *, limit: int, key: str
    ) -> None:
        number, order = len(self.choices), self.order

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self.events.put_nowait, (number, event))

        text = Text(
            prompt=prompt,
            limit=limit,
            ends=order.ends,
            sampling=order.sampling,
            key=key,
            top=order.top,
            scores_prompt=order.scores_prompt,
            tell=tell,
        )
        written = Written(tokenizer=served.writer.tokenizer, stops=order.stops)
        self.choices.append(_Choice(text=text, written=written, parts=order.parts() if order.parts else None))

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.order.prompts))

    @property
    def new_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def cancel(self) -> None:
        """Give up the places of the texts that are not finished."""
        for choice in self.choices:
            choice.text.cancelled = True

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what is new until all texts are over.

        Raises:
            TimeOverError: they were not over in time.
            WriteError: one cannot be finished.
        """
        loop, running = asyncio.get_running_loop(), set(range(len(self.choices)))
        try:
            while running:
                try:
                    number, event = await asyncio.wait_for(self.events.get(), self.deadline - loop.time())
                except TimeoutError:
                    raise TimeOverError from None
                if number not in running:
                    continue  # what was written before the engine heard of its end
                update = _update(number, self.choices[number], event)
                if update.finish is not None:
                    running.remove(number)
                    self.choices[number].text.cancelled = True
                yield update
        finally:
            self.cancel()


def _update(number: int, choice: _Choice, event: Event) -> Update:
    if isinstance(event, Failure):
        raise WriteError(event.reason)
    if isinstance(event, Prompt):
        return Update(number=number, prompt=event)
    if isinstance(event, Token):
        choice.tokens += 1
        piece = choice.written.add(event)
        finish = "stop" if choice.written.stopped else None
    else:
        piece, finish = choice.written.end(), event.reason
        if choice.written.stopped:
            finish = "stop"
    if choice.parts is None:
        return Update(number=number, piece=piece, content=piece.text, finish=finish)
    cut = [*choice.parts.add(piece.text)]
    if choice.parts.ended:
        finish = "stop"
    if finish is not None:
        cut += choice.parts.end()
    return Update(
        number=number,
        piece=piece,
        reasoning="".join(text for is_reasoning, text in cut if is_reasoning),
        content="".join(text for is_reasoning, text in cut if not is_reasoning),
        finish=finish,
    )
