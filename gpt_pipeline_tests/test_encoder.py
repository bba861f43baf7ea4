from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
import sys
import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.tokens.encoder import (
    SEPARATOR,
    Encoder,
    Encoders,
    FastEncoder,
    ReferenceEncoder,
    _code_points,
    new_encoder,
)
from gpt_pipeline.data.tokens.tokenizer import EOT, EOT_TOKEN, Tokenizer, gpt2, read_tokenizer

pytest.importorskip("gigatoken", reason="has no wheel for this machine")

YOUNG = "\U000323b0"  # CJK Extension J, of Unicode 17: a letter for gigatoken 0.10, not yet for tiktoken 0.14
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_END = {"id": 1, "content": "</s>", "special": True}
CATEGORIES = ("L", "M", "N", "P", "S", "Z", "C")


@cache
def fast() -> FastEncoder:
    return FastEncoder()


def ids(encoder: Encoder, texts: list[str], eot_token: int = EOT_TOKEN) -> list[list[int]]:
    encoded = encoder.encode(pa.array(texts, pa.string()))
    assert encoded.tokens.dtype == np.uint16
    assert (encoded.tokens[encoded.starts] == eot_token).all()
    bounds = [*encoded.starts.tolist(), len(encoded.tokens)]
    return [encoded.tokens[start + 1 : end].tolist() for start, end in itertools.pairwise(bounds)]


def tiktoken_ids(texts: list[str]) -> list[list[int]]:
    return [gpt2().encode(text) for text in texts]


def of_kind(kind: str) -> st.SearchStrategy[str]:
    return st.characters(codec="utf-8", categories=(kind,))  # type: ignore[arg-type]


PIECES = st.one_of(
    st.text(max_size=20),
    *[of_kind(kind) for kind in ("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cn")],
    st.sampled_from(
        [EOT, "<|", "|>", "endoftext", "'s", "'LL", "'ve", "\u2019s", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\xa0"]
    ),
    st.sampled_from(["\u3000", "\x85", "\x1c", "\u180e", "\u200b", "\ufeff", "\u2028", "\x00", "\x7f", "\x80"]),
    st.sampled_from(
        ["e\u0301", "\u0301", "한국어", "中文。", "ก็", "٣", "²", "Ⅷ", "½", "🇩🇪", "👨\u200d👩\u200d👧\u200d👦", YOUNG]
    ),
    st.sampled_from(["Q: ", "\n\nReasoning:\n", "\n\nA: ", "→", "—", "1234567890", "3.14", "don't", "ABC", SEPARATOR]),
    st.builds(
        lambda unit, times: unit * times, st.sampled_from(["a", " ", "\n", "0", "!", "é", "\x00"]), st.integers(2, 300)
    ),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
@example(texts=[f"{YOUNG}'d"])
@example(texts=["", "", ""])
@example(texts=[f"a {EOT} b", EOT, f"{EOT}{EOT}"])
@example(texts=[SEPARATOR, f"a{SEPARATOR}b"])
def test_encoder_hostile_texts_have_tiktokens_ids(texts: list[str]) -> None:
    assert ids(fast(), texts) == tiktoken_ids(texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_reference_encoder_hostile_texts_have_tiktokens_ids(texts: list[str]) -> None:
    assert ids(ReferenceEncoder(gpt2()), texts) == tiktoken_ids(texts)


@pytest.mark.parametrize("kind", CATEGORIES)
def test_encoder_every_character_between_others_has_tiktokens_ids(kind: str) -> None:
    characters = [chr(code) for code in range(0x3500) if unicodedata.category(chr(code))[0] == kind]
    characters = [character for character in characters if unicodedata.category(character) != "Cs"]
    texts = [f"a{one}'d {one}1{one}{one} {one}.{one}\n{one}" for one in characters]
    assert ids(fast(), texts) == tiktoken_ids(texts)


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "0", "é", "中", "👍", "-", "ab ", "\r\n", "'s", "\u0301", "\x00", "A1!"]
)
def test_encoder_very_long_runs_have_tiktokens_ids(unit: str) -> None:
    texts = [unit * 20_000, "x" + unit * 999 + "y"]
    assert ids(fast(), texts) == tiktoken_ids(texts)


@cache
def own() -> Tokenizer:
    """A tokenizer of another vocabulary, without a token for `'d` and with its end in the middle."""
    from tokenizers import Tokenizer as Encoding
    from tokenizers import models, pre_tokenizers, trainers

    encoding = Encoding(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    encoding.train_from_iterator([f"a{YOUNG}b the cat sat 123 on naïve 中文中文 mats ..."] * 9, trainer)
    return read_tokenizer(encoding.to_str(), source="a test")


@cache
def fast_own() -> FastEncoder:
    return FastEncoder(own())


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
@example(texts=[f"a{YOUNG}b", f" {YOUNG}", f"{YOUNG}'d"])
@example(texts=["a </s> b<pad>", "</s>", SEPARATOR])
def test_encoder_of_another_tokenizer_has_the_ids_of_its_library(texts: list[str]) -> None:
    assert ids(fast_own(), texts, own().eot_token) == [own().encode(text) for text in texts]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, _BYTE_LEVEL]}}, "into words"),
        ({"added_tokens": [_END, {**_END, "id": 0, "content": "cat", "special": False}]}, "added tokens"),
    ],
)
def test_encoder_of_a_tokenizer_unlike_gpt2_is_its_library_and_says_so(change: dict[str, Any], told: str) -> None:
    file = {**json.loads(own().file or ""), **change}
    other, said = dataclasses.replace(own(), file=json.dumps(file)), list[str]()
    assert isinstance(new_encoder(said.append, other), ReferenceEncoder)
    assert told in said[0]


