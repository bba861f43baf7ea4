"""Texts to tokens at the machine's speed, with the ids of the library that defines them.

For GPT-2 that is tiktoken, for a `tokenizer.json` it is `tokenizers`. gigatoken splits and merges some twenty times as
fast as the one and eighty times as fast as the other. It is given the vocabulary that `tokenizer` has verified, and
where it could differ from the library, the library's answer is taken: they sort characters into letters, digits, spaces
and others by the Unicode version that they were built with, so a character younger than one of the two ends a word for
one and not for the other. Each character is put to both when it is met for the first time.

A `tokenizer.json` goes to gigatoken if it splits texts as GPT-2 does, such as one trained here. Where gigatoken
is not installed, the library encodes everything, with the same result.
"""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.columns import text_bounds, text_bytes
from gpt_pipeline.data.tokens.stream import Positions, Tokens
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, Tokenizer, gpt2, gpt2_bytes
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.resident import give_back_freed

SEPARATOR = "\x00<|document|>\x00"
"""Stands between the texts that are encoded in one call; texts that hold it go to tiktoken."""

_MAX_INSTANCE_BYTES = 128 << 20  # of text; gigatoken keeps each word it meets, some 70 bytes, and is then begun anew
_N_CODE_POINTS = 0x110000
_HIGHEST = np.uint64(0x8080808080808080)  # bit of each byte: set in all but ASCII
_PROBE_END = "'d"  # the token 'd begins after a letter, a digit or a space, not after another character


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """The tokens of some texts, each after an `<|endoftext|>`."""

    tokens: Tokens
    """uint16, all texts one after the other."""

    starts: Positions
    """Where each text's `<|endoftext|>` stands in `tokens`: int64 [texts]."""


class Encoder(Protocol):
    """Encodes texts; not to be shared by threads."""

    def encode(self, texts: pa.StringArray) -> EncodedTexts:
        """Return the tokens of `texts`, below 1 GB together and none of them null."""


def new_encoder(say: Say, tokenizer: Tokenizer) -> Encoder:
    """Return the fastest exact encoder that is installed; `say` is told when that is not gigatoken."""
    try:
        return FastEncoder(tokenizer)
    except (ImportError, _UnlikeGpt2Error) as error:
        say(
            f"encoding with {tokenizer.library}, the same tokens at a fraction of the speed: not by gigatoken ({error})"
        )
    return ReferenceEncoder(tokenizer)


class Encoders:
    """Encoders of one tokenizer for one thread at a time each, kept for the next file: building one takes 0.2 s."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Begin with none."""
        self.tokenizer = tokenizer
        self._idle: SimpleQueue[Encoder] = SimpleQueue()

    @contextmanager
    def one(self, say: Say) -> Iterator[Encoder]:
        """Yield an encoder that no other thread has."""
        try:
            encoder = self._idle.get_nowait()
        except Empty:
            encoder = new_encoder(say, self.tokenizer)
        yield encoder  # one that failed is not used again
        self._idle.put(encoder)


class ReferenceEncoder:
    """The library that defines the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: pa.StringArray) -> EncodedTexts:
        """Return the tokens of `texts`; a special token's name in them is text."""
        ids = self._tokenizer.encode_batch(texts.to_pylist())
        lengths = np.array([len(own) + 1 for own in ids], dtype=np.int64)
        tokens = np.empty(int(lengths.sum()), dtype=np.uint16)
        starts = np.cumsum(lengths) - lengths
        tokens[starts] = self._tokenizer.eot_token
        for start, own in zip(starts.tolist(), ids, strict=True):
            tokens[start + 1 : start + 1 + len(own)] = own
        return EncodedTexts(tokens=tokens, starts=starts)


class _UnlikeGpt2Error(Exception):
    """The tokenizer does not split texts as GPT-2 does."""


