"""The Modelfile by which Ollama makes a model of a GGUF file.

Ollama writes prompts by templates in Go's language and leaves the chat template in the file alone; so this one is made
of what the chat template writes for single messages.
"""

from __future__ import annotations

from collections.abc import Callable

import jinja2

MODELFILE_NAME = "Modelfile"

_ROLES = ("system", "user", "assistant")
_CONTENT = "CONTENT"  # stands for a message

_Written = Callable[..., str]


def modelfile(file: str, *, chat_template: str | None, max_length: int) -> str:
    """Return the Modelfile of the GGUF `file`, which lies beside it.

    It generates greedily, as evaluations do, within the `max_length` tokens that were trained. An answer also ends
    where the next question would begin: a model of conversations may go on with one.
    """
    lines = [f"FROM ./{file}"]
    if chat_template is None:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    else:
        written = _writer(chat_template)
        lines.append(f'TEMPLATE """{_go_template(written)}"""')
        lines.append(f'PARAMETER stop """{_later(written, "user").rstrip(" ")}"""')
    return "\n".join(
        [*lines, f"PARAMETER num_ctx {max_length}", "PARAMETER temperature 0", "PARAMETER repeat_penalty 1\n"]
    )


def _writer(chat_template: str) -> _Written:
    """Return what writes messages of these roles by the template, without the token before all: llama.cpp puts it."""
    template = jinja2.Environment().from_string(chat_template)

    def written(*roles: str, prompted: bool = False) -> str:
        messages = [{"role": role, "content": _CONTENT} for role in roles]
        return template.render(messages=messages, bos_token="", add_generation_prompt=prompted)

    return written


def _go_template(written: _Written) -> str:
    """Return, in Go's language, what the chat template writes: each message by its role, then the prompt."""
    prompt = written("user", prompted=True).removeprefix(written("user"))
    choices = "{{ else }}".join(f'{{{{ if eq $message.Role "{role}" }}}}{_around(written, role)}' for role in _ROLES)
    ends = "{{ end }}" * len(_ROLES)
    return f"{{{{ range $index, $message := .Messages }}}}{choices}{ends}{{{{ end }}}}{prompt}"


def _around(written: _Written, role: str) -> str:
    """Return a message of this role; what parts it from the one before depends on whether there is one."""
    before, after = written(role).split(_CONTENT)
    parting = _later(written, role).removesuffix(before)
    parted = f"{{{{ if $index }}}}{parting}{{{{ end }}}}" if parting else ""
    return f"{parted}{before}{{{{ $message.Content }}}}{after}"


def _later(written: _Written, role: str) -> str:
    """Return what stands before a message of this role that is not the first."""
    return written("user", role).removeprefix(written("user")).split(_CONTENT)[0]
