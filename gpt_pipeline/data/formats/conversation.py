"""A conversation as text, and the parts of it that a model is to write itself.

A turn reads as a document of `question_answer` does: `Q: ...`, a blank line, `A: ...`. Turns have a blank line between
them, and a system message is a paragraph of its own, `System: ...`, where it stands. What ends an answer is the mark of
the message behind it (a blank line and `Q:`), or the document's end. In ChatML each message is a turn, and its end mark
ends an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from gpt_pipeline.data.formats.forms import CHATML, END, START, Form, Template, turn, without_marks
from gpt_pipeline.data.formats.synth_text import ANSWER_MARK, QUERY_MARK, is_blank

Role = Literal["system", "user", "assistant"]
BETWEEN = "\n\n"
"""Between two messages."""

OTHER_ROLE = "other_role"
"""Why conversations with a role that is neither system, user nor assistant become no documents."""

TEXT_PARTS = "text_parts"
"""Why conversations with a content that is a list of text parts become no documents, unless `data.join_parts`."""

MARKS: Mapping[Role, str] = {
    "system": "System: ",
    "user": QUERY_MARK,
    "assistant": ANSWER_MARK.removeprefix(BETWEEN),
}
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
_LONGEST_MARK = max(len(f"{BETWEEN}{mark}") for mark in MARKS.values())
_NEXT_MESSAGE = re.compile("|".join(re.escape(f"{BETWEEN}{mark.rstrip(' ')}") for mark in MARKS.values()))


class UnusableError(Exception):
    """A row's messages are no conversation to learn from; the text is the reason under which the row is counted."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one side says."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages as one text, up to the last answer."""

    text: str

    query_start: int
    query_end: int
    """The conversation from its first question to the end of its last, in characters."""

    answer_start: int
    """Where the last answer begins, in characters; it is the text's end."""

    answer_bytes: int
    """Size of the last answer in UTF-8."""

    spans: Sequence[int]
    """Start and end of each answer, one after the other, in bytes of UTF-8; what ends an answer belongs to it."""

    plain: str
    """The same text without a template: by it the document is called, so that any template holds out the same ones."""


def conversation_of(messages: str | None, template: Template = "plain", *, join_parts: bool = False) -> Conversation:
    """Return the conversation that a row's messages, a list in JSON, are.

    With `join_parts`, a content may be a list of text parts.

    Raises:
        UnusableError: there is no question with an answer behind it, or a message is not one.
    """
    read = _messages(messages, join_parts=join_parts)
    last = max((place for place, message in enumerate(read) if message.role == "assistant"), default=None)
    if last is None:
        raise UnusableError("no_answer")
    told = read[: last + 1]  # what is asked behind it has no answer
    for role, reason in (("user", "no_question"), ("assistant", "no_answer")):
        if any(message.role == role and is_blank(message.content) for message in told):
            raise UnusableError(reason)
    if all(message.role != "user" for message in told):
        raise UnusableError("no_question")
    said = [message for message in told if not is_blank(message.content)]
    if template == "plain":
        return rendered(said)
    if any(without_marks(message.content) != message.content for message in said):
        raise UnusableError("reserved_character")
    return in_turns(said)


def in_turns(messages: Sequence[Message]) -> Conversation:
    """Return messages, the last of them an answer, as turns of ChatML."""
    texts = [turn(message.role, message.content) for message in messages]
    begins = [0, *accumulate(map(len, texts))]
    sizes = [0, *accumulate(len(text.encode()) for text in texts)]
    asked, spans = [], []
    for place, message in enumerate(messages):
        if message.role == "user":
            last = begins[place + 1] - len(CHATML.end)
            asked.append((last - len(message.content), last))
        elif message.role == "assistant":
            last = sizes[place + 1] - CHATML.unlearnt_bytes
            spans += [last - len(f"{message.content}{END}".encode()), last]
    return Conversation(
        text="".join(texts),
        query_start=asked[0][0],
        query_end=asked[-1][1],
        answer_start=begins[-1] - len(f"{messages[-1].content}{CHATML.end}"),
        answer_bytes=sizes[-1] - spans[-2],
        spans=spans,
        plain=rendered(messages).text,
    )


def rendered(messages: Sequence[Message]) -> Conversation:
    """Return messages, the last of them an answer, as text."""
    texts: list[str] = []
    spans: list[int] = []
    asked: list[tuple[int, int]] = []
    characters = size = 0
    for place, message in enumerate(messages):
        head = f"{BETWEEN if place else ''}{MARKS[message.role]}"
        content_size = len(message.content.encode())
        begin = characters + len(head)
        if message.role == "user":
            asked.append((begin, begin + len(message.content)))
        elif message.role == "assistant":
            end = size + len(head) + content_size
            spans += [end - content_size, end + _ending_bytes(messages, place)]
        texts += [head, message.content]
        characters, size = begin + len(message.content), size + len(head) + content_size
    text = "".join(texts)
    return Conversation(
        text=text,
        query_start=asked[0][0],
        query_end=asked[-1][1],
        answer_start=characters - len(messages[-1].content),
        answer_bytes=content_size,
        spans=spans,
        plain=text,
    )


