"""The tokenizer of an export, in the words of GGUF: tokens by id, merges, special tokens, and how texts are cut.

It is made of `tokenizer.json` and `tokenizer_config.json` as `write_tokenizer` writes them, so that llama.cpp has the
same tokens, ends and chat template as `transformers`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.tokenizer_files import special_names, write_tokenizer
from gpt_pipeline.storage.atomic import read_json

if TYPE_CHECKING:
    import gguf

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")
_CUTS: Mapping[tuple[str, ...], str] = {  # llama.cpp's name for the steps before the BPE (src/llama-vocab.cpp)
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA_3, "bytes"): "dbrx",
    (_QWEN_2, "bytes"): "qwen2",
}
_WHOLE_WORDS: Mapping[str, str] = {"dbrx": "llama-bpe"}  # of those, where a word that is a token is not merged


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """A byte-level BPE as GGUF has it."""

    pre: str
    """llama.cpp's name for how texts are cut before the BPE."""

    tokens: Mapping[int, str] = field(repr=False)
    """The text of each token by id, a letter for each byte; of an added token the text itself."""

    special: frozenset[int]
    """Ids of special tokens."""

    added: frozenset[int]
    """Ids of other added tokens, which are found before a text is cut."""

    merges: Sequence[str] = field(repr=False)
    bos: int
    """Id of the token that stands before every text."""

    eos: int
    """Id of the token that ends an answer or a document."""

    template: str | None = field(repr=False)
    """The chat template, in Jinja."""

    def add_to(self, writer: gguf.GGUFWriter, *, ids: int) -> None:
        """Write it for a model of so many ids; those without a token are marked unused."""
        writer.add_tokenizer_model("gpt2")  # llama.cpp's name for a byte-level BPE
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([self.tokens.get(id_, f"[unused {id_}]") for id_ in range(ids)])
        writer.add_token_types([self._kind(id_) for id_ in range(ids)])
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_add_bos_token(True)  # as in training: nothing begins without it
        writer.add_add_eos_token(False)
        if self.template is not None:
            writer.add_chat_template(self.template)

    def _kind(self, id_: int) -> int:
        import gguf

        if id_ in self.special:
            return int(gguf.TokenType.CONTROL)
        if id_ in self.added:
            return int(gguf.TokenType.USER_DEFINED)
        return int(gguf.TokenType.NORMAL if id_ in self.tokens else gguf.TokenType.UNUSED)


def gguf_tokenizer(tokenizer: Tokenizer, *, max_length: int, chat_template: str | None) -> GgufTokenizer:
    """Return what GGUF says of this tokenizer.

    Raises:
        UserError: llama.cpp has no name for how it cuts texts.
    """
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as temporary:
        folder = Path(temporary)
        write_tokenizer(folder, tokenizer, max_length=max_length, chat_template=chat_template)
        file, config = read_json(folder / TOKENIZER_NAME), read_json(folder / "tokenizer_config.json")
    added = {token["content"]: token["id"] for token in file.get("added_tokens") or ()}
    ids = {**file["model"]["vocab"], **added}
    special = frozenset(added[name] for name in special_names(tokenizer))
    return GgufTokenizer(
        pre=_pre(file),
        tokens={id_: text for text, id_ in ids.items()},
        special=special,
        added=frozenset(added.values()) - special,
        merges=[each if isinstance(each, str) else " ".join(each) for each in file["model"].get("merges") or ()],
        bos=ids[config["bos_token"]],
        eos=ids[config["eos_token"]],
        template=config.get("chat_template"),
    )


def _pre(file: Mapping[str, Any]) -> str:
    step = file["pre_tokenizer"]
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    cut = tuple(map(_word, steps))
    pre = _CUTS.get(cut)
    if file["model"].get("ignore_merges"):
        pre = _WHOLE_WORDS.get(pre or "")
    if pre is None:
        raise UserError(
            f"--format gguf: found a tokenizer whose texts are cut by {', '.join(cut)}, need one that llama.cpp knows, "
            "such as GPT-2's or one of data.tokenizer: {train: N}; use --format hf"
        )
    return pre


def _word(step: Mapping[str, Any]) -> str:
    """Return a step in a word if its settings are the usual ones; else with its settings, which no name fits."""
    match step:
        case {"type": "ByteLevel", "use_regex": False}:
            return "bytes"
        case {"type": "ByteLevel"}:
            return "ByteLevel"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return str(dict(step))
