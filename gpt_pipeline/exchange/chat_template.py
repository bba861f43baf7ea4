"""The documents' own form of questions and answers as a chat template of `transformers` (Jinja)."""

from __future__ import annotations

import json

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import has_questions, has_reasoning
from gpt_pipeline.data.formats.conversation import BETWEEN, MARKS
from gpt_pipeline.data.formats.synth_text import ANSWER_MARK, REASONING_MARK


def chat_template(data: DataConfig) -> str | None:
    """Return the template whose text has the tokens of training; None where documents are no questions.

    Messages have `role` and `content`; that of the assistant may have `reasoning_content`. The generation prompt ends
    where the model has to go on: with its reasoning, if documents have one, else with its answer.
    """
    if not has_questions(data):
        return None
    begun = json.dumps(REASONING_MARK if has_reasoning(data) else ANSWER_MARK.rstrip(" "))
    system, user, assistant = (json.dumps(MARKS[role]) for role in ("system", "user", "assistant"))
    reasoning = json.dumps(REASONING_MARK.removeprefix(BETWEEN))
    return (
        "{{ bos_token }}"
        "{% for message in messages %}"
        f"{{% if not loop.first %}}{{{{ {json.dumps(BETWEEN)} }}}}{{% endif %}}"
        f"{{% if message.role == 'system' %}}{{{{ {system} + message.content }}}}"
        f"{{% elif message.role == 'user' %}}{{{{ {user} + message.content }}}}"
        "{% elif message.role == 'assistant' %}"
        "{% if message.reasoning_content %}"
        f"{{{{ {reasoning} + message.reasoning_content + {json.dumps(BETWEEN)} }}}}"
        "{% endif %}"
        f"{{{{ {assistant} + message.content }}}}"
        "{% else %}{{ raise_exception('need the role system, user or assistant, found ' + message.role) }}{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {begun} }}}}{{% endif %}}"
    )
