"""Proof that the questions were not trained on, from what the shards and the documents really hold."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.config import PLAIN, DataConfig
from gpt_pipeline.data.documents.files import read_documents
from gpt_pipeline.data.documents.stage import document_files
from gpt_pipeline.data.tokens.encoder import Encoder, new_encoder
from gpt_pipeline.data.tokens.stream import TokenStream, open_shards
from gpt_pipeline.data.tokens.tokenizer import common_tokenizer, tokenizer_of
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation.evaluate import EvaluatedPart
from gpt_pipeline.evaluation.questions import Question
from gpt_pipeline.findings import Finding, verdict
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import StageResult

PROOF_VERSION = "1"
"""Raise it when the check looks for something else."""

_COLUMNS = ("group", "text", "query_start", "query_end")
_BATCH_ROWS = 4096  # some 12 MB of text
_REMEDY = (
    "the model has seen what it is asked, so the answers say nothing: materialize token_shards with force, train "
    "again, and report it as a bug if it stays"
)


_REMEDY_FOR_A_MIX = (
    "the model has seen what it is asked, so the answers say little: the parts of the mix overlap; leave one of them "
    "out, or keep such rows out of it by its data.filter, and train again"
)


_REMEDY_FOR_A_BASE = (
    "the weights that the training began with have seen what it is asked, so the answers say little: set data.seed, "
    "data.validation_fraction and data.group as there, which holds out the same, and train again"
)


_REMEDY_FOR_MORE_DOCUMENTS = (
    "the weights that the training began with have seen what it is asked, so the answers say little, and another split "
    "would not help: ask other questions by another evaluation.seed; or, with files of your own, keep rows that ask "
    "the same together by data.group, in the base too, and train both again"
)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What the weights that a training began with were trained on."""

    source: str
    """Whose data it is, for people: the name of an experiment file."""

    documents: tuple[tuple[DataConfig, StageResult], ...]
    """Of each part of its mix, or of all of it."""

    shards: StageResult


@dataclass(frozen=True, kw_only=True)
class _Kin:
    """Hashes, over their tokens, of the documents that no training split may hold."""

    of_article: frozenset[bytes]
    """Of the questions' own articles, whatever their text."""

    of_query: frozenset[bytes]
    """With a question's very query, whatever their article."""


def cached_proof(
    folder: Path,
    questions: Sequence[Question],
    data: Sequence[EvaluatedPart],
    *,
    mixed: StageResult | None = None,
    before: Sequence[TrainedOn] = (),
) -> Finding:
    """Return `prove_unseen`, kept in `folder`: for the same questions and data it is looked for once."""
    identity = fingerprint(
        "questions_unseen",
        config={
            "questions": [_identity(question) for question in questions],
            **({"before": [_relation(data, each) for each in before]} if before else {}),
        },
        upstream=[
            *(stage.fingerprint for each in data for stage in (each.documents, each.shards)),
            *([] if mixed is None else [mixed.fingerprint]),
            *(stage.fingerprint for each in before for stage in (*(made for _, made in each.documents), each.shards)),
        ],
        code_version=PROOF_VERSION,
    )
    path = folder / f"{identity[:SHORT]}.unseen.json"
    if (found := _read_finding(path, identity)) is not None:
        return found
    finding = prove_unseen(questions, data, mixed=mixed, before=before)
    kept = {"passed": finding.passed, "text": finding.text, "facts": dict(finding.facts)}
    write_json(path, {"fingerprint": identity, **kept})
    return finding


def _identity(question: Question) -> dict[str, Any]:
    """Return what tells a question from others; turns and template came later, and are left out where there is none."""
    value = dataclasses.asdict(question)
    neutral: dict[str, Any] = {"turns": (), "template": PLAIN}
    return {name: each for name, each in value.items() if name not in neutral or each != neutral[name]}


def _relation(data: Sequence[EvaluatedPart], base: TrainedOn) -> dict[str, Any]:
    """Return what the finding says of a base beside what its documents hold."""
    shared = [any(_share_groups(each.data, theirs) for each in data) for theirs, _ in base.documents]
    return {"source": base.source, "shares_groups": shared, "splits_otherwise": _splits_otherwise(data, base)}


def _share_groups(own: DataConfig, theirs: DataConfig) -> bool:
    """Whether a group's name means the same in both: they are of one source, or it is that of an article of SYNTH."""
    return own.origin == theirs.origin or own.format == theirs.format == "synth"


def _splits_otherwise(data: Sequence[EvaluatedPart], base: TrainedOn) -> bool:
    """Whether documents are held out that the base, which has their groups too, trains on by its split."""
    pairs = ((each.data, theirs) for each in data for theirs, _ in base.documents)
    return any(_share_groups(own, theirs) and not own.is_held_out_in(theirs) for own, theirs in pairs)


