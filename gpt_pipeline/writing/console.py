"""What a model writes, on the terminal: one text, or one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gpt_pipeline.writing.stream import Manner, Writer

Say = Callable[[str], None]

_ENDS = {
    "limit": "stopped after {tokens} tokens: --max-new-tokens",
    "context": "stopped: prompt and text fill the {context} tokens that the model was trained at",
}


def write_once(writer: Writer, manner: Manner, prompt: str, *, say: Say) -> None:
    """Write what the model says to `prompt` to the standard output as it comes; `say` gets what is to be known."""
    for piece in writer.write(prompt, manner):
        _put(piece)
    _put("\n")
    if writer.prompt_truncated:
        say(f"[the prompt was too long for {writer.context_length} tokens: its beginning was left out]")
    if writer.end in _ENDS:
        text = _ENDS[writer.end].format(tokens=manner.max_new_tokens, context=writer.context_length)
        say(f"[{text}]")


def converse(writer: Writer, manner: Manner, *, say: Say) -> None:
    """Answer one line of the standard input after the other until it ends; each by itself, without those before.

    Ctrl+C breaks an answer off; between two answers it leaves.
    """
    asking = sys.stdin.isatty()
    if asking:
        say("One question a line. Ctrl+C stops an answer, Ctrl+D (Windows: Ctrl+Z and Enter) leaves.")
    while (line := _next_line("> " if asking else "")) is not None:
        if not line.strip():
            continue
        try:
            write_once(writer, manner, line, say=say)
        except KeyboardInterrupt:
            _put("\n")
            say("[stopped]")


def _next_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            _put("\n")
        return None


def _put(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    # A console or a pipe on Windows may know few letters; one it lacks must not end the text.
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
