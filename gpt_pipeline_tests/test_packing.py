from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.packing import DocumentSampler, best_fit, cut, pack, packed_in_order
from gpt_pipeline.data.tokens.stream import TokenStream, new_shard, shard_name, starts_name

EOT = 7
Ints = NDArray[np.int64]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def bounds_of(lengths: list[int]) -> Ints:
    return np.cumsum([0, *lengths], dtype=np.int64)


def documents_stream(folder: Path, shards: list[list[int]]) -> TokenStream:
    """Documents of the given lengths, `<|endoftext|>` included; their other tokens count up from 100."""
    names = tuple(shard_name("train", number) for number in range(1, len(shards) + 1))
    token = 100
    for name, lengths in zip(names, shards, strict=True):
        starts = bounds_of(lengths)
        tokens = np.arange(token, token + starts[-1]).astype(np.uint16)
        token += len(tokens)
        tokens[starts[:-1]] = EOT
        with new_shard(folder / name) as shard:
            shard.append(tokens)
        np.save(folder / starts_name(name), starts[:-1])
    return TokenStream(folder, names, eot_token=EOT)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    generator = np.random.default_rng(0)
    shards = [generator.integers(1, 40, size).tolist() for size in (70, 1, 50)]
    return documents_stream(tmp_path_factory.mktemp("documents"), shards)


def sampler(stream: TokenStream, *, batch_size: int = 6, row_length: int = 24, seed: int = 0) -> DocumentSampler:
    return DocumentSampler(stream=stream, sequence_length=row_length, batch_size=batch_size, seed=seed)


@given(lengths=LENGTHS, row_length=st.integers(1, 40))
def test_cut_leaves_what_fits_whole_and_makes_full_rows_of_the_rest(lengths: list[int], row_length: int) -> None:
    starts, sizes = cut(bounds_of(lengths), row_length)
    wanted = []
    for start, length in zip(bounds_of(lengths)[:-1].tolist(), lengths, strict=True):
        wanted += [(start + at, min(row_length, length - at)) for at in range(0, length, row_length)]
    assert list(zip(starts.tolist(), sizes.tolist(), strict=True)) == wanted


