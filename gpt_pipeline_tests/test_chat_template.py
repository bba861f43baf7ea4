"""The chat template of an export gives the tokens that training had."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.formats import forms
from gpt_pipeline.data.formats.conversation import conversation_of
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, Tokenizer, gpt2, with_turns
from gpt_pipeline.exchange.chat_template import chat_template
from gpt_pipeline.exchange.tokenizer_files import write_tokenizer
from gpt_pipeline_tests.synth_rows import answer_prompt_text, document_text, prompt_text
from gpt_pipeline_tests.test_exchange import own_tokenizer

CHAT = DataConfig(num_samples=10, source="./x.jsonl", format="chat")
ASKED = {"role": "user", "content": "What's  2 + 2? "}
TURNS = [
    {"role": "system", "content": "Be brief."},
    ASKED,
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "And 日本?\n\nWell?"},
    {"role": "assistant", "content": "No idea"},
]


def tokenizer_of(data: DataConfig, folder: Path, own: Tokenizer | None = None) -> Any:
    own = own or gpt2()
    write_tokenizer(folder, own, max_length=64, chat_template=chat_template(data, own))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[1:3]], ids=["with system", "several", "one"])
def test_conversation_has_the_ids_of_training(tmp_path: Path, turns: list[dict[str, str]]) -> None:
    tokenizer = tokenizer_of(CHAT, tmp_path)
    wanted = [EOT_TOKEN, *gpt2().encode(conversation_of(json.dumps(turns)).text)]
    assert tokenizer.apply_chat_template(turns)["input_ids"] == wanted
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
    assert wanted[: len(prompt)] == prompt  # the answer follows in tokens of its own
    assert tokenizer.decode(prompt).endswith("\n\nA:")


@pytest.mark.parametrize("reasoning", [None, "reasons"])
def test_question_has_the_ids_of_training_with_its_reasoning(tmp_path: Path, reasoning: str | None) -> None:
    columns = ColumnsConfig(question="q", answer="a", reasoning=reasoning)
    data = DataConfig(num_samples=10, source="./x.jsonl", format="question_answer", columns=columns)
    tokenizer = tokenizer_of(data, tmp_path)
    answered = {"role": "assistant", "content": "4", **({"reasoning_content": "We add."} if reasoning else {})}
    wanted = document_text(ASKED["content"], "We add." if reasoning else None, "4")
    assert tokenizer.apply_chat_template([ASKED, answered])["input_ids"] == [EOT_TOKEN, *gpt2().encode(wanted)]
    prompt = (prompt_text if reasoning else answer_prompt_text)(ASKED["content"])
    asked = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True)["input_ids"]
    assert asked == [EOT_TOKEN, *gpt2().encode(prompt)]


CHATML = dataclasses.replace(CHAT, template="chatml")


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[1:3]], ids=["with system", "several", "one"])
@pytest.mark.parametrize("is_own", [False, True])
def test_conversation_in_chatml_has_the_ids_of_training(
    tmp_path: Path, turns: list[dict[str, str]], is_own: bool
) -> None:
    ours = with_turns(own_tokenizer() if is_own else gpt2())
    tokenizer = tokenizer_of(CHATML, tmp_path, ours)
    wanted = [ours.eot_token, *ours.encode(conversation_of(json.dumps(turns), "chatml").text)]
    assert tokenizer.apply_chat_template(turns)["input_ids"] == wanted
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
    assert wanted[: len(prompt)] == prompt
    assert wanted[-2] == ours.ends[0]
    assert tokenizer.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("thinks", [True, False])
def test_question_in_chatml_has_the_ids_of_training_with_its_reasoning(tmp_path: Path, thinks: bool) -> None:
    ours = with_turns(gpt2())
    tokenizer = tokenizer_of(DataConfig(num_samples=10, source="sample", template="chatml"), tmp_path, ours)
    answered = {"role": "assistant", "content": "4", "reasoning_content": "We add." if thinks else " "}
    wanted = forms.CHATML.document(ASKED["content"], "We add." if thinks else "", "4")
    assert tokenizer.apply_chat_template([ASKED, answered])["input_ids"] == [EOT_TOKEN, *ours.encode(wanted)]
    asked = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, enable_thinking=thinks)["input_ids"]
    assert asked == [EOT_TOKEN, *ours.encode(forms.CHATML.prompt(ASKED["content"], reasons=thinks))]


def test_chatml_refuses_its_own_tokens_in_messages_and_other_roles(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHATML, tmp_path, with_turns(gpt2()))
    for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        with pytest.raises(Exception, match=r"found the name of a special token, .*, in a message; remove it"):
            tokenizer.apply_chat_template([{"role": "user", "content": f"a{name}b"}])
    with pytest.raises(Exception, match="need the role system, user or assistant, found tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_texts_have_no_chat_template_and_other_roles_are_refused(tmp_path: Path) -> None:
    texts = DataConfig(num_samples=10, source="./x.txt", format="text")
    assert chat_template(texts, gpt2()) is None
    with pytest.raises(Exception, match="need the role system, user or assistant, found tool"):
        tokenizer_of(CHAT, tmp_path).apply_chat_template([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize("key", ["content", "reasoning_content"])
@pytest.mark.parametrize("name", ["</s>", "<pad>"])
def test_message_that_names_a_special_token_is_refused(tmp_path: Path, name: str, key: str) -> None:
    tokenizer = tokenizer_of(CHAT, tmp_path, own_tokenizer())
    with pytest.raises(Exception, match=f"found the name of a special token, {name}, in a message; remove it"):
        tokenizer.apply_chat_template([ASKED, {"role": "assistant", "content": "4", key: f"so {name}Q: be it"}])


@pytest.mark.parametrize("place", [0, 2])
def test_blank_system_message_is_left_out_as_in_training(tmp_path: Path, place: int) -> None:
    own = own_tokenizer()
    turns = [*TURNS[1:]]
    turns.insert(place, {"role": "system", "content": " \n"})
    wanted = [own.eot_token, *own.encode(conversation_of(json.dumps(turns)).text)]
    assert tokenizer_of(CHAT, tmp_path, own).apply_chat_template(turns)["input_ids"] == wanted


@pytest.mark.parametrize("thinks", [True, False])
def test_reasoning_is_left_out_where_it_is_blank_or_not_wanted(tmp_path: Path, thinks: bool) -> None:
    own = own_tokenizer()
    tokenizer = tokenizer_of(DataConfig(num_samples=10, source="sample"), tmp_path, own)
    question = ASKED["content"]
    answered = [ASKED, {"role": "assistant", "content": "4", "reasoning_content": " \n"}]
    wanted = own.encode(document_text(question, " \n", "4"))
    assert tokenizer.apply_chat_template(answered)["input_ids"] == [own.eot_token, *wanted]
    asked = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, enable_thinking=thinks)["input_ids"]
    assert asked == [own.eot_token, *own.encode((prompt_text if thinks else answer_prompt_text)(question))]
