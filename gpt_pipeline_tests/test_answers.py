from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.evaluation.answers import (
    ScoredAnswer,
    _scored,
    answer_metrics,
    answer_questions,
    as_record,
    encode_prompt,
    with_samples,
)
from gpt_pipeline.evaluation.generate import Generation, generate
from gpt_pipeline.evaluation.questions import Question
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.evaluation.score import score_answer
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

CONTEXT = 64


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return make_model(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=CONTEXT)).eval()


def question(number: int, *, reasoning: str = "We add.", answer: str = "12", expected: str | None = None) -> Question:
    query = f"What is {number} and more?"
    return Question(
        synth_id=f"s{number}",
        article=f"a{number}",
        exercise="math exercise",
        prompt=f"Q: {query}\n\nReasoning:\n" if reasoning else f"Q: {query}\n\nA:",
        query=query,
        reasoning=reasoning,
        answer=answer,
        expected=answer if expected is None else expected,
    )


def answered(asked: Question, text: str, *, ended: bool = True) -> ScoredAnswer:
    tokens = tuple(gpt2().encode(text))
    score = score_answer(
        text, query=asked.query, expected=asked.expected, ended=ended, with_reasoning=asked.with_reasoning
    )
    generation = Generation(tokens=tokens, ended=ended, prompt_truncated=not ended)
    return ScoredAnswer(question=asked, generation=generation, text=text, score=score)


def test_encode_prompt_continues_into_the_document_as_training_tokenised_it() -> None:
    asked = question(7)
    document = f"{asked.prompt}{asked.reasoning}\n\nA: {asked.answer}"
    whole = [EOT_TOKEN, *gpt2().encode(document)]
    assert whole[: len(encode_prompt(asked.prompt, gpt2()))] == encode_prompt(asked.prompt, gpt2())
    assert whole == [*encode_prompt(asked.answer_prompt, gpt2()), *gpt2().encode(f" {asked.answer}")]


def test_answer_questions_is_the_same_at_any_batch_size(model: LanguageModel) -> None:
    asked = [question(10**n, reasoning="" if n % 2 else "We add.") for n in range(5)]
    together = answer_questions(model, asked, gpt2(), max_new_tokens=10, context_length=CONTEXT)
    alone = answer_questions(model, asked, gpt2(), max_new_tokens=10, context_length=CONTEXT, batch_size=1)
    assert together == alone
    assert [each.question for each in together] == asked


def test_samples_are_scored_one_by_one_and_leave_the_likeliest_answer_as_it_is(model: LanguageModel) -> None:
    asked = [question(7, reasoning="", expected="1"), question(8, reasoning="", expected="nothing like this")]
    limits: dict[str, Any] = {"max_new_tokens": 6, "context_length": CONTEXT}
    likeliest = answer_questions(model, asked, gpt2(), **limits)
    drawn = with_samples(likeliest, model, gpt2(), samples=5, sampling=Sampling(), seed=0, **limits)
    assert [dataclasses.replace(each, sampled=()) for each in drawn] == likeliest
    keys = [f"0/1/{sample}" for sample in range(5)]
    prompt = encode_prompt(asked[1].prompt, gpt2())
    texts = generate(model, [prompt] * 5, draws=Draws(keys, Sampling(), length=6), **limits)
    assert drawn[1].sampled == (False,) * 5
    wanted = dataclasses.replace(asked[1], expected=gpt2().decode(texts[3].tokens))
    again = with_samples(
        [dataclasses.replace(each, question=to) for each, to in zip(likeliest, [asked[0], wanted], strict=True)],
        model,
        gpt2(),
        samples=5,
        sampling=Sampling(),
        seed=0,
        **limits,
    )
    assert again[1].sampled == (False, False, False, True, False)


def test_pass_at_1_is_the_share_of_right_samples_and_pass_at_k_whether_there_is_one() -> None:
    one, other = (answered(question(n), "We add.\n\nA: 12") for n in (1, 2))
    answers = [
        dataclasses.replace(one, sampled=(True, False, False, True)),
        dataclasses.replace(other, sampled=(False,) * 4),
    ]
    metrics = answer_metrics(answers)
    assert (metrics["pass_at_1"], metrics["pass_at_k"]) == (0.25, 0.5)
    assert as_record(answers[0], gpt2())["pass_at_k"] is True
    assert "pass_at_1" not in answer_metrics([one, other])
    assert "pass_at_k" not in as_record(one, gpt2())


def conversation(turns: int, *, system: str = "") -> Question:
    head = f"System: {system}\n\n" if system else ""
    parts = [f"Q: What is {n} and one?\n\nA: It is {n + 1}." for n in range(turns - 1)]
    prompt = "\n\n".join([*parts, "Q: And then?\n\nA:"])
    starts = [len("\n\n".join(parts[:n])) + (2 if n else 0) + len(head) for n in range(turns)]
    asked = question(0, reasoning="", answer="One more.")
    return dataclasses.replace(asked, prompt=head + prompt, turns=tuple(starts))


