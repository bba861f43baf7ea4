"""The tokenizer as files for `transformers` and `tokenizers`: GPT-2's, made from the verified vocabulary, or a file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_pipeline.data.formats.forms import END, MARKS
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME
from gpt_pipeline.data.tokens.tokenizer import (
    EOT,
    EOT_TOKEN,
    Tokenizer,
    byte_order,
    gpt2,
    letter,
    read_tokenizer,
    vocabulary,
    with_turns,
)
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import read_json, write_json, write_text

_CONFIG_NAME = "tokenizer_config.json"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, max_length: int, chat_template: str | None = None) -> None:
    """Write tokenizer.json, what else GPT-2's has, and two configs; `max_length` is that of the training sequences."""
    special: dict[str, Any]
    if tokenizer.file is None:
        for name, text in _gpt2_files(tuple(_special_of_gpt2(tokenizer).items())).items():
            write_text(folder / name, text)
        kind = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "add_bos_token": False}
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT)
    else:
        write_text(folder / TOKENIZER_NAME, tokenizer.file)
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
        special = dict.fromkeys(("bos_token", "eos_token"), tokenizer.eot)
    if tokenizer.marks:
        names = [MARKS[mark] for mark in tokenizer.marks]
        special |= {"eos_token": MARKS[END], "pad_token": tokenizer.eot, "additional_special_tokens": names}
    lengths = {"model_max_length": max_length, "clean_up_tokenization_spaces": False, "errors": "replace"}
    chat = {} if chat_template is None else {"chat_template": chat_template}
    write_json(folder / _CONFIG_NAME, {**kind, **lengths, **special, **chat})
    write_json(folder / "special_tokens_map.json", special)


def special_names(tokenizer: Tokenizer) -> list[str]:
    """Return the texts that `transformers` reads as special tokens of this tokenizer."""
    added = [] if tokenizer.file is None else json.loads(tokenizer.file)["added_tokens"]
    own = (MARKS[mark] for mark in tokenizer.marks)
    return sorted({tokenizer.eot, *own, *(token["content"] for token in added if token.get("special"))})


@functools.cache
def _gpt2_files(special: tuple[tuple[str, int], ...]) -> Mapping[str, str]:
    """Return the files of GPT-2's tokenizer, as text by name, with the ids of these special tokens."""
    merges = _merges()
    return {
        "vocab.json": _compact(token_ids()),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        TOKENIZER_NAME: _compact(_fast_tokenizer(merges, dict(special))),
    }


@functools.cache
def token_ids() -> Mapping[str, int]:
    """Return every token's id by its text, with a letter for each byte."""
    texts = [*(letter(byte) for byte in byte_order()), *(merge.replace(" ", "") for merge in _merges()), EOT]
    return {text: number for number, text in enumerate(texts)}


def _special_of_gpt2(tokenizer: Tokenizer) -> dict[str, int]:
    return {EOT: EOT_TOKEN, **{MARKS[mark]: id_ for mark, id_ in tokenizer.marks.items()}}


def tokenizer_of(folder: Path, model: ModelConfig) -> Tokenizer:
    """Return the tokenizer in the folder of `model`, as `folder_tokenizer` does.

    Raises:
        UserError: it cannot be used, or has more ids than the model.
        DamagedFileError: a file cannot be read.
    """
    tokenizer = folder_tokenizer(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{folder}: found a model of {model.vocab_size} ids and a tokenizer of {tokenizer.vocab_size}, need the "
            f"model's own {TOKENIZER_NAME} in this folder (without one, it is taken to be GPT-2's)"
        )
    return tokenizer


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in a model's folder: GPT-2's if it has those ids, or no file that says otherwise.

    With the tokens of ChatML, if it has them as an export writes them.

    Raises:
        UserError: it is one that cannot be used.
        DamagedFileError: a file cannot be read.
    """
    readers: dict[str, Callable[[Any], Any]] = {"vocab.json": lambda value: value, TOKENIZER_NAME: _fast_vocabulary}
    there = {name: folder / name for name in readers if (folder / name).is_file()}
    other = [name for name, path in there.items() if _read(path, readers[name]) != token_ids()]
    if not other:
        return gpt2()
    if other == [TOKENIZER_NAME] and _read(there[TOKENIZER_NAME], readers[TOKENIZER_NAME]) == _ids_with_turns():
        return with_turns(gpt2())
    if TOKENIZER_NAME not in other:
        raise UserError(
            f"{folder / other[0]}: found tokens that are not GPT-2's, need a {TOKENIZER_NAME} of theirs beside it, as "
            "`tokenizers` saves it, which says how texts are cut"
        )
    path = there[TOKENIZER_NAME]
    found = read_tokenizer(path.read_bytes().decode(), source=path)
    return with_turns(found) if _exported_with_turns(folder / _CONFIG_NAME, found) else found


def _exported_with_turns(config: Path, tokenizer: Tokenizer) -> bool:
    """Whether `write_tokenizer` wrote it of documents in ChatML: they begin by one token, and answers end by another.

    Instruct models of others begin by another token or none. They are read as plain, and may be trained so.
    """
    if not {*MARKS.values()} <= {*special_names(tokenizer)} or not config.is_file():
        return False
    ends = _read(config, lambda value: [value["bos_token"], value["eos_token"]])
    return bool(ends == [tokenizer.eot, MARKS[END]])


def _ids_with_turns() -> dict[str, int]:
    return {**token_ids(), **_special_of_gpt2(with_turns(gpt2()))}


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    """Return what `read` finds in a file; None for a file of another kind."""
    try:
        return read(read_json(path))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {error}; bring it here again") from error
    except (LookupError, TypeError, AttributeError):
        return None


def _fast_vocabulary(value: Any) -> dict[str, Any]:
    added = {token["content"]: token["id"] for token in value.get("added_tokens") or ()}
    return {**value["model"]["vocab"], **added}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"  # a third of the indented size


def _merges() -> list[str]:
    return vocabulary().split("\n")[1:-1]  # the first line is a version


def _fast_tokenizer(merges: list[str], special: Mapping[str, int]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": token_ids(),
        "merges": [merge.split(" ") for merge in merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": name, **flags} for name, id_ in special.items()],
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": {**_BYTE_LEVEL, "trim_offsets": False},
        "decoder": _BYTE_LEVEL,
        "model": model,
    }
