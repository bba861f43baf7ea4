"""The tokens that an answer-only loss trains on: kept beside the shards, found for each target of a batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import document_files, prepare_documents
from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.pieces import _trained_sizes
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import EOT_TOKEN, TokenStream, open_shards, spans_name
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.tokens.writer import Documents, SplitWriter
from gpt_pipeline.errors import DamagedFileError, UserError

DOCUMENTS = st.lists(st.tuples(st.integers(2, 12), st.floats(0, 1)), min_size=1, max_size=12)


def _write(folder: Path, lengths: list[int], trained: list[int], *, max_shard_tokens: int = 1000) -> TokenStream:
    with SplitWriter(folder=folder, split="train", max_shard_tokens=max_shard_tokens) as writer:
        tokens = [[EOT_TOKEN, *range(1, length)] for length in lengths]
        firsts = np.minimum(trained, np.array(lengths, np.int64) - 1)
        spans = [_spans_of(*document) for document in zip(lengths, trained, strict=True)]
        writer.add(
            Documents(
                tokens=np.concatenate(tokens).astype(np.uint16),
                lengths=np.array(lengths, np.int64),
                answers=firsts,
                spans=np.array([span for own in spans for span in own], np.int64).reshape(-1, 2),
                span_counts=np.array([len(own) for own in spans]),
                text_bytes=0,
            )
        )
    return TokenStream(folder, tuple(file.name for file in writer.files if file.suffix == ".bin"))


def _spans_of(length: int, first: int) -> list[tuple[int, int]]:
    """From `first` to the document's end, and before it, where there is room, one inside; none from its end on."""
    return [] if first == length else [*([(2, 4)] if first > 5 else []), (first, length)]


def _plainly(lengths: list[int], trained: list[int]) -> list[bool]:
    """Return for each token of the stream whether it is trained on, document by document."""
    wanted: list[bool] = []
    ends_trained = False
    for length, first in zip(lengths, trained, strict=True):
        spans = _spans_of(length, first)
        wanted += [ends_trained, *(any(begin <= place < end for begin, end in spans) for place in range(1, length))]
        ends_trained = first < length
    return wanted


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, max_shard_tokens=st.integers(8, 60))
def test_spans_found_are_those_of_a_plain_walk_over_the_documents(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[int, float]], max_shard_tokens: int
) -> None:
    lengths = [length for length, _ in documents]
    trained = [1 + round(share * (length - 1)) for length, share in documents]
    stream = _write(tmp_path_factory.mktemp("spans"), lengths, trained, max_shard_tokens=max_shard_tokens)
    assert stream.in_spans(np.arange(stream.n_tokens)).tolist() == _plainly(lengths, trained)


def test_shards_without_spans_are_read_and_say_what_to_do_when_spans_are_asked_for(tmp_path: Path) -> None:
    stream = _write(tmp_path, [9, 7], [3, 2])
    (tmp_path / spans_name("train_000001.bin")).unlink()
    assert BatchSampler(stream=stream, sequence_length=4, batch_size=2, seed=0).batch_at(0)[0].shape == (2, 4)
    with pytest.raises(UserError, match=r"spans.npy is missing: .* same tokens, by materializing token_shards"):
        stream.in_spans(np.arange(4))


@pytest.mark.parametrize("spans", [np.zeros(3, np.int64), np.array([[0, 99]]), np.zeros((1, 2), np.int32)])
def test_spans_that_are_not_of_the_shard_are_damage(tmp_path: Path, spans: np.ndarray) -> None:
    stream = _write(tmp_path, [9, 7], [3, 2])
    np.save(tmp_path / spans_name("train_000001.bin"), spans)
    with pytest.raises(DamagedFileError, match="need"):
        stream.in_spans(np.arange(4))


def test_spans_of_synth_begin_with_the_reasoning_or_the_answer(tmp_path: Path) -> None:
    config = DataConfig(num_samples=400, source="sample", validation_fraction=0.2, max_length=32)
    documents = prepare_documents(config, prepare_raw(config, tmp_path), tmp_path)
    shards = open_shards(prepare_shards(config, documents, tmp_path).folder)
    rows = [row for file in document_files(documents) for row in pq.read_table(file).to_pylist()]
    bounds = {}
    for row in rows:
        first = row["answer_start"] if row["reasoning_start"] is None else row["reasoning_start"]
        bounds[row["text"].encode()] = len(row["text"][:first].encode())
    for stream in (shards.train, shards.validation):
        is_trained = stream.in_spans(np.arange(stream.n_tokens))
        for start, end in itertools.pairwise([*stream.document_starts.tolist(), stream.n_tokens]):
            ids, trained = stream.read(start + 1, end - start - 1).tolist(), is_trained[start + 1 : end]
            first = int(np.argmax(trained))
            assert trained[first:].all()
            before, token = (gpt2().decode_bytes(own) for own in (ids[:first], ids[first : first + 1]))
            bound = bounds.pop(gpt2().decode_bytes(ids))
            assert len(before) <= bound < len(before) + len(token)
    assert not bounds


def test_trained_bytes_count_from_the_reasoning_also_behind_characters_of_several_bytes() -> None:
    heads = ["Q: plain\n\nReasoning:\n", "Q: größer als 😀 drei?\n\nReasoning:\n", "Q: no reasoning 語\n\nA: ", ""]
    tails = ["because\n\nA: 7", "weil 語\n\nA: ä", "42", "x"]
    starts = [len(heads[0]), len(heads[1]), None, None]
    texts = [head + tail for head, tail in zip(heads, tails, strict=True)]
    rows = pa.record_batch({"text": pa.array(texts), "reasoning_start": pa.array(starts, pa.int32())})
    answers = np.array([1, 2, 2, 1], np.int64)
    for part, own in ((rows, slice(None)), (rows.slice(1, 3), slice(1, None))):
        wanted = [len(tail.encode()) for tail in tails]
        assert _trained_sizes(part, answers[own]).tolist() == wanted[own]
