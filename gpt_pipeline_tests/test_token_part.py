from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.formats.synth import DOCUMENT_SCHEMA
from gpt_pipeline.data.tokens import encoder
from gpt_pipeline.data.tokens import pieces as token_pieces
from gpt_pipeline.data.tokens.encoder import EncodedTexts, FastEncoder
from gpt_pipeline.data.tokens.lengths import LENGTH_EDGES
from gpt_pipeline.data.tokens.part import TokenPart, write_token_part
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, Tokenizer, gpt2
from gpt_pipeline.data.tokens.writer import Documents, SplitWriter
from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.manifest import record_file

WORDS = ["the", " sea", " rises", "\n\n", " → 3.14", " naïve", " 中文", " 👍🏽", " don't", "!" * 30, " <|endoftext|>"]


def english(path: Path, rows: int, *, seed: int = 0, **columns: list[Any]) -> pa.Table:
    """An English parquet file of short documents that share articles; `columns` replace what it would hold."""
    rng = np.random.default_rng(seed)
    answers = ["".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(rows)]
    made: dict[str, list[Any]] = {
        "synth_id": [f"synth_{row}" for row in range(rows)],
        "exercise": rng.choice(["mcq", "rag", "math exercise"], rows).tolist(),
        "article": [f"article {number}" for number in rng.integers(0, max(rows // 5, 1), rows)],
        "text": [f"Q: {rng.choice(WORDS)}{row}\n\nA: {answer}" for row, answer in enumerate(answers)],
        "answer_bytes": [len(answer.encode()) for answer in answers],
        **columns,
    }
    table = pa.table({field.name: made.get(field.name, [None] * rows) for field in DOCUMENT_SCHEMA}, DOCUMENT_SCHEMA)
    pq.write_table(table, path, row_group_size=100)
    return table


def write(documents: Path, folder: Path, **options: Any) -> TokenPart:
    arguments = {"seed": 0, "fraction": 0.3, "threads": 2, "say": lambda line: None, **options}
    return write_token_part(documents, folder, **arguments)


def stream(part: TokenPart, split: str) -> TokenStream:
    names = [file.name for file in part.files if file.name.startswith(split) and file.suffix == ".bin"]
    return TokenStream(part.files[0].parent, tuple(names))


def documents_of(tokens: TokenStream) -> list[list[int]]:
    whole = tokens.read(0, tokens.n_tokens)
    return [piece.tolist() for piece in np.split(whole, tokens.document_starts)[1:]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("english") / "english.parquet"
    english(path, 700)
    return path


@pytest.fixture(scope="module")
def part(file: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenPart:
    return write(file, tmp_path_factory.mktemp("part"))


def rows_of(file: Path, *, held_out: bool) -> list[dict[str, Any]]:
    rows = pq.read_table(file).to_pylist()
    return [row for row in rows if is_held_out(row["article"], seed=0, fraction=0.3) == held_out]


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("validation", True)])
def test_token_part_documents_are_tiktokens_in_the_files_order(
    part: TokenPart, file: Path, split: str, held_out: bool
) -> None:
    wanted = [[EOT_TOKEN, *gpt2().encode(row["text"])] for row in rows_of(file, held_out=held_out)]
    assert documents_of(stream(part, split)) == wanted


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("validation", True)])
def test_token_part_answer_starts_hold_the_answers_first_byte(
    part: TokenPart, file: Path, split: str, held_out: bool
) -> None:
    tokens = stream(part, split)
    rows = rows_of(file, held_out=held_out)
    for row, start, answer in zip(rows, tokens.document_starts, tokens.answer_starts, strict=True):
        before = len(gpt2().decode_bytes(tokens.read(start + 1, answer - start - 1).tolist()))
        first_byte = len(row["text"].encode()) - row["answer_bytes"]
        assert before <= first_byte < before + gpt2().token_lengths[tokens.read(answer, 1)[0]]


def test_token_part_files_are_each_shard_with_its_sidecars(part: TokenPart) -> None:
    assert [file.name for file in part.files] == [
        f"{split}_000001{suffix}"
        for split in ("train", "validation")
        for suffix in (".bin", ".starts.npy", ".answers.npy", ".spans.npy")
    ]
    assert sorted(part.files[0].parent.iterdir()) == sorted(part.files)


def test_token_part_facts_are_what_the_shards_hold(part: TokenPart, file: Path) -> None:
    facts = part.facts
    lengths = []
    for split, held_out in (("train", False), ("validation", True)):
        tokens = stream(part, split)
        assert facts[f"{split}_tokens"] == tokens.n_tokens
        assert facts[f"{split}_documents"] == len(tokens.document_starts)
        assert facts[f"{split}_shards"] == 1
        assert facts[f"{split}_text_bytes"] == sum(
            len(row["text"].encode()) for row in rows_of(file, held_out=held_out)
        )
        lengths += [len(document) for document in documents_of(tokens)]
    assert facts["document_lengths"] == np.histogram(lengths, LENGTH_EDGES)[0].tolist()
    assert sum(facts["document_lengths"]) == 700
    assert 200 <= facts["checked_documents"] <= 201
    assert json.loads(json.dumps(facts)) == facts


def test_token_part_tokens_by_exercise_are_those_of_its_documents(part: TokenPart, file: Path) -> None:
    wanted: Counter[str] = Counter()
    for row in pq.read_table(file).to_pylist():
        wanted[row["exercise"]] += 1 + len(gpt2().encode(row["text"]))
    assert part.facts["tokens_by_exercise"] == dict(sorted(wanted.items()))


def test_token_part_records_are_what_lies_on_disk(part: TokenPart) -> None:
    assert part.records == {file.name: record_file(file) for file in part.files}


def contents(part: TokenPart) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in part.files}


