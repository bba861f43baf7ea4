"""Put questions to a model and score its answers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.data.formats.conversation import first_answer
from gpt_pipeline.data.formats.forms import with_names
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.generate import Generation, generate, longest_prompt
from gpt_pipeline.evaluation.questions import Question
from gpt_pipeline.evaluation.result import exercise_names
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.evaluation.score import Score, score_answer, split_answer
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.row import Watch, unwatched

_SAMPLES_AT_ONCE = 64
_SCORES = tuple(each.name for each in dataclasses.fields(Score))


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """The model's answer to one question, and how good it is."""

    question: Question
    generation: Generation
    text: str
    """The whole continuation; of a conversation up to where the model begins the next message."""

    score: Score
    sampled: tuple[bool, ...] = ()
    """Whether each of the answers that were drawn is right; none were, if empty."""

    @property
    def passes(self) -> dict[str, Any]:
        """The share of drawn answers that are right, and whether any is; empty if none were drawn.

        Their means over questions are pass@1 and pass@k (Chen et al. 2021, "Evaluating large language models trained on
        code", with as many samples as k).
        """
        if not self.sampled:
            return {}
        return {"pass_at_1": sum(self.sampled) / len(self.sampled), "pass_at_k": any(self.sampled)}


def answer_questions(
    model: LanguageModel,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
    context_length: int,
    batch_size: int = 16,
    watch: Watch = unwatched,
) -> list[ScoredAnswer]:
    """Return the model's greedy answer to each question, scored, in the order of the questions.

    A conversation that leaves no room to answer begins at a later question of its own.
    """
    prompts = _prompts(questions, tokenizer, max_new_tokens=max_new_tokens, context_length=context_length)
    generations = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        context_length=context_length,
        batch_size=batch_size,
        ends=tokenizer.ends,
        watch=watch,
    )
    return [
        _scored(question, _noted_as_cut(generation, prompt, question, tokenizer), tokenizer)
        for question, prompt, generation in zip(questions, prompts, generations, strict=True)
    ]


def with_samples(
    answers: Sequence[ScoredAnswer],
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    context_length: int,
    watch: Watch = unwatched,
) -> list[ScoredAnswer]:
    """Return the answers, each with whether `samples` more that are drawn to its question are right.

    What is drawn depends on the seed and the question's place alone: other weights meet the same chance.
    """
    questions = [answer.question for answer in answers]
    prompts = _prompts(questions, tokenizer, max_new_tokens=max_new_tokens, context_length=context_length)
    places = [place for place in range(len(questions)) for _ in range(samples)]
    keys = [f"{seed}/{place}/{sample}" for place in range(len(questions)) for sample in range(samples)]
    drawn = generate(
        model,
        [prompts[place] for place in places],
        max_new_tokens=max_new_tokens,
        context_length=context_length,
        batch_size=_SAMPLES_AT_ONCE,
        ends=tokenizer.ends,
        draws=Draws(keys, sampling, length=max_new_tokens),
        watch=watch,
    )
    right = [
        _scored(questions[place], generation, tokenizer).score.correct
        for place, generation in zip(places, drawn, strict=True)
    ]
    return [
        dataclasses.replace(answer, sampled=tuple(right[place * samples : (place + 1) * samples]))
        for place, answer in enumerate(answers)
    ]


def _prompts(
    questions: Sequence[Question], tokenizer: Tokenizer, *, max_new_tokens: int, context_length: int
) -> list[list[int]]:
    longest = longest_prompt(max_new_tokens=max_new_tokens, context_length=context_length)
    return [_prompt(question, longest, tokenizer) for question in questions]


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of the beginning of a document after `<|endoftext|>`, as in training."""
    return [tokenizer.eot_token, *tokenizer.encode(text)]


def _prompt(question: Question, longest: int, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a prompt, of a conversation as many last turns as are at most `longest`, at least one."""
    starts = iter((0, *question.turns))
    tokens = encode_prompt(question.prompt[next(starts) :], tokenizer)
    while len(tokens) > longest and (start := next(starts, None)) is not None:
        tokens = encode_prompt(question.prompt[start:], tokenizer)
    return tokens


def _noted_as_cut(
    generation: Generation, prompt: Sequence[int], question: Question, tokenizer: Tokenizer
) -> Generation:
    """Return the generation, marked as that of a prompt which lost its beginning if turns of it were left out."""
    is_cut = bool(question.turns) and len(prompt) < len(encode_prompt(question.prompt, tokenizer))
    return dataclasses.replace(generation, prompt_truncated=True) if is_cut else generation


def answer_metrics(answers: Sequence[ScoredAnswer], names: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return the metrics of all answers together; shares and F1 in [0, 1], empty without answers.

    `names` are those of the exercises, as `exercise_names` gives them; null: of these questions' own.
    """
    if not answers:
        return {}
    means = {
        **{name: _mean(getattr(each.score, name) for each in answers) for name in ("correct", *_SCORES)},
        "ended": _mean(each.generation.ended for each in answers),
        "new_tokens": _mean(len(each.generation.tokens) for each in answers),
        "num_questions": float(len(answers)),
        "prompts_truncated": float(sum(each.generation.prompt_truncated for each in answers)),
        **{name: _mean(each.passes.get(name) for each in answers) for name in ("pass_at_1", "pass_at_k")},
    }
    present = {name: value for name, value in means.items() if value is not None}
    return {**present, **_correct_by_exercise(answers, names)}


def _correct_by_exercise(answers: Sequence[ScoredAnswer], names: Mapping[str, str] | None) -> dict[str, float]:
    names = names or exercise_names(each.question.exercise for each in answers)
    if {each.question.exercise for each in answers} == {"unknown"}:
        return {}
    groups: dict[str, list[bool]] = defaultdict(list)
    for each in answers:
        groups[f"correct/{names[each.question.exercise]}"].append(each.score.correct)
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}


def as_record(answer: ScoredAnswer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return an answer as JSON values, for the file, the tracker and the report."""
    question, generation = answer.question, answer.generation
    parts = split_answer(answer.text, with_reasoning=question.with_reasoning, form=question.form)
    return {
        "synth_id": question.synth_id,
        "exercise": question.exercise,
        "question": with_names(question.query) if question.form.has_marks else question.query,
        "expected": question.expected,
        "reference_reasoning": question.reasoning,
        "reference_answer": question.answer,
        "reference_tokens": len(tokenizer.encode(_reference(question))),
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "generated": answer.text,
        "ended": generation.ended,
        "correct": answer.score.correct,
        **{name: getattr(answer.score, name) for name in _SCORES},
        "new_tokens": len(generation.tokens),
        "prompt_truncated": generation.prompt_truncated,
        **answer.passes,
    }


def _scored(question: Question, generation: Generation, tokenizer: Tokenizer) -> ScoredAnswer:
    text = tokenizer.decode(generation.tokens)
    if question.turns and not question.form.has_marks:
        text, goes_on = first_answer(text)
        generation = dataclasses.replace(generation, ended=generation.ended or goes_on)
    score = score_answer(
        text,
        query=question.last_query,
        expected=question.expected,
        ended=generation.ended,
        with_reasoning=question.with_reasoning,
        form=question.form,
    )
    return ScoredAnswer(question=question, generation=generation, text=text, score=score)


def _reference(question: Question) -> str:
    """Return the rest of the document after the prompt, up to the end of its answer."""
    return question.text.removeprefix(question.prompt).removesuffix(question.form.end)


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None
