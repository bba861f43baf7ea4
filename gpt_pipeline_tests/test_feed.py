from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.stream import TokenStream, new_shard
from gpt_pipeline.training.feed import BatchFeed
from gpt_pipeline.training.ranks import Ranks

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
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
        inputs, targets, weights = feed.batch_at(step)
        assert weights is None
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        wanted = sampler.batch_at(step)
        assert (inputs.cpu().numpy() == wanted[0]).all()
        assert (targets.cpu().numpy() == wanted[1]).all()
