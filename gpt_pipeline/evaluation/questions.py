"""The questions each checkpoint answers: drawn from held-out groups only, the same ones every time."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.data.config import PLAIN, DataConfig
from gpt_pipeline.data.documents.split import read_side
from gpt_pipeline.data.documents.stage import document_files
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.data.formats.conversation import question_starts, turn_starts
from gpt_pipeline.data.formats.forms import FORMS, MARKS, Form
from gpt_pipeline.evaluation.score import constraint_result
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import StageResult

_logger = logging.getLogger(__name__)

QUESTIONS_VERSION = "1"
"""Raise it when the same data, count and seed give other questions."""

_OFFSETS = ("query_start", "query_end", "reasoning_start", "reasoning_end", "answer_start")
COLUMNS = ("id", "kind", "group", "constraints", "expected", "text", "spans", *_OFFSETS)
_BATCH_ROWS = 2048  # some 6 MB of text
_AS_LINES = str.maketrans(dict.fromkeys(MARKS, "\n"))
_SPARE = 4  # candidates kept for each question asked for, since some turn out to stand in the training documents too


@dataclass(frozen=True, kw_only=True)
class Question:
    """A held-out document, cut into what the model is given and what it should write."""

    synth_id: str
    article: str
    exercise: str
    prompt: str
    """The document up to where the model takes over: `Q: {query}\\n\\nReasoning:\\n`, or `Q: {query}\\n\\nA:` for a
    document without reasoning, since that is the form in which training showed documents of its kind."""

    query: str
    """Of a conversation all that was said from its first question on."""

    reasoning: str
    """The document's own; empty for kinds of exercise that have none."""

    answer: str
    """The document's own."""

    expected: str
    """The result that the row names where it names one, else the document's own answer."""

    turns: tuple[int, ...] = ()
    """Where the questions of a conversation begin in the prompt, in characters; none where it is no conversation."""

    template: str = PLAIN
    """Of the document; see `forms`."""

    @property
    def with_reasoning(self) -> bool:
        """Whether the model is asked to reason before it answers."""
        return bool(self.reasoning)

    @property
    def answer_prompt(self) -> str:
        """The document up to its answer, its own reasoning included: `...\n\nA:`."""
        return f"{self.prompt}{self.reasoning}{self.form.reasoned.rstrip(' ')}" if self.with_reasoning else self.prompt

    @property
    def form(self) -> Form:
        """What stands around the document's parts."""
        return FORMS[self.template]

    @property
    def text(self) -> str:
        """The whole document."""
        blank = self.form.reasoned.removeprefix(self.form.reasoned.rstrip(" "))
        return f"{self.answer_prompt}{blank}{self.answer}{self.form.end}"

    @property
    def last_query(self) -> str:
        """What is to be answered: of a conversation the last question, with the marks around it."""
        last = self.prompt[self.turns[-1] :] if self.turns else self.query
        return last.translate(_AS_LINES) if self.form.has_marks else last


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    rank: bytes
    """Hash of the seed and the query: the order in which candidates are taken."""

    query_hash: bytes
    row: Mapping[str, Any]
    """The document; only what is asked in the end is cut into a question."""

    @property
    def exercise(self) -> str:
        return _exercise(self.row)


def questions_fingerprint(documents_fingerprint: str, data: DataConfig, *, count: int, seed: int) -> str:
    """Return the identity of a question set."""
    return fingerprint(
        "questions",
        config={"count": count, "seed": seed, "data_seed": data.seed, "validation_fraction": data.validation_fraction},
        upstream=[documents_fingerprint],
        code_version=QUESTIONS_VERSION,
    )


def cached_questions(
    folder: Path, documents: StageResult, data: DataConfig, *, count: int, seed: int
) -> list[Question]:
    """Return `held_out_questions`, kept in `folder` so that only the first checkpoint reads the documents."""
    identity = questions_fingerprint(documents.fingerprint, data, count=count, seed=seed)
    path = folder / f"{identity[:SHORT]}.json"
    kept = _read_questions(path, identity)
    if kept is not None:
        return kept
    questions = held_out_questions(documents, data, count=count, seed=seed)
    value = {"fingerprint": identity, "asked": count, "questions": [dataclasses.asdict(each) for each in questions]}
    write_json(path, value)
    return questions


def held_out_questions(
    documents: StageResult, data: DataConfig, *, count: int, seed: int, batch_rows: int = _BATCH_ROWS
) -> list[Question]:
    """Return up to `count` questions from held-out groups, taken in turn from each kind of exercise.

    Fewer come back if the held-out documents do not give more. A query that word for word stands in a training
    document too is left out, and so is a second document with the same query. The choice depends on the documents and
    the seed alone: not on their order nor on `batch_rows`, and hardly on how many documents there are. Memory is
    bounded by `count`, however many documents there are; the files are read twice.
    """
    if count == 0 or not has_questions(data):
        return []
    files = document_files(documents)
    candidates = _candidates(files, data, per_exercise=_SPARE * count, seed=seed, batch_rows=batch_rows)
    known = {candidate.query_hash for group in candidates.values() for candidate in group}
    leaked = _queries_in_training(files, data, known, batch_rows=batch_rows)
    if leaked:
        _logger.info("%d held-out questions stand in training documents too; they are not asked", len(leaked))
    clean = {
        exercise: [candidate for candidate in group if candidate.query_hash not in leaked]
        for exercise, group in candidates.items()
    }
    return [question_of(candidate.row, data.template) for candidate in _in_turn(clean, count=count, seed=seed)]


