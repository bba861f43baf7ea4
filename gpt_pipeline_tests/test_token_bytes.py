from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.tokens.token_bytes import TokenBytes
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, VOCAB_SIZE, gpt2

LONGEST = int(gpt2().token_lengths.argmax())


def test_token_lengths_are_those_of_the_bytes() -> None:
    lengths = gpt2().token_lengths
    assert lengths.shape == (1 << 16,)
    assert lengths[EOT_TOKEN] == 0
    assert int(lengths.max()) == 128  # a row of 64 two-byte letters
    for token in (0, 220, 198, 30_000, 50_255, LONGEST):
        assert lengths[token] == len(gpt2().bytes_of(token))


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, VOCAB_SIZE - 1), st.sampled_from([EOT_TOKEN, LONGEST])), max_size=70))
def test_token_bytes_agree_with_decoding(tokens: list[int]) -> None:
    sizes = [0 if token == EOT_TOKEN else len(gpt2().bytes_of(token)) for token in tokens]
    text = TokenBytes(np.array(tokens, np.uint16), gpt2())
    assert text.before(np.arange(len(tokens) + 1)).tolist() == [sum(sizes[:end]) for end in range(len(tokens) + 1)]
    holders = [token for token, size in enumerate(sizes) for _ in range(size)]
    assert text.token_at(np.arange(len(holders))).tolist() == holders


@pytest.mark.parametrize("count", [7, 8, 9, 4096])
def test_token_bytes_of_the_longest_tokens_do_not_overflow(count: int) -> None:
    text = TokenBytes(np.full(count, LONGEST, np.uint16), gpt2())
    assert text.before(np.array([count])).tolist() == [count * int(gpt2().token_lengths[LONGEST])]