def _ending_bytes(messages: Sequence[Message], place: int) -> int:
    """Return the bytes behind a message that end it; none for the last: `<|endoftext|>` does that."""
    if place + 1 == len(messages):
        return 0
    return len(f"{BETWEEN}{MARKS[messages[place + 1].role].rstrip(' ')}")  # the blank is the next message's


def question_starts(text: str, query_start: int, spans: Sequence[int]) -> tuple[int, ...]:
    """Return where the first question, and those that follow an answer, begin in a conversation's text, in characters.

    There the text can be cut: what is left begins with a question.
    """
    letters = text.encode()
    ends = spans[1:-1:2]
    passed = accumulate(len(letters[begin:end].decode()) for begin, end in pairwise([0, *ends]))
    starts = {query_start - len(QUERY_MARK), *(end - len(QUERY_MARK.rstrip(" ")) for end in passed)}
    return tuple(start for start in sorted(starts) if text.startswith(QUERY_MARK, start))


def prompt_of(messages: Sequence[Message], form: Form, *, reasons: bool) -> str:
    """Return a conversation up to where the model takes over, with its reasoning or with its answer.

    `rendered` and `in_turns` write documents so. What someone typed gives none of the tokens that ChatML has.
    """
    begun = form.prompt("", reasons=reasons).removeprefix(form.query)
    if form.has_marks:
        said = "".join(turn(message.role, without_marks(message.content)) for message in messages)
        return f"{said}{begun.removeprefix(form.end)}"
    return f"{BETWEEN.join(f'{MARKS[message.role]}{message.content}' for message in messages)}{begun}"


def turn_starts(prompt: str) -> tuple[int, ...]:
    """Return the same of the beginning of a document in ChatML."""
    begins = [place for place, letter in enumerate(prompt) if letter == START]
    roles = [prompt[begin + 1 :].partition("\n")[0] for begin in begins]
    asking = [place for place, role in enumerate(roles) if role == "user"]
    return tuple(begins[place] for place in asking if place == asking[0] or roles[place - 1] == "assistant")


def first_answer_of(pieces: Iterable[str], *, reasons: bool = False) -> Iterator[str]:
    """Yield what a model writes up to where it begins another message; what could be its mark is held back.

    With `reasons` it may begin with reasoning, behind which the answer's own mark stands.
    """
    held = ""
    for piece in pieces:
        held += piece
        if reasons and (found := _NEXT_MESSAGE.search(held)) and found[0] == ANSWER_MARK.rstrip(" "):
            yield held[: found.end()]
            held, reasons = held[found.end() :], False
        held, goes_on = first_answer(held)
        if goes_on:
            break
        begins = held.find("\n", max(0, len(held) - _LONGEST_MARK))
        ready = len(held) if begins < 0 else begins
        yield held[:ready]
        held = held[ready:]
    yield held


def first_answer(generated: str) -> tuple[str, bool]:
    """Return what a model wrote up to where it begins another message, and whether it did."""
    found = _NEXT_MESSAGE.search(generated)
    return (generated, False) if found is None else (generated[: found.start()], True)


def _messages(messages: str | None, *, join_parts: bool) -> list[Message]:
    if messages is None or is_blank(messages):
        raise UnusableError("no_messages")
    try:
        values = json.loads(messages)
    except (ValueError, RecursionError):
        raise UnusableError("odd_messages") from None
    if values is None or values == []:
        raise UnusableError("no_messages")
    if not isinstance(values, list):
        raise UnusableError("odd_messages")
    return [_message(value, join_parts=join_parts) for value in values]


def _message(value: Any, *, join_parts: bool) -> Message:
    if not isinstance(value, dict):
        raise UnusableError("odd_messages")
    role, content = (
        next((value[name] for name in names if value.get(name) is not None), "")
        for names in (("role", "from"), ("content", "value"))
    )
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        if not join_parts:
            raise UnusableError(TEXT_PARTS)
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise UnusableError("odd_messages")
    if role not in _ROLES:
        raise UnusableError(OTHER_ROLE if role else "odd_messages")
    try:
        content.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise UnusableError("invalid_utf8") from None
    return Message(role=_ROLES[role], content=content)


def _is_text_part(value: Any) -> bool:
    """Whether a value is `{"type": "text", "text": ...}`; a table's rows may have further fields, which are null."""
    return isinstance(value, dict) and value.get("type") == "text" and isinstance(value.get("text"), str)
