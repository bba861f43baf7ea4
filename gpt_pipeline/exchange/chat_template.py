"""The documents' own form of questions and answers as a chat template of `transformers` (Jinja)."""

from __future__ import annotations

import json

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import forms, has_questions, has_reasoning
from gpt_pipeline.data.formats.conversation import BETWEEN, MARKS
from gpt_pipeline.data.formats.synth_text import ANSWER_MARK, REASONING_MARK
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.exchange.tokenizer_files import special_names

_REFUSED_ROLE = "{{ raise_exception('need the role system, user or assistant, found ' + message.role) }}"


def chat_template(data: DataConfig, tokenizer: Tokenizer, *, always_reasons: bool = False) -> str | None:
    """Return the template whose text has the tokens of training; None where documents are no questions.

    Messages have `role` and `content`; that of the assistant may have `reasoning_content`. The generation prompt ends
    where the model has to go on: with its reasoning, if documents have one and `enable_thinking` is not false, or
    `always_reasons`; else with its answer. A blank system message or reasoning is left out, as in documents. A message
    that names a special token is refused: in documents the name is text, but `transformers` would make it the token.
    """
    if not has_questions(data):
        return None
    if tokenizer.marks:
        return _chatml_template(data, tokenizer)
    answer = begun = json.dumps(ANSWER_MARK.rstrip(" "))
    if has_reasoning(data):
        begun = json.dumps(REASONING_MARK)
        if not always_reasons:
            begun = f"{answer} if enable_thinking is defined and not enable_thinking else {begun}"
    system, user, assistant = (json.dumps(MARKS[role]) for role in ("system", "user", "assistant"))
    reasoning = json.dumps(REASONING_MARK.removeprefix(BETWEEN))
    return (
        f"{_each_message(tokenizer)}"
        f"{{% if not loop.first %}}{{{{ {json.dumps(BETWEEN)} }}}}{{% endif %}}"
        f"{{% if message.role == 'system' %}}{{{{ {system} + message.content }}}}"
        f"{{% elif message.role == 'user' %}}{{{{ {user} + message.content }}}}"
        "{% elif message.role == 'assistant' %}"
        "{% if (message.reasoning_content or '').strip() %}"
        f"{{{{ {reasoning} + message.reasoning_content + {json.dumps(BETWEEN)} }}}}"
        "{% endif %}"
        f"{{{{ {assistant} + message.content }}}}"
        f"{{% else %}}{_REFUSED_ROLE}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {begun} }}}}{{% endif %}}"
    )


def _each_message(tokenizer: Tokenizer) -> str:
    """Return the beginning of both templates: the loop over messages, and what is refused in them."""
    return (
        "{{ bos_token }}"
        "{% for message in messages if message.role != 'system' or message.content.strip() %}"
        f"{{% for name in {json.dumps(special_names(tokenizer), ensure_ascii=False)} %}}"
        "{% if name in message.content or name in (message.reasoning_content or '') %}"
        "{{ raise_exception('found the name of a special token, ' + name + ', in a message; remove it') }}"
        "{% endif %}{% endfor %}"
    )


def _chatml_template(data: DataConfig, tokenizer: Tokenizer) -> str:
    """Return the same for documents in ChatML, as `forms` writes them."""
    form = forms.CHATML
    start, end, thought = (json.dumps(forms.with_names(text)) for text in (forms.START, form.end, form.reasoned))
    asking = form.answer.removeprefix(form.end)
    thinking = form.reasoning.removeprefix(form.answer)
    answer, opened = json.dumps(forms.with_names(asking)), json.dumps(thinking)
    begun = answer
    if has_reasoning(data):
        begun = f"{answer} + ('' if enable_thinking is defined and not enable_thinking else {opened})"
    return (
        f"{_each_message(tokenizer)}"
        f"{{% if message.role not in ['system', 'user', 'assistant'] %}}{_REFUSED_ROLE}{{% endif %}}"
        f"{{{{ {start} + message.role + '\\n' }}}}"
        "{% if message.role == 'assistant' and (message.reasoning_content or '').strip() %}"
        f"{{{{ {opened} + message.reasoning_content + {thought} }}}}"
        "{% endif %}"
        f"{{{{ message.content + {end} }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {begun} }}}}{{% endif %}}"
    )