@pytest.mark.parametrize(("threads", "rows", "piece_bytes"), [(1, 7, 300), (4, 64, 1), (1, 5000, 9000), (3, 7, 5000)])
def test_token_part_threads_row_groups_and_pieces_change_no_byte(
    request: pytest.FixtureRequest, tmp_path: Path, threads: int, rows: int, piece_bytes: int
) -> None:
    part, file = request.getfixturevalue("part"), request.getfixturevalue("file")
    pq.write_table(pq.read_table(file), tmp_path / "english.parquet", row_group_size=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_pieces, "_PIECE_BYTES", piece_bytes)
        patch.setattr(token_pieces, "_READ_BYTES", 3 * piece_bytes)
        again = write(tmp_path / "english.parquet", tmp_path / "part", threads=threads)
    assert contents(again) == contents(part)
    assert again.facts == part.facts


def test_token_part_tiktoken_in_place_of_gigatoken_changes_no_byte(
    part: TokenPart, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(tokenizer: Tokenizer) -> None:
        raise ImportError

    monkeypatch.setattr(encoder, "FastEncoder", missing)
    said: list[str] = []

    def say(line: str) -> None:
        time.sleep(0.05)  # so that other threads come by meanwhile
        said.append(line)

    again = write(file, tmp_path, say=say, threads=4)
    assert contents(again) == contents(part)
    assert again.facts == part.facts
    assert len([line for line in said if "tiktoken" in line]) == 1  # not once a thread


def test_token_part_small_shards_hold_the_same_documents_uncut(part: TokenPart, file: Path, tmp_path: Path) -> None:
    small = write(file, tmp_path, max_shard_tokens=500)
    assert small.facts["train_shards"] > 10
    for split in ("train", "validation"):
        many, one = stream(small, split), stream(part, split)
        assert documents_of(many) == documents_of(one)
        assert many.answer_starts.tolist() == one.answer_starts.tolist()
        sizes = [file.stat().st_size for file in small.files if file.name.startswith(split) and file.suffix == ".bin"]
        assert max(sizes) <= 1024 + 2 * 500
        for name in [file.name for file in small.files if file.name.startswith(split) and file.suffix == ".bin"]:
            assert TokenStream(tmp_path, (name,)).read(0, 1)[0] == EOT_TOKEN


@pytest.mark.parametrize(("fraction", "missing"), [(0.0, "validation"), (1.0, "train")])
def test_token_part_split_without_documents_has_no_file(
    file: Path, tmp_path: Path, fraction: float, missing: str
) -> None:
    part = write(file, tmp_path, fraction=fraction)
    assert not [path for path in part.files if path.name.startswith(missing)]
    assert [part.facts[f"{missing}_{count}"] for count in ("tokens", "documents", "text_bytes", "shards")] == [
        0,
        0,
        0,
        0,
    ]
    assert sorted(tmp_path.iterdir()) == sorted(part.files)


def test_token_part_no_documents_are_no_files(tmp_path: Path) -> None:
    english(tmp_path / "english.parquet", 0)
    part = write(tmp_path / "english.parquet", tmp_path / "part")
    assert part.files == ()
    assert part.facts["checked_documents"] == sum(part.facts["document_lengths"]) == 0


def test_token_part_null_exercise_is_counted_as_unknown(tmp_path: Path) -> None:
    english(tmp_path / "english.parquet", 2, exercise=[None, "mcq"])
    assert set(write(tmp_path / "english.parquet", tmp_path).facts["tokens_by_exercise"]) == {"mcq", "unknown"}


class _Wrong(FastEncoder):
    """Gives the last word of a document another id of as many bytes."""

    def encode(self, texts: pa.StringArray) -> EncodedTexts:
        encoded = super().encode(texts)
        for row, text in enumerate(texts.to_pylist()):
            if "wrong" in text:
                ends = np.append(encoded.starts[1:], len(encoded.tokens))
                encoded.tokens[ends[row] - 1] = gpt2().encode("x")[0]
        return encoded


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (20, "Q: wrong\n\nA: y"),  # all documents of a small file are checked
        (900, "Q: wrong" + " long" * 300 + "\n\nA: y"),  # the longest is
        (900, "Q: wrong\n\nA: yes"),  # stands for another number of bytes, which is seen anywhere
    ],
)
def test_token_part_document_unlike_tiktokens_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, rows: int
) -> None:
    table = english(tmp_path / "english.parquet", rows)
    row = rows - 7
    texts, answers = table["text"].to_pylist(), table["answer_bytes"].to_pylist()
    texts[row], answers[row] = wrong, 1
    english(tmp_path / "english.parquet", rows, text=texts, answer_bytes=answers)
    monkeypatch.setattr(encoder, "FastEncoder", _Wrong)
    with pytest.raises(DataError, match=rf"english\.parquet: document synth_{row} .*pip uninstall gigatoken"):
        write(tmp_path / "english.parquet", tmp_path / "part")
    assert list((tmp_path / "part").glob("*")) == []


