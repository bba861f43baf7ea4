from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.batches import BatchSampler, sequential_windows, shuffled
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import ConfigError
from gpt_pipeline_tests.test_token_stream import make_stream


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    return make_stream(tmp_path_factory.mktemp("shards"), [700, 5, 1300])  # tokens 0..2004


def sampler(stream: TokenStream, *, batch_size: int = 8, sequence_length: int = 10, seed: int = 0) -> BatchSampler:
    return BatchSampler(stream=stream, sequence_length=sequence_length, batch_size=batch_size, seed=seed)


@settings(max_examples=60)
@given(n=st.integers(1, 3000), key=st.text(max_size=8))
def test_shuffled_is_a_permutation_for_any_size(n: int, key: str) -> None:
    assert sorted(shuffled(np.arange(n, dtype=np.uint64), n=n, key=key).tolist()) == list(range(n))


@given(n=st.integers(2**40, 2**45), data=st.data())
def test_shuffled_huge_range_maps_a_few_positions_without_building_it(n: int, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=10))
    places = shuffled(np.array(chosen, dtype=np.uint64), n=n, key="k").tolist()
    assert len(set(places)) == len(chosen)
    assert all(0 <= place < n for place in places)


def test_shuffled_order_is_the_same_on_every_machine_and_version() -> None:
    assert shuffled(np.arange(8, dtype=np.uint64), n=1000, key="0/0").tolist() == [
        284,
        759,
        367,
        520,
        460,
        601,
        984,
        945,
    ]


def test_shuffled_neighbours_are_spread_over_the_whole_range() -> None:
    n = 100_000
    places = shuffled(np.arange(n, dtype=np.uint64), n=n, key="0/0").astype(np.float64)
    correlation = np.corrcoef(places[:-1], places[1:])[0, 1]
    assert abs(correlation) < 0.02  # 6 standard deviations of 1 / sqrt(n)
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.02