def one_by_one(lengths: list[int], row_length: int) -> Counter[tuple[int, ...]]:
    """Best fit decreasing as textbooks have it: each row's lengths, and how many such rows."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= row_length]
        best = max(fitting, key=sum, default=None)
        if best is None:
            rows.append([length])
        else:
            best.append(length)
    return Counter(tuple(row) for row in rows)


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_on_the_histogram_makes_as_many_rows_as_one_piece_at_a_time(lengths: list[int]) -> None:
    patterns = best_fit(np.bincount(lengths, minlength=21))
    assert all(sum(length * each for length, each in pattern) <= 20 for pattern, _ in patterns)
    placed: Counter[int] = Counter()
    for pattern, rows in patterns:
        for length, each in pattern:
            placed[length] += each * rows
    assert placed == Counter(lengths)
    assert sum(rows for _, rows in patterns) == one_by_one(lengths, 20).total()


@settings(max_examples=40)
@given(lengths=LENGTHS, row_length=st.integers(1, 40), key=st.text(max_size=3))
def test_pack_puts_each_token_once_into_rows_that_hold_it(lengths: list[int], row_length: int, key: str) -> None:
    packing = pack([bounds_of(lengths)], row_length)
    placed = packing.place(np.arange(packing.n_rows), key=key)
    positions = [range(start, start + length) for start, length in zip(placed.start, placed.length, strict=True)]
    assert sorted(each for part in positions for each in part) == list(range(sum(lengths)))
    row, end = -1, 0
    for number, offset, length in zip(placed.row, placed.offset, placed.length, strict=True):
        end = 0 if number != row else end
        assert offset == end  # one behind the other from the row's beginning on
        row, end = number, offset + length
        assert end <= row_length
    assert packing.padding == pytest.approx(1 - sum(lengths) / (packing.n_rows * row_length))


@given(lengths=LENGTHS, split=st.integers(0, 60))
def test_pack_some_documents_at_a_time_gives_the_same_rows(lengths: list[int], split: int) -> None:
    bounds = bounds_of(lengths)
    split = min(split, len(lengths))
    whole, parts = pack([bounds], 24), pack([bounds[: split + 1], bounds[split:]], 24)
    assert whole.starts.tolist() == parts.starts.tolist()
    assert whole.counts.tolist() == parts.counts.tolist()


def test_pack_places_any_rows_by_themselves_as_among_all() -> None:
    packing = pack([bounds_of(np.random.default_rng(1).integers(1, 30, 300).tolist())], 24)

    def content(rows: Ints) -> list[list[int]]:
        placed = packing.place(rows, key="k")
        return [placed.start[placed.row == row].tolist() for row in range(len(rows))]

    chosen = np.array([5, 0, packing.n_rows - 1, 5])
    everything = content(np.arange(packing.n_rows))
    assert content(chosen) == [everything[row] for row in chosen]


def test_pack_many_documents_takes_sixteen_bytes_of_each_and_fills_the_rows() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.8, 100_000).astype(np.int64) + 1
    bounds = np.cumsum(np.append(0, lengths))
    tracemalloc.start()
    packing = pack([bounds], 1024)
    packing.place(np.arange(8), key="0/0")
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 16 * len(packing.starts)
    assert packing.padding < 0.01


def test_rows_inputs_begin_at_documents_and_targets_end_with_the_end(stream: TokenStream) -> None:
    batches = sampler(stream)
    for step in range(batches.steps_per_epoch):
        rows = batches.rows_at(step)
        assert rows.weights is not None
        assert rows.starts is not None
        for inputs, targets, weights, starts in zip(*rows, strict=True):
            assert starts[0] == 0
            length = int(weights.sum())
            assert weights.tolist() == [1.0] * length + [0.0] * (24 - length)
            for begin in np.unique(starts[:length]):
                inside = np.flatnonzero(starts == begin)
                follows = inputs[inside[1:]]
                assert targets[inside[:-1]].tolist() == follows.tolist()
                assert EOT not in follows
                last = targets[inside[-1]]
                assert last == EOT or (len(inside) == 24 and last == inputs[-1] + 1)
            assert (starts[length:] == length).all()


def test_rows_of_an_epoch_hold_each_token_once(stream: TokenStream) -> None:
    batches = sampler(stream, batch_size=1)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        rows = [batches.rows_at(step) for step in steps]
        targets = np.concatenate([row.targets[row.weights == 1] for row in rows])
        wanted = np.append(stream.read(1, stream.n_tokens - 1), EOT)
        assert sorted(targets.tolist()) == sorted(wanted.tolist())


def test_rows_epochs_and_seeds_differ_in_order_and_in_company(stream: TokenStream) -> None:
    batches = sampler(stream)
    first, second = batches.rows_at(0), batches.rows_at(batches.steps_per_epoch)
    assert first.inputs.tolist() != second.inputs.tolist()
    assert first.inputs.tolist() != sampler(stream, seed=1).rows_at(0).inputs.tolist()
    one, other = (batches.packing.place(np.arange(batches.packing.n_rows), key=key) for key in "ab")
    assert one.start.tolist() != other.start.tolist()


@settings(max_examples=20)
@given(step=st.integers(0, 100), world_size=st.sampled_from([1, 2, 3, 6]))
def test_rows_ranks_together_have_those_of_one_process_whatever_was_read_before(
    stream: TokenStream, step: int, world_size: int
) -> None:
    running = sampler(stream)
    parts = [sampler(stream).rows_at(step, rank=rank, world_size=world_size) for rank in range(world_size)]
    for before in range(max(0, step - 5), step):
        running.rows_at(before)
    for whole, *shares in zip(running.rows_at(step), *parts, strict=True):
        assert (np.concatenate(shares) == whole).all()


def test_packed_in_order_takes_the_first_documents_from_their_beginning(stream: TokenStream) -> None:
    rows = list(packed_in_order(stream, row_length=24, max_positions=200, batch_size=2))
    assert all(len(each.inputs) <= 2 for each in rows)
    lengths = np.minimum(np.diff(stream.document_bounds), 24)
    count = int((np.cumsum(lengths) <= 200).sum())
    targets = np.concatenate([each.targets[each.weights == 1] for each in rows])
    starts = stream.document_starts[:count]
    wanted = [stream.read(start + 1, length) for start, length in zip(starts, lengths, strict=False)]
    assert sorted(targets.tolist()) == sorted(np.concatenate(wanted).tolist())


def test_packed_in_order_takes_one_document_at_least(stream: TokenStream) -> None:
    rows = list(packed_in_order(stream, row_length=24, max_positions=1, batch_size=2))
    assert [int((each.starts == 0).all(axis=1).sum()) for each in rows] == [2]  # a document, and a row of padding
    assert [each.weights.any(axis=1).tolist() for each in rows] == [[True, False]]


def test_packing_of_no_documents_has_no_rows() -> None:
    packing = pack([np.array([0])], 8)
    assert packing.n_rows == 0
    assert packing.padding == 0
