"""What stands around the parts of a document: the plain form, or ChatML's turns.

In a document of ChatML the characters `START` and `END` stand for the tokens `<|im_start|>` and `<|im_end|>`. Unicode
keeps both for a program's own use, so texts do not hold them: a row that does is dropped, and in what someone types
they are replaced. So the names of the tokens are text in a document, wherever they stand, and never the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.data.formats.synth_text import ANSWER_MARK, QUERY_MARK, REASONING_MARK

Template = Literal["plain", "chatml"]

START, END = "\ufdd0", "\ufdd1"
MARKS: Mapping[str, str] = {START: "<|im_start|>", END: "<|im_end|>"}
"""The names of the tokens that the characters stand for."""

_SHOWN = str.maketrans(dict(MARKS))
_REPLACED = str.maketrans(dict.fromkeys(MARKS, "\ufffd"))


@dataclass(frozen=True, kw_only=True)
class Form:
    """What stands before, between and behind question, reasoning and answer."""

    query: str
    """Before a question."""

    reasoning: str
    """Between question and reasoning."""

    answer: str
    """Between question and answer, where nothing is reasoned."""

    reasoned: str
    """Between reasoning and answer."""

    end: str = ""
    """Behind an answer."""

    has_marks: bool = False
    """Whether `START` and `END` stand for tokens."""

    @property
    def size(self) -> int:
        """What a text has besides its parts, in bytes, at most."""
        answered = max(self.reasoning + self.reasoned, self.answer, key=len)
        return len(f"{self.query}{answered}{self.end}".encode())

    @property
    def unlearnt_bytes(self) -> int:
        """Bytes behind an answer that belong neither to it nor to what ends it."""
        return len(self.end.partition(END)[2])

    def document(self, query: str, reasoning: str, answer: str) -> str:
        """Return the text of a document; an empty reasoning is left out with what stands around it."""
        between = f"{self.reasoning}{reasoning}{self.reasoned}" if reasoning else self.answer
        return f"{self.query}{query}{between}{answer}{self.end}"

    def prompt(self, query: str, *, reasons: bool) -> str:
        """Return a document up to where the model takes over: with its reasoning, or with its answer."""
        # The blank behind `A:` belongs to the answer's first token.
        return f"{self.query}{query}{self.reasoning if reasons else self.answer.rstrip(' ')}"


PLAIN = Form(query=QUERY_MARK, reasoning=REASONING_MARK, answer=ANSWER_MARK, reasoned=ANSWER_MARK)
_ANSWERING = f"{END}\n{START}assistant\n"
CHATML = Form(
    query=f"{START}user\n",
    reasoning=f"{_ANSWERING}<think>\n",
    answer=_ANSWERING,
    reasoned="\n</think>\n\n",
    end=f"{END}\n",
    has_marks=True,
)
FORMS: Mapping[str, Form] = {"plain": PLAIN, "chatml": CHATML}


def turn(role: str, content: str) -> str:
    """Return a message as a turn of ChatML."""
    return f"{START}{role}\n{content}{END}\n"


def with_names(text: str) -> str:
    """Return the text of a document for people: with the tokens' names in the place of what stands for them."""
    return text.translate(_SHOWN)


def without_marks(text: str) -> str:
    """Return a text that someone typed without the characters that stand for tokens."""
    return text.translate(_REPLACED)
