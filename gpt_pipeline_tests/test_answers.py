from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from gpt_pipeline.data.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.evaluation.answers import (
    ScoredAnswer,
    answer_metrics,
    answer_questions,
    as_record,
    encode_prompt,
    reference_answer_loss,
)
from gpt_pipeline.evaluation.generate import Generation
from gpt_pipeline.evaluation.questions import Question
from gpt_pipeline.evaluation.score import score_answer
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.gpt import GPT

CONTEXT = 64


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=CONTEXT)).eval()


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
    tokens = tuple(gpt2().encode_ordinary(text))
    score = score_answer(text, expected=asked.expected, ended=ended, with_reasoning=asked.with_reasoning)
    generation = Generation(tokens=tokens, ended=ended, prompt_truncated=not ended)
    return ScoredAnswer(question=asked, generation=generation, text=text, score=score)


def test_encode_prompt_continues_into_the_document_as_training_tokenised_it() -> None:
    asked = question(7)
    document = f"{asked.prompt}{asked.reasoning}\n\nA: {asked.answer}"
    whole = [EOT_TOKEN, *gpt2().encode_ordinary(document)]
    assert whole[: len(encode_prompt(asked.prompt))] == encode_prompt(asked.prompt)
    assert whole == [*encode_prompt(asked.answer_prompt), *gpt2().encode_ordinary(f" {asked.answer}")]


def test_answer_questions_is_the_same_at_any_batch_size(model: GPT) -> None:
    asked = [question(10**n, reasoning="" if n % 2 else "We add.") for n in range(5)]
    together = answer_questions(model, asked, max_new_tokens=10, context_length=CONTEXT)
    alone = answer_questions(model, asked, max_new_tokens=10, context_length=CONTEXT, batch_size=1)
    assert together == alone
    assert [each.question for each in together] == asked


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


def test_answer_metrics_without_numbers_have_no_numeric_match() -> None:
    assert "numeric_match" not in answer_metrics([answered(question(1, answer="blue"), "We look.\n\nA: blue")])
    assert answer_metrics([]) == {}


def test_as_record_of_an_answer_without_answer_part_keeps_what_was_written() -> None:
    record = as_record(answered(question(1), "I wonder", ended=False))
    assert (record["reasoning"], record["answer"], record["generated"]) == ("I wonder", "", "I wonder")
    assert (record["expected"], record["correct"], record["ended"]) == ("12", False, False)


def test_reference_answer_loss_is_the_mean_over_answer_tokens_alone(model: GPT) -> None:
    asked = [question(1, answer="twelve or so"), question(2, reasoning="", answer="9")]
    nats, n_tokens = 0.0, 0
    for each in asked:
        prompt, answer = encode_prompt(each.answer_prompt), gpt2().encode_ordinary(f" {each.answer}")
        logits = model(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1]
        nats += F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        n_tokens += len(answer)
    found = reference_answer_loss(model, asked, context_length=CONTEXT)
    assert found == pytest.approx(nats / n_tokens, rel=1e-5)


def test_reference_answer_loss_of_a_long_document_fits_the_context(model: GPT) -> None:
    long = question(1, reasoning="word " * 300, answer="x " * 100)
    assert reference_answer_loss(model, [long], context_length=CONTEXT) == pytest.approx(10.8, abs=1)
    assert reference_answer_loss(model, [], context_length=CONTEXT) is None