class FastEncoder:
    """gigatoken on one thread, which lets go of the interpreter meanwhile; the library for what the two may dispute."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        """Build it from the verified vocabulary of GPT-2, or that of `tokenizer`.

        Raises:
            ImportError: gigatoken is not installed, or not for this machine.
            _UnlikeGpt2Error: gigatoken is not known to give this tokenizer's ids.
        """
        self._tokenizer = tokenizer or gpt2()
        self._fast = _Gigatoken(self._tokenizer)
        self._gpt2 = self._fast if self._tokenizer.file is None else _Gigatoken(gpt2())
        self._reference = ReferenceEncoder(self._tokenizer)
        self._judged = np.zeros(_N_CODE_POINTS, dtype=np.bool_)
        self._judged[:128] = True
        self._judged[[ord(mark) for mark in self._tokenizer.marks]] = True  # tokens by themselves for both
        self._disputed = np.zeros(_N_CODE_POINTS, dtype=np.bool_)

    def encode(self, texts: pa.StringArray) -> EncodedTexts:
        """Return the tokens of `texts`; a special token's name in them is text."""
        if texts.null_count:
            raise ValueError(f"need texts, found {texts.null_count} nulls among {len(texts)}")
        if len(texts) == 0:
            return EncodedTexts(tokens=np.empty(0, np.uint16), starts=np.empty(0, np.int64))
        joined = _joined(texts)
        if self._is_disputed(joined):
            return self._reference.encode(texts)
        tokens = self._fast.tokens(joined)
        starts = np.flatnonzero(tokens == self._tokenizer.eot_token)
        if len(starts) != len(texts):  # one of them holds the separator
            return self._reference.encode(texts)
        return EncodedTexts(tokens=tokens, starts=starts)

    def _is_disputed(self, text: bytes) -> bool:
        """Whether `text` holds a character that the libraries take for different kinds."""
        if text.isascii():
            return False
        characters = _code_points(text)
        if len(new := np.unique(characters[~self._judged[characters]])):
            self._disputed[new] = self._judge(new)
            self._judged[new] = True
        return bool(self._disputed[characters].any())

    def _judge(self, characters: NDArray[np.uint32]) -> list[bool]:
        """Return which characters end a word for one library and not for the other."""
        probes = [chr(character) + _PROBE_END for character in characters.tolist()]
        if self._tokenizer.file is not None:  # which may have no token of its own for the end
            end = gpt2().encode(_PROBE_END)
            return [
                (self._gpt2.tokens(probe.encode())[-1] == end[-1]) != (_last_word(probe) == _PROBE_END)
                for probe in probes
            ]
        return [
            self._fast.tokens(probe.encode())[1:].tolist() != reference
            for probe, reference in zip(probes, gpt2().encode_batch(probes), strict=True)
        ]


@cache
def _splitting() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _last_word(text: str) -> str:
    """Return the last of the words into which `tokenizers` splits a text as GPT-2 does, with a letter for each byte."""
    return str(_splitting().pre_tokenize_str(text)[-1][0])