def prove_unseen(
    questions: Sequence[Question],
    data: Sequence[EvaluatedPart],
    *,
    mixed: StageResult | None = None,
    before: Sequence[TrainedOn] = (),
) -> Finding:
    """Find no training document of a question's article, text or query, comparing hashes.

    The files of documents say which share an article (by the hash of its name) or a query with a question; their
    texts are encoded as the shards' were. The hash of every training document's tokens, read from the shards, is then
    looked for among theirs. So it does not matter how the split was meant. That the questions' own texts are found in
    the validation split shows that such hashes do meet. Of the parts of a mix in `data`, what the shards
    `mixed` hold of all of them is looked at. What was trained on `before` is looked through for queries and, where it
    has the same groups, for articles.
    """
    if not questions:
        return verdict(passed=True, text="no questions are asked", facts={"questions": 0})
    encoder = new_encoder(lambda _: None, common_tokenizer([each.shards for each in data]))
    texts = [question.text for question in questions]
    own = set(_encoded(encoder, texts))
    kin = _kin(questions, [file for each in data for file in document_files(each.documents)], encoder)
    splits = [open_shards(each.shards.folder) for each in data]
    missing = own - set(itertools.chain.from_iterable(_document_hashes(split.validation) for split in splits))
    seen_article = seen_query = seen_text = trained_on = 0
    trained = [split.train for split in splits] if mixed is None else [open_shards(mixed.folder).train]
    for digest in itertools.chain.from_iterable(map(_document_hashes, trained)):
        trained_on += 1
        seen_article += digest in kin.of_article
        seen_query += digest in kin.of_query
        seen_text += digest in own
    seen_before = [(each, count) for each in before if (count := _kin_trained_on(questions, each, data))]
    passed = not (missing or seen_article or seen_query or seen_text or seen_before)
    text = (
        f"{seen_article} of {trained_on:,} training documents are of the same group as a question, "
        f"{seen_query} ask the same, {seen_text} have the same text; "
        f"{len(own) - len(missing)} of {len(own)} texts stand in the validation split"
        + "".join(
            f"; {count:,} documents that {base.source} trained on are of such a group or ask the same"
            for base, count in seen_before
        )
    )
    facts = {
        "questions": len(questions),
        "training_documents": trained_on,
        "same_group": seen_article,
        "same_question": seen_query,
        "same_text": seen_text,
        "not_in_validation": len(missing),
        **({"seen_before": sum(count for _, count in seen_before)} if before else {}),
    }
    in_own = missing or seen_article or seen_query or seen_text
    if in_own:
        remedy = _REMEDY if mixed is None else _REMEDY_FOR_A_MIX
    else:
        is_by_split = any(_splits_otherwise(data, base) for base, _ in seen_before)
        remedy = _REMEDY_FOR_A_BASE if is_by_split else _REMEDY_FOR_MORE_DOCUMENTS
    return verdict(passed=passed, text=text if passed else f"{text}: {remedy}", facts=facts)


def _kin_trained_on(questions: Sequence[Question], base: TrainedOn, data: Sequence[EvaluatedPart]) -> int:
    """Return how many of the base's training documents are of a question's article or ask the same."""
    encoder = new_encoder(lambda _: None, tokenizer_of(base.shards))
    wanted: set[bytes] = set()
    for theirs, documents in base.documents:
        kin = _kin(questions, document_files(documents), encoder)
        wanted |= kin.of_query
        if any(_share_groups(each.data, theirs) for each in data):
            wanted |= kin.of_article
    return sum(digest in wanted for digest in _document_hashes(open_shards(base.shards.folder).train))


def _kin(questions: Sequence[Question], files: Sequence[Path], encoder: Encoder) -> _Kin:
    articles = {_hash(question.article.encode("utf-8", "surrogatepass")) for question in questions}
    queries = {question.query for question in questions}
    of_article: set[bytes] = set()
    of_query: set[bytes] = set()
    for batch in read_documents(files, _COLUMNS, batch_rows=_BATCH_ROWS):
        names = batch.column("group").dictionary_encode()
        ours = [
            _hash((name or "").encode("utf-8", "surrogatepass")) in articles for name in names.dictionary.to_pylist()
        ]
        same_article = pc.take(pa.array(ours, pa.bool_()), names.indices)
        same_query = pa.array([query in queries for query in _queries(batch)], pa.bool_())
        of_article.update(_encoded(encoder, batch.column("text").filter(same_article).to_pylist()))
        of_query.update(_encoded(encoder, batch.column("text").filter(same_query).to_pylist()))
    return _Kin(of_article=frozenset(of_article), of_query=frozenset(of_query))


def _queries(batch: pa.RecordBatch) -> Iterator[str]:
    columns = (batch.column(name).to_pylist() for name in ("text", "query_start", "query_end"))
    return (text[start:end] for text, start, end in zip(*columns, strict=True))


def _encoded(encoder: Encoder, texts: Sequence[str]) -> list[bytes]:
    """Return the hash of each text's tokens."""
    encoded = encoder.encode(pa.array(texts, pa.string()))
    bounds = [*encoded.starts.tolist(), len(encoded.tokens)]
    return [_hash(encoded.tokens[start + 1 : end].tobytes()) for start, end in itertools.pairwise(bounds)]


def _document_hashes(stream: TokenStream) -> Iterator[bytes]:
    """Yield the hash of each document's tokens, without the `<|endoftext|>` before it.

    Raises:
        DamagedFileError: a document does not begin where the shards say, so that its hash would meet no other.
    """
    for start, end in itertools.chain.from_iterable(
        itertools.pairwise(bounds.tolist()) for bounds in stream.documents_by_shard()
    ):
        tokens = stream.read(start, end - start)
        if tokens[0] != stream.eot_token:
            raise DamagedFileError(
                f"found token {tokens[0]} where a document begins, need <|endoftext|>; "
                "materialize token_shards with force"
            )
        yield _hash(tokens[1:].tobytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _read_finding(path: Path, identity: str) -> Finding | None:
    """Return the finding kept at `path`, or None if there is none with `identity` that can be read."""

    def parse(value: dict[str, Any]) -> Finding | None:
        return verdict(**value) if value.pop("fingerprint") == identity else None

    return read_kept(path, parse, otherwise="the documents are compared again")