@pytest.mark.parametrize(("turns", "system", "first"), [(1, "", 0), (3, "", 1), (3, "Be brief.", 1), (1, "Be", 0)])
def test_answer_questions_begins_a_long_conversation_at_a_later_question(
    model: LanguageModel, turns: int, system: str, first: int
) -> None:
    asked = conversation(turns, system=system)
    room = 8 + len(encode_prompt(asked.prompt[asked.turns[first] :], gpt2()))
    (cut,) = answer_questions(model, [asked], gpt2(), max_new_tokens=8, context_length=room)
    (short,) = answer_questions(
        model,
        [dataclasses.replace(asked, prompt=asked.prompt[asked.turns[first] :], turns=(0,))],
        gpt2(),
        max_new_tokens=8,
        context_length=room,
    )
    assert cut.generation.tokens == short.generation.tokens
    assert cut.generation.prompt_truncated == (asked.turns[first] > 0)


def test_answer_to_a_conversation_is_compared_with_the_options_of_its_last_question() -> None:
    asked = dataclasses.replace(
        conversation(1), query="Which?\nA) one\nB) two", prompt="Q: Which?\nA) one\nB) two\n\nA: A\n\nQ: Why?\n\nA:"
    )
    asked = dataclasses.replace(asked, turns=(0, asked.prompt.index("Q: Why?")))
    generation = Generation(tokens=tuple(gpt2().encode(" A")), ended=True, prompt_truncated=False)
    assert _scored(asked, generation, gpt2()).score.choice_match is None
    assert _scored(dataclasses.replace(asked, turns=(0,)), generation, gpt2()).score.choice_match is not None


def test_answer_to_a_conversation_ends_where_the_model_asks_itself() -> None:
    generation = Generation(tokens=tuple(gpt2().encode(" One more.\n\nQ: And")), ended=False, prompt_truncated=False)
    found = _scored(conversation(2), generation, gpt2())
    assert (found.text, found.generation.ended, found.score.exact_match) == (" One more.", True, True)
    of_question = _scored(dataclasses.replace(conversation(2), turns=()), generation, gpt2())
    assert (of_question.generation.ended, of_question.score.exact_match) == (False, False)


def test_answer_metrics_are_means_over_the_answers_they_apply_to() -> None:
    answers = [
        answered(question(1), "We add.\n\nA: It is 12."),
        answered(question(2), "We add.\n\nA: 13"),
        answered(question(3, answer="blue sky"), "We look.\n\nA: Blue sky!"),
        answered(question(4, answer="red"), "the the the", ended=False),
    ]
    metrics = answer_metrics(answers)
    assert metrics["well_formed"] == 3 / 4
    assert metrics["correct"] == 2 / 4
    assert metrics["numeric_match"] == 1 / 2
    assert metrics["exact_match"] == 1 / 4
    assert metrics["num_questions"] == 4
    assert metrics["prompts_truncated"] == 1
    assert metrics["ended"] == 3 / 4
    assert metrics["correct/math_exercise"] == 2 / 4


def test_answer_metrics_of_choices_count_the_right_option_however_it_is_named() -> None:
    asked = [
        dataclasses.replace(question(n, answer="B"), query="Which is a colour: oak (A), red (B)?", exercise="mcq")
        for n in range(4)
    ]
    written = ("It is red.\n\nA: B", "Hm.\n\nA: It is red.", "Hm.\n\nA: A", "Hm.\n\nA: blue")
    answers = [answered(each, text) for each, text in zip(asked, written, strict=True)]
    metrics = answer_metrics([*answers, answered(question(9, answer="red"), "Hm.\n\nA: red")])
    assert metrics["choice_match"] == 2 / 4
    assert metrics["correct"] == 3 / 5
    assert metrics["correct/mcq"] == 2 / 4
    assert as_record(answers[1], gpt2())["choice_match"] is True


def test_answer_metrics_without_numbers_have_no_numeric_match() -> None:
    metrics = answer_metrics([answered(question(1, answer="blue"), "We look.\n\nA: blue")])
    assert not {"numeric_match", "choice_match"} & metrics.keys()
    assert answer_metrics([]) == {}


def test_as_record_of_an_answer_without_answer_part_keeps_what_was_written() -> None:
    record = as_record(answered(question(1), "I wonder", ended=False), gpt2())
    assert (record["reasoning"], record["answer"], record["generated"]) == ("I wonder", "", "I wonder")
    assert (record["expected"], record["correct"], record["ended"]) == ("12", False, False)
    assert record["reference_tokens"] == len(gpt2().encode("We add.\n\nA: 12"))