@pytest.mark.parametrize("answer_bytes", [0, -1, 10_000, None])
def test_token_part_answer_outside_its_text_is_refused_by_name(tmp_path: Path, answer_bytes: int | None) -> None:
    english(tmp_path / "english.parquet", 2, answer_bytes=[1, answer_bytes])
    with pytest.raises(DataError, match=r"english\.parquet: document synth_1 has answer_bytes"):
        write(tmp_path / "english.parquet", tmp_path / "part")


def test_token_part_unusable_files_are_refused_by_name(tmp_path: Path, file: Path) -> None:
    (tmp_path / "html.parquet").write_text("<html>")
    pq.write_table(pq.read_table(file).drop_columns(["answer_bytes"]), tmp_path / "old.parquet")
    content = bytearray(file.read_bytes())
    content[100:5000] = bytes(4900)
    (tmp_path / "damaged.parquet").write_bytes(content)
    for name, said in (
        ("absent", "not a readable"),
        ("html", "not a readable"),
        ("old", "lacks the columns answer_bytes"),
        ("damaged", "damaged"),
    ):
        with pytest.raises(DataError, match=rf"{name}\.parquet: {said}"):
            write(tmp_path / f"{name}.parquet", tmp_path / "part")


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=6),
    max_shard_tokens=st.integers(1, 60),
)
def test_split_writer_fills_shards_with_whole_documents(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], max_shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    with SplitWriter(folder=folder, split="train", max_shard_tokens=max_shard_tokens) as writer:
        for lengths in pieces:
            tokens = np.concatenate([np.arange(length) for length in lengths] or [np.empty(0)]).astype(np.uint16)
            writer.add(
                Documents(
                    tokens=tokens,
                    lengths=np.array(lengths, np.int64),
                    answers=np.array(lengths, np.int64) - 1,
                    spans=np.array([(place, place + 1) for length in lengths for place in range(length)]).reshape(
                        -1, 2
                    ),
                    span_counts=np.array(lengths, np.int64),
                    text_bytes=0,
                )
            )
    flat = [length for lengths in pieces for length in lengths]
    shards = [TokenStream(folder, (file.name,)) for file in writer.files if file.suffix == ".bin"]
    assert [len(document) for shard in shards for document in documents_of(shard)] == flat
    assert [answer for shard in shards for answer in _within(shard)] == [length - 1 for length in flat]
    for shard, file in zip(shards, [file for file in writer.files if file.name.endswith("spans.npy")], strict=True):
        every = np.arange(shard.n_tokens)
        assert np.array_equal(np.load(file), np.stack((every, every + 1), axis=1))
    assert all(shard.n_tokens <= max_shard_tokens or len(shard.document_starts) == 1 for shard in shards)
    for earlier, later in itertools.pairwise(shards):
        assert earlier.n_tokens + len(documents_of(later)[0]) > max_shard_tokens
    assert (writer.tokens, writer.documents, writer.shards) == (sum(flat), len(flat), len(shards))


def _within(shard: TokenStream) -> list[int]:
    positions: list[int] = (shard.answer_starts - shard.document_starts).tolist()
    return positions