def _candidates(
    files: Sequence[Path], data: DataConfig, *, per_exercise: int, seed: int, batch_rows: int
) -> dict[str, list[_Candidate]]:
    """Return, for each exercise, the first `per_exercise` held-out documents by rank, in order, one per query."""
    kept: dict[str, dict[bytes, _Candidate]] = defaultdict(dict)
    for row in _rows(files, data, held_out=True, batch_rows=batch_rows):
        candidate = _candidate(row, seed)
        group = kept[candidate.exercise]
        same = group.get(candidate.query_hash)
        if same is None or _order(candidate) < _order(same):
            group[candidate.query_hash] = candidate
        if len(group) > 2 * per_exercise:  # pruned now and then, so that each row costs O(log n) on average
            kept[candidate.exercise] = _first(group, per_exercise)
    return {exercise: list(_first(group, per_exercise).values()) for exercise, group in kept.items()}


def _order(candidate: _Candidate) -> tuple[str, str]:
    """Which of two documents with the same query is asked: never the one that happens to be read first."""
    return candidate.row["id"] or "", candidate.row["text"][candidate.row["answer_start"] :]


def _first(group: Mapping[bytes, _Candidate], number: int) -> dict[bytes, _Candidate]:
    first = heapq.nsmallest(number, group.values(), key=lambda candidate: candidate.rank)
    return {candidate.query_hash: candidate for candidate in first}


def _queries_in_training(files: Sequence[Path], data: DataConfig, known: set[bytes], *, batch_rows: int) -> set[bytes]:
    """Return those of the hashes `known` whose query stands in a training document."""
    found: set[bytes] = set()
    for row in _rows(files, data, held_out=False, batch_rows=batch_rows):
        query_hash = _hash(_query(row))
        if query_hash in known:
            found.add(query_hash)
    return found


def _rows(files: Sequence[Path], data: DataConfig, *, held_out: bool, batch_rows: int) -> Iterator[dict[str, Any]]:
    """Yield the held-out documents, or the others, reading a batch at a time."""
    columns = COLUMNS if held_out else ("group", "text", "query_start", "query_end")
    for batch in read_side(files, columns, data, held_out=held_out, batch_rows=batch_rows):
        yield from batch.to_pylist()


def _candidate(row: Mapping[str, Any], seed: int) -> _Candidate:
    query = _query(row)
    return _Candidate(rank=_hash(f"{seed}\n{query}"), query_hash=_hash(query), row=row)


def _query(row: Mapping[str, Any]) -> str:
    text: str = row["text"]
    return text[row["query_start"] : row["query_end"]]


def _exercise(row: Mapping[str, Any]) -> str:
    return row["kind"] or "unknown"


def question_of(row: Mapping[str, Any], template: str = PLAIN) -> Question:
    """Return the question that a row with `COLUMNS` asks, of documents with this template."""
    text: str = row["text"]
    start, end = row["reasoning_start"], row["reasoning_end"]
    answer = text[row["answer_start"] :].removesuffix(FORMS[template].end)
    return Question(
        synth_id=row["id"] or "",
        article=row["group"],
        exercise=_exercise(row),
        # The blank after `A:` belongs to the answer's first token.
        prompt=text[: row["answer_start"]].rstrip(" ") if start is None else text[:start],
        query=_query(row),
        reasoning="" if start is None else text[start:end],
        answer=answer,
        expected=row["expected"] or constraint_result(row["constraints"]) or answer,
        turns=_turns(row, template),
        template=template,
    )


def _turns(row: Mapping[str, Any], template: str) -> tuple[int, ...]:
    if row["spans"] is None:
        return ()
    if template == PLAIN:
        return question_starts(row["text"], row["query_start"], row["spans"])
    return turn_starts(row["text"][: row["answer_start"]])


def _in_turn(groups: Mapping[str, Sequence[_Candidate]], *, count: int, seed: int) -> list[_Candidate]:
    """Take the first of each exercise, then the second of each, ..., a query never twice; exercises in seeded order."""
    order = sorted((exercise for exercise in groups if groups[exercise]), key=lambda name: _hash(f"{seed}\n{name}"))
    taken: dict[bytes, _Candidate] = {}
    for place in range(max((len(groups[exercise]) for exercise in order), default=0)):
        for exercise in order:
            if place < len(groups[exercise]) and len(taken) < count:
                candidate = groups[exercise][place]
                taken.setdefault(candidate.query_hash, candidate)
    return list(taken.values())


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _read_questions(path: Path, identity: str) -> list[Question] | None:
    """Return the questions kept at `path`, or None if there are none with `identity` that can be read."""

    def parse(value: Mapping[str, Any]) -> list[Question] | None:
        if value["fingerprint"] != identity:
            return None
        kept = (known_fields(Question, each) for each in value["questions"])
        return [Question(**{**each, "turns": tuple(each.get("turns", ()))}) for each in kept]

    return read_kept(path, parse, otherwise="the questions are chosen again")