class _Gigatoken:
    """gigatoken with `SEPARATOR`, and what stands for ChatML's tokens, as its only special ones, in bounded memory."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from gigatoken import BytesSource

        self._of = tokenizer
        self._source = BytesSource
        self._tokenizer = _new_tokenizer(tokenizer)
        self._bytes = 0

    def tokens(self, text: bytes) -> Tokens:
        """Return `<|endoftext|>` and the tokens of `text`, with `<|endoftext|>` in the place of separators."""
        if self._bytes > _MAX_INSTANCE_BYTES:
            del self._tokenizer  # first, so that there are never two of them
            give_back_freed()  # its words lie between what stays
            self._tokenizer, self._bytes = _new_tokenizer(self._of), 0
        self._bytes += len(text)
        # `encode` would hold Python's lock meanwhile, and plain lists of texts import awkward, which takes 0.2 s.
        ids = self._tokenizer.encode_batch_padded(self._source([text]), 0, parallel=False)[0][0]
        tokens = np.empty(len(ids) + 1, dtype=np.uint16)
        tokens[0] = self._of.eot_token
        tokens[1:] = ids
        return tokens


class _Tokenizer(Protocol):
    """What is used of `gigatoken.Tokenizer`."""

    def encode_batch_padded(
        self, inputs: object, pad_id: int, *, parallel: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...


def _new_tokenizer(of: Tokenizer) -> _Tokenizer:
    import gigatoken

    if of.file is not None:
        own: _Tokenizer = gigatoken.Tokenizer.from_json(_with_separator(of))
        return own
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as folder:  # it reads a vocabulary from files only
        path = Path(folder) / "gpt2.tiktoken"
        path.write_bytes(_tiktoken_file())
        tokenizer: _Tokenizer = gigatoken.Tokenizer.from_tiktoken(path, "gpt2", {SEPARATOR: EOT_TOKEN, **of.marks})
        return tokenizer


@lru_cache(maxsize=8)
def _with_separator(tokenizer: Tokenizer) -> str:
    """Return the `tokenizer.json` with `SEPARATOR`, and what stands for ChatML's tokens, as its only special ones.

    Raises:
        _UnlikeGpt2Error: it does something that GPT-2's does not.
    """
    value = json.loads(tokenizer.file or "")
    model, step, added = value["model"], value.get("pre_tokenizer") or {}, value.get("added_tokens") or ()
    if step.get("type") != "ByteLevel" or not step.get("use_regex", True):
        raise _UnlikeGpt2Error("it does not split texts into words as GPT-2 does")
    if not all(token.get("special") or token["id"] == tokenizer.eot_token for token in added):
        raise _UnlikeGpt2Error("it has added tokens that are found in texts")
    if any(model.get(key) for key in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")):
        raise _UnlikeGpt2Error("its words are not merged as GPT-2's are")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {SEPARATOR: tokenizer.eot_token, **tokenizer.marks}
    tokens = [{"id": id_, "content": text, "special": True, **flags} for text, id_ in special.items()]
    return json.dumps({**value, "added_tokens": tokens})


@cache
def _tiktoken_file() -> bytes:
    """Return the vocabulary in tiktoken's format: a line for each token, its bytes in base64 and its id."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), id_) for id_, token in enumerate(gpt2_bytes()))


def _joined(texts: pa.StringArray) -> bytes:
    letters = text_bytes(texts).data
    bounds = text_bounds(texts).tolist()
    return SEPARATOR.encode().join([letters[first:last] for first, last in itertools.pairwise(bounds)])


def _code_points(text: bytes) -> NDArray[np.uint32]:
    """Return the characters of `text`, valid UTF-8, that are not ASCII."""
    units = np.frombuffer(text, np.uint8)
    first = _first_units(units)
    size = 2 + (units[first] >= 0xE0) + (units[first] >= 0xF0)
    values = units[first].astype(np.uint32) & (0x7F >> size).astype(np.uint32)
    for place in (1, 2, 3):
        longer = size > place
        values[longer] = (values[longer] << np.uint32(6)) | (units[first[longer] + place] & 0x3F)
    return values


def _first_units(units: NDArray[np.uint8]) -> Positions:
    """Return where the characters that are not ASCII begin, in no order; eight bytes are looked at together.

    The first byte of such a character, and no other, has both of its highest bits set.
    """
    whole = len(units) // 8 * 8
    words = units[:whole].view("<u8")
    blocks = np.flatnonzero((words & _HIGHEST) != 0)  # few
    found = words[blocks] & (words[blocks] << np.uint64(1)) & _HIGHEST
    places = [whole + np.flatnonzero(units[whole:] >= 0xC0)]
    while len(blocks := blocks[found != 0]):
        found = found[found != 0]
        lowest = np.bitwise_count((found & (~found + np.uint64(1))) - np.uint64(1)) // 8
        places.append(8 * blocks + lowest)
        found &= found - np.uint64(1)
    return np.concatenate(places)