def test_encoder_characters_the_libraries_dispute_are_left_to_tiktoken() -> None:
    encoder = FastEncoder()
    text = f"{YOUNG}'d"
    libraries_differ = encoder._fast.tokens(text.encode())[1:].tolist() != gpt2().encode(text)
    assert encoder._is_disputed(text.encode()) == libraries_differ
    assert not encoder._is_disputed("naïve — “quoted” → 中文 👍".encode())


def test_encoder_new_instances_in_between_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a few words", "and some more of them"] * 20
    monkeypatch.setattr("gpt_pipeline.data.tokens.encoder._MAX_INSTANCE_BYTES", 100)
    encoder = FastEncoder()
    first = encoder._fast._tokenizer
    assert ids(encoder, texts) == ids(encoder, texts) == tiktoken_ids(texts)
    assert encoder._fast._tokenizer is not first


def test_encoders_are_taken_by_one_at_a_time_and_used_again_unless_they_failed() -> None:
    encoders = Encoders(gpt2())
    with encoders.one(print) as first, encoders.one(print) as second:
        assert first is not second
    with encoders.one(print) as again:
        assert again is second or again is first
    with pytest.raises(ValueError, match="nulls"), encoders.one(print) as failed:
        failed.encode(pa.array([None], pa.string()))
    with encoders.one(print) as one, encoders.one(print) as other:
        assert failed not in (one, other)


def test_encoder_slice_of_a_column_is_encoded_alone() -> None:
    column = pa.array(["one", "two", "three", "four"])
    encoded = fast().encode(column.slice(1, 2))
    assert encoded.tokens.tolist() == [EOT_TOKEN, *gpt2().encode("two"), EOT_TOKEN, *gpt2().encode("three")]


def test_encoder_null_text_is_refused() -> None:
    with pytest.raises(ValueError, match="1 nulls"):
        fast().encode(pa.array(["a", None]))


def test_encoder_without_gigatoken_is_tiktoken_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def refuse(name: str, *arguments: object) -> object:
        if name.startswith("gigatoken"):
            raise ImportError("DLL load failed")
        return importing(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "gigatoken", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    said: list[str] = []
    assert isinstance(new_encoder(said.append, gpt2()), ReferenceEncoder)
    assert len(said) == 1


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \n\x7f\x80é߿ࠀ→\uffff\U00010000👍🏽\U0010ffff"), max_size=60))
def test_code_points_are_the_texts_characters_beyond_ascii(text: str) -> None:
    found = _code_points(text.encode())
    assert sorted(map(chr, found.tolist())) == sorted(character for character in text if not character.isascii())
