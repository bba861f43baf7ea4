from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.data.tokens.stream import TokenStream, new_shard
from gpt_pipeline.training.feed import Batch, BatchFeed
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline_tests.test_packing import documents_stream

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]


@pytest.fixture
def sampler(tmp_path: Path) -> BatchSampler:
    """A stream with ids on both sides of 2^15, the largest ones included."""
    tokens = np.random.default_rng(0).integers(0, 50257, 3000).astype(np.uint16)
    tokens[::7] = 50256
    tokens[1::7] = 65535
    with new_shard(tmp_path / "train_000001.bin") as shard:
        shard.append(tokens)
    stream = TokenStream(tmp_path, ("train_000001.bin",))
    return BatchSampler(stream=stream, sequence_length=16, batch_size=4, seed=0)


@pytest.fixture(params=DEVICES)
def feed(request: pytest.FixtureRequest, sampler: BatchSampler) -> Iterator[BatchFeed]:
    feed = BatchFeed(sampler, ranks=Ranks(), device=torch.device(request.param))
    yield feed
    feed.close()


def test_feed_batches_in_and_out_of_order_are_the_samplers(feed: BatchFeed, sampler: BatchSampler) -> None:
    for step in [*range(60), 7, 8, 3, 200]:
        inputs, targets, weights, starts = feed.batch_at(step).tensors
        assert weights is None
        assert starts is None
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        wanted = sampler.batch_at(step)
        assert (inputs.cpu().numpy() == wanted[0]).all()
        assert (targets.cpu().numpy() == wanted[1]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_feed_of_documents_has_weights_and_where_documents_begin(tmp_path: Path, device: str) -> None:
    stream = documents_stream(tmp_path, [[5, 9, 30, 2, 16, 7, 3]])
    sampler = DocumentSampler(stream=stream, sequence_length=16, batch_size=2, seed=0)
    feed = BatchFeed(sampler, ranks=Ranks(), device=torch.device(device))
    for step in range(4):
        batch, wanted = feed.batch_at(step), sampler.rows_at(step)
        assert [part.dtype for part in batch.tensors] == [torch.int64, torch.int64, torch.float32, torch.int64]
        assert all((part.cpu().numpy() == rows).all() for part, rows in zip(batch.tensors, wanted, strict=True))
    feed.close()


def test_batch_split_keeps_what_belongs_together() -> None:
    parts = [torch.arange(6)[:, None] + each for each in range(4)]
    split = list(Batch(*parts).split(4))
    assert [len(part.inputs) for part in split] == [4, 2]
    assert all(torch.equal(torch.cat([each[place] for each in split]), parts[place]) for place in range(4))
