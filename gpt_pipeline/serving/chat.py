"""A conversation as the prompt of a training: which tokens the model reads, and what ends its answer.

Both are asked here and nowhere else in this package, so that another form of documents is a change of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import has_conversations, has_questions, has_reasoning
from gpt_pipeline.data.formats.conversation import BETWEEN, MARKS, Message, Role, prompt_of
from gpt_pipeline.data.formats.forms import CHATML, PLAIN, Form
from gpt_pipeline.data.formats.synth_text import is_blank
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.answers import encode_prompt
from gpt_pipeline.serving.written import Parts


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message."""

    role: Role
    content: str
    reasoning: str = ""
    """Of an earlier answer."""


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """The form in which a model was trained on questions."""

    tokenizer: Tokenizer
    reasons: bool
    """Whether documents reason before they answer."""

    converses: bool
    """Whether documents go on behind an answer, so that the mark of the next message ends it."""

    @classmethod
    def of(cls, data: DataConfig, tokenizer: Tokenizer) -> ChatForm | None:
        """Return the form of a training's documents; None where they are no questions."""
        if not has_questions(data):
            return None
        return cls(tokenizer=tokenizer, reasons=has_reasoning(data), converses=has_conversations(data))

    @property
    def form(self) -> Form:
        """What stands around the parts of a document."""
        return CHATML if self.tokenizer.marks else PLAIN

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset(self.tokenizer.ends)

    def prompt(self, turns: Sequence[Turn], *, reasoning: bool) -> list[int]:
        """Return the tokens up to where the model goes on: with its reasoning, or at once with its answer."""
        said = [turn for turn in turns if turn.role != "system" or not is_blank(turn.content)]
        if self.form.has_marks:
            text = prompt_of([_message(turn) for turn in said], self.form, reasons=reasoning)
        else:
            begun = self.form.prompt("", reasons=reasoning).removeprefix(self.form.query)
            text = BETWEEN.join(map(_paragraphs, said)) + begun
        return encode_prompt(text, self.tokenizer)

    def parts(self, *, reasoning: bool) -> Parts:
        """Return what cuts the text behind such a prompt into reasoning and answer."""
        goes_on = self.converses and not self.form.has_marks
        marks = [f"{BETWEEN}{mark.rstrip(' ')}" for mark in MARKS.values()] if goes_on else []
        # The blank behind `A:` belongs to the answer's first token.
        return Parts(answer_mark=self.form.reasoned.rstrip(" ") if reasoning else None, end_marks=marks)


def _message(turn: Turn) -> Message:
    """Return a message of ChatML; the reasoning of an earlier answer stands in it, as in a document."""
    if turn.role != "assistant" or is_blank(turn.reasoning):
        return Message(role=turn.role, content=turn.content)
    opened = CHATML.reasoning.removeprefix(CHATML.answer)
    return Message(role=turn.role, content=f"{opened}{turn.reasoning}{CHATML.reasoned}{turn.content}")


def _paragraphs(turn: Turn) -> str:
    """Return a message of the plain form; the reasoning of an earlier answer is a paragraph before it."""
    answer = f"{MARKS[turn.role]}{turn.content}"
    if turn.role != "assistant" or is_blank(turn.reasoning):
        return answer
    return f"{PLAIN.reasoning.removeprefix(BETWEEN)}{turn.reasoning}{BETWEEN}{answer}"