@settings(max_examples=30)
@given(batch_size=st.integers(1, 40), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_batches_one_epoch_visits_each_window_at_most_once_and_misses_less_than_a_batch(
    stream: TokenStream, batch_size: int, seed: int, epoch: int
) -> None:
    batches = sampler(stream, batch_size=batch_size, seed=seed)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    windows = np.concatenate([batches.sequences_at(step) for step in steps])
    assert len(set(windows.tolist())) == len(windows) > batches.sequences_per_epoch - batch_size
    assert windows.max() < batches.sequences_per_epoch == 200


def test_batches_epochs_and_seeds_differ_in_order(stream: TokenStream) -> None:
    batches = sampler(stream)
    first, second = batches.sequences_at(0), batches.sequences_at(batches.steps_per_epoch)
    other = sampler(stream, seed=1).sequences_at(0)
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()


def test_batches_inputs_are_the_window_and_targets_the_next_tokens(stream: TokenStream) -> None:
    batches = sampler(stream)
    inputs, targets = batches.batch_at(3)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.shape == targets.shape == (8, 10)
    assert (targets == inputs + 1).all()
    assert inputs[:, 0].tolist() == (10 * batches.sequences_at(3)).tolist()


@settings(max_examples=30)
@given(step=st.integers(0, 400), world_size=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_batches_ranks_together_have_the_batch_of_one_process(stream: TokenStream, step: int, world_size: int) -> None:
    batches = sampler(stream, batch_size=12)
    inputs, targets = batches.batch_at(step)
    parts = [batches.batch_at(step, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert (np.concatenate([part[0] for part in parts]) == inputs).all()
    assert (np.concatenate([part[1] for part in parts]) == targets).all()


def test_batches_new_sampler_at_a_later_step_gives_the_same_batch(stream: TokenStream) -> None:
    running = sampler(stream)
    batches = [running.batch_at(step)[0] for step in range(60)]
    assert (sampler(stream).batch_at(59)[0] == batches[59]).all()


@settings(max_examples=30)
@given(data=st.data(), batch_size=st.sampled_from([1, 8, 60]), world_size=st.sampled_from([1, 2]))
def test_batches_any_order_of_steps_and_ranks_gives_the_rows_of_a_new_sampler(
    stream: TokenStream, data: st.DataObject, batch_size: int, world_size: int
) -> None:
    batch_size *= world_size
    running = sampler(stream, batch_size=batch_size)
    steps = st.integers(0, 3 * running.steps_per_epoch)
    for first in data.draw(st.lists(steps, min_size=1, max_size=5)):
        rank = data.draw(st.integers(0, world_size - 1))
        for step in range(first, first + data.draw(st.integers(1, 40))):
            rows = running.rows_at(step, rank=rank, world_size=world_size)
            windows = sampler(stream, batch_size=batch_size).sequences_at(step, rank=rank, world_size=world_size)
            assert rows.inputs.dtype == rows.targets.dtype == np.uint16
            assert rows.inputs.tolist() == [list(range(10 * w, 10 * w + 10)) for w in windows.tolist()]
            assert (rows.targets == rows.inputs + 1).all()


class _Watched(TokenStream):
    """Notes how many rows it is asked for at a time."""

    def __init__(self, folder: Path, shards: tuple[str, ...]) -> None:
        super().__init__(folder, shards)
        self.asked: list[int] = []

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[np.uint16]:
        self.asked.append(len(starts))
        return super().gather(starts, length)


def test_batches_first_batch_reads_itself_only_and_later_ones_ahead(tmp_path: Path) -> None:
    make_stream(tmp_path, [2005])
    stream = _Watched(tmp_path, ("train_000001.bin",))
    running = sampler(stream, batch_size=8)  # 25 batches an epoch
    for step in range(5, 27):
        running.rows_at(step)
    assert stream.asked == [8, 16, 32, 64, 40, 80]  # twice as many each time, but to the epoch's end


def test_batches_rows_read_earlier_stay_as_they_were(stream: TokenStream) -> None:
    running = sampler(stream)
    rows = [running.rows_at(step) for step in range(50)]
    assert all((row.inputs == sampler(stream).rows_at(step).inputs).all() for step, row in enumerate(rows))


def test_batches_uneven_share_of_the_ranks_is_refused(stream: TokenStream) -> None:
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        sampler(stream).batch_at(0, world_size=3)


def test_batches_fewer_windows_than_a_batch_is_refused_with_the_number(stream: TokenStream) -> None:
    with pytest.raises(ConfigError, match="at most 200"):
        sampler(stream, batch_size=201)


@settings(max_examples=60)
@given(sequence_length=st.integers(1, 2500), batch_size=st.integers(1, 9))
def test_sequential_windows_make_each_token_but_the_first_a_target_once(
    stream: TokenStream, sequence_length: int, batch_size: int
) -> None:
    seen = []
    for inputs, targets in sequential_windows(stream, sequence_length=sequence_length, batch_size=batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= sequence_length
        assert (targets == inputs + 1).all()
        seen += targets.ravel().tolist()
    assert seen == list(range(1, stream.n_tokens))


@pytest.mark.parametrize(
    ("max_tokens", "targets"), [(1, 1), (10, 10), (25, 25), (2003, 2003), (2004, 2004), (9999, 2004)]
)
def test_sequential_windows_end_with_the_limit(stream: TokenStream, max_tokens: int, targets: int) -> None:
    batches = sequential_windows(stream, sequence_length=10, max_tokens=max_tokens, batch_size=3)
    assert sum(batch.size for _, batch in batches) == targets


def test_sequential_windows_short_stream_is_one_short_window(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [6])
    batches = list(sequential_windows(stream, sequence_length=10, max_tokens=20))
    assert [inputs.tolist() for inputs, _ in batches] == [[[0, 1, 2, 3, 4]]]
