"""The `data:` block of an experiment file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from gpt_pipeline.errors import ConfigError, require
from gpt_pipeline.storage.fingerprint import added_later

SYNTH = "PleIAs/SYNTH"
SAMPLE = "sample"
ALL = "all"
"""As `languages`: all of them."""

GPT2 = "gpt2"
STREAM, DOCUMENTS = "stream", "documents"  # of `packing`
COMPARED = re.compile(r"\s*(>=|<=|>|<)\s*(.*?)\s*")
"""A bound in `filter`: how it compares, and the number."""

_PART_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)  # what the hub allows
_PATH = re.compile(r"\.{1,2}[\\/]|[\\/]|~[\\/]|[A-Za-z]:[\\/]")


MAX_IDS = 1 << 16
"""Of a tokenizer: token shards have 16 bits for each token."""

PLAIN: Literal["plain"] = "plain"  # of `template`
CHATML: Literal["chatml"] = "chatml"
CHATML_SUFFIX = "+chatml"
"""Behind what facts and settings say of a tokenizer that has the tokens of ChatML."""

ADDED_TURNS = "added_turns"
"""Of the facts of shards: the ids of ChatML's tokens, where the tokenizer had none of its own."""

FORMAT_COLUMNS = {
    "synth": (),
    "text": ("text",),
    "question_answer": ("question", "reasoning", "answer", "result"),
    "chat": ("messages",),
}
"""The keys of `data.columns` that each format reads."""


Exact = Annotated[str, "exact"]
"""Text of a file's own, which may hold line ends, tabs and the like; in a path those are a slip."""

LENGTH_OF_PART = 2
"""`max_length` of a part of a mix by itself: it is the mix that has to be longer than a sequence."""


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which columns of the files hold what the format needs; one inside another by a dot, such as `meta.body`."""

    text: Exact = "text"
    """The column with the text of each document, for `format: text`."""

    question: Exact = added_later("question")
    """The column with the question, for `format: question_answer`."""

    answer: Exact = added_later("answer")
    """The column with the answer, text or a number, for `format: question_answer`."""

    reasoning: Exact | None = added_later(None)
    """The column with what leads to the answer, for `format: question_answer`; null: there is none."""

    result: Exact | None = added_later(None)
    """The column with the answer in short, such as a number, by which a model's answers are judged, for
    `format: question_answer`; null: they are judged by the whole answer."""

    messages: Exact = added_later("messages")
    """The column with the list of messages (`role` and `content`, or `from` and `value`), for `format: chat`."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer of the experiment's own, trained on its training documents."""

    train: int
    """Ids of its byte-level BPE, `<|endoftext|>` and the 256 bytes among them: from 258 to 65,536."""

    def __post_init__(self) -> None:
        need = f"a whole number from 258 (256 bytes, <|endoftext|> and a merge) to {MAX_IDS} (what 16 bits hold)"
        require(258 <= self.train <= MAX_IDS, "train", found=self.train, need=need)


@dataclass(frozen=True, kw_only=True)
class SharedTokenizerConfig(TokenizerConfig):
    """A tokenizer that the parts of a mix share, trained on the training documents of all of them."""

    parts: tuple[DataConfig, ...]
    """The parts, as far as they say which documents those are."""


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """Which documents to take from one source."""

    num_samples: int | Literal["all"] | None
    """Documents to use, taken in file order; `all` or null: the whole source."""

    source: str = SYNTH
    """A dataset of the hub (`owner/name`); a folder, a file or a pattern of your own, which begins
    with `./`, `../`, `/` or `~` (`../texts`, `./chats/*.jsonl.gz`); or `sample`: documents that the project generates
    itself."""

    revision: str | None = None
    """Commit of the hub's dataset; null: the newest at the first download, recorded and kept from then on. Beside files
    of your own it means nothing, as `plan` warns."""

    subset: str | None = added_later(None)
    """The subset of the hub's dataset, as its page calls it, or a folder of it; null: the default or the only one."""

    split: str | None = added_later(None)
    """The split of the hub's dataset; null: `train` or the only one."""

    local_dataset_path: str | None = None
    """A folder with files such as those of SYNTH as downloaded from the hub; used instead of `source`."""

    format: Literal["synth", "text", "question_answer", "chat"] = added_later("synth")
    """What a row is: `synth`, with SYNTH's columns; `text`, with the text of a document in one column;
    `question_answer`, with a question, an answer and, if there is one, the reasoning between them; or `chat`, with a
    list of messages."""

    columns: ColumnsConfig = added_later(ColumnsConfig())  # frozen
    """The names of the columns that the format reads."""

    filter: Mapping[str, str] | None = added_later(None)
    """Which rows to keep, by columns: a value, or a bound (`{language: en, score: '>= 3'}`); null: all rows."""

    group: Exact | None = added_later(None)
    """The column that names what must not be split between training and validation, such as the book that a page is
    of; null: each document by itself. SYNTH's seed articles stay together in any case."""

    kind: Exact | None = added_later(None)
    """The column by whose values losses and scores are broken down; null: none. SYNTH has its kinds of exercise."""

    languages: tuple[str, ...] | str = added_later(("en",))
    """The languages of SYNTH's rows to keep, such as `[de, fr]`, or `all` of them."""

    split_text_at: Exact | None = added_later(None)
    """Where documents end in plain text files: `line`, or a mark such as `<|endoftext|>` or, in double quotes,
    `"\\n\\n"`; null: with the file."""

    join_parts: bool = added_later(False)
    """Whether text parts are joined where the content of a message is a list of them, as OpenAI's interface writes it
    (`[{"type": "text", "text": ...}]`), for `format: chat`; false: conversations with such a message are left out."""

    near_duplicates: float | None = added_later(None)
    """Leave out a document if it and an earlier one have at least this share of runs of five words in common, of all
    that either has, such as 0.8; null: only those with the same text."""

    @property
    def wanted_languages(self) -> tuple[str, ...] | None:
        """`languages` in order, each once; None for all."""
        languages = (self.languages,) if isinstance(self.languages, str) else self.languages
        return None if languages == (ALL,) else tuple(sorted(set(languages)))

    @property
    def is_english(self) -> bool:
        """Whether the documents are SYNTH's in English, as they were in the first experiments."""
        return self.format == "synth" and self.wanted_languages == ("en",)

    @property
    def in_languages(self) -> str:
        """What is to be said of the languages behind `documents`; nothing for other formats, and for all of them."""
        languages = self.wanted_languages
        return f" in {', '.join(languages)}" if self.format == "synth" and languages is not None else ""

    @property
    def document_limit(self) -> int | None:
        """Documents to use at most; None for the whole source."""
        return None if self.num_samples is None or isinstance(self.num_samples, str) else self.num_samples

    @property
    def way_to_more(self) -> str:
        """What to do for more documents, for a person."""
        return "add documents" if self.document_limit is None else "raise data.num_samples"

    @property
    def way_to_two(self) -> str:
        """What to do where there is one document alone, for a person."""
        if self.format != "text" or self.split_text_at is not None or self.document_limit == 1:
            return self.way_to_more
        return f"part a text file by data.split_text_at, such as `split_text_at: line`, or {self.way_to_more}"

    @property
    def amount(self) -> str:
        """`num_samples` for a person."""
        return "all" if self.document_limit is None else f"{self.document_limit:,}"

    @property
    def origin(self) -> str:
        """Where the documents come from, for a person."""
        return on_hub(self.source, self.subset, self.split) if self.local is None else f"local files {self.local}"

    @property
    def is_sample(self) -> bool:
        """Whether the project generates the documents itself."""
        return self.local is None and self.source == SAMPLE

    @property
    def local(self) -> str | None:
        """The folder, file or pattern of one's own that the documents come from; None for the hub and the sample."""
        return self.local_dataset_path or (self.source if is_path(self.source) else None)

    @property
    def local_key(self) -> str:
        """The key that names it, without its block."""
        return "source" if self.local_dataset_path is None else "local_dataset_path"

    def at(self, path: str) -> Self:
        """Return the same block with `path` in the place of `local`."""
        if self.local_dataset_path is None:
            return dataclasses.replace(self, source=path)
        return dataclasses.replace(self, local_dataset_path=path)

    def __post_init__(self) -> None:
        limit = self.document_limit
        require(
            limit is None or limit > 0, "num_samples", found=self.num_samples, need="a whole number above 0, or all"
        )
        self._require_fitting_columns()
        require(
            self.near_duplicates is None or 0 < self.near_duplicates <= 1,
            "near_duplicates",
            found=self.near_duplicates,
            need="a share above 0, at most 1, such as 0.8; or null",
        )
        require(
            self.format == "synth" or not self.is_sample,
            "format",
            found=self.format,
            need=f"synth with source={SAMPLE}; for files of your own set data.source to their folder",
        )
        require(
            self.source == SAMPLE or is_path(self.source) or is_hub_name(self.source),
            "source",
            found=self.source,
            need=f"a dataset of the hub such as {SYNTH}, a path such as ./{self.source.strip('/')}, or {SAMPLE}",
        )

        for name in ("subset", "split"):
            found = getattr(self, name)
            is_on_hub = self.local is None and not self.is_sample
            need = (
                f"no such key with {self.origin}: only datasets of the hub have {name}s; use a pattern for your files"
            )
            require(found is None or is_on_hub, name, found=found, need=need)
            require(found is None or bool(found.strip()), name, found=found, need=f"the name of a {name}, or null")

    def _require_fitting_columns(self) -> None:
        """Raise `ConfigError` if a column is named that the format does not read."""
        read, neutral = FORMAT_COLUMNS[self.format], ColumnsConfig()
        for name, default in dataclasses.asdict(neutral).items():
            found = getattr(self.columns, name)
            fitting = [each for each, columns in FORMAT_COLUMNS.items() if name in columns]
            require(
                name in read or found == default,
                f"columns.{name}",
                found=found,
                need=f"no such key with data.format={self.format}; set data.format: {fitting[0]}",
            )
        for name in ("group", "kind"):
            found = getattr(self, name)
            need = "none with data.format=synth, which has its own; leave it out, or set data.format"
            require(self.format != "synth" or found is None, name, found=found, need=need)
        require(
            self.split_text_at is None or (self.format == "text" and self.split_text_at != ""),
            "split_text_at",
            found=self.split_text_at,
            need="`line` or a mark, and data.format=text",
        )
        require(
            self.format == "chat" or not self.join_parts,
            "join_parts",
            found=self.join_parts,
            need=f"no such key with data.format={self.format}; leave it out, or set data.format: chat",
        )
        require(
            self.format == "synth" or self.wanted_languages == ("en",),
            "languages",
            found=self.languages,
            need="no such key with data.format="
            f"{self.format}; keep the rows of one language by data.filter, such as `filter: {{language: de}}`",
        )
        require(
            ALL not in (self.wanted_languages or ()) and all(map(str.strip, self.wanted_languages or ())),
            "languages",
            found=self.languages,
            need="languages as SYNTH names them, such as [en, fr], or `all` alone",
        )
        for column, text in (self.filter or {}).items():
            bound = COMPARED.fullmatch(text)
            require(
                bound is None or as_number(bound[2]) is not None,
                f"filter.{column}",
                found=text,
                need=f"a number behind {bound and bound[1]}, such as `{column}: '>= 3'`",
            )


_KEY_OF_PART = re.compile(
    rf"(?<![\w./\\-])data\.(?=({'|'.join(each.name for each in dataclasses.fields(DocumentsConfig))})\b)"
)


def as_of_part(text: str, name: str) -> str:
    """Return `text` with the keys of a source that it names as those of the part `name` of a mix, if it is one."""
    return _KEY_OF_PART.sub(f"data.mix.{name}.", text) if name else text


@dataclass(frozen=True, kw_only=True)
class PartConfig(DocumentsConfig):
    """One source of a mix."""

    num_samples: int | Literal["all"] | None = None
    """Documents to use at most, taken in file order; null: as many as `data.num_samples` says."""

    share: float
    """How many of the training tokens come from here, in proportion to the other parts: 7 and 3 are 0.7 and 0.3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.share > 0, "share", found=self.share, need="a number above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig(DocumentsConfig):
    """Which documents to train on, and how they are cut."""

    max_length: int = 512
    """Tokens in one training sequence."""

    packing: Literal["stream", "documents"] = added_later("stream")
    """What a training sequence is: `stream`, a window of all documents, one behind the other, that begins and ends
    anywhere; or `documents`, whole documents that see nothing of each other, with a little padding at its end, where
    only a document above `max_length` is cut. Left out, it is `documents` with `training.objective: sft`."""

    validation_fraction: float = 0.005
    """Share of documents held out of training, in (0, 0.5]; those of one group stay together (with SYNTH, of one
    article)."""

    seed: int = 0
    """Chooses which documents are held out."""

    tokenizer: str | TokenizerConfig = added_later(GPT2)
    """What makes tokens of the text: `gpt2`; a `tokenizer.json` of your own, by a path that begins with `./`, `../`,
    `/` or `~`; that of a model on the hub, by its name; or `{train: 16384}`, a byte-level BPE with so many ids that is
    trained on the training documents. `model.vocab_size` follows."""

    template: Literal["plain", "chatml"] = added_later(PLAIN)
    """How documents of questions and conversations are written: `plain`, as `Q: ...`, `Reasoning:`, `A: ...`; or
    `chatml`, in turns between the tokens `<|im_start|>` and `<|im_end|>`, with the reasoning in `<think>`. Texts have
    no turns and are written the same with both; the tokens are then there for a later training, or from an earlier."""

    mix: Mapping[str, PartConfig] | None = added_later(None)
    """Several sources instead of one, each under a name of yours and with its share of the training tokens; null: the
    one source of this block. `num_samples` then holds for each part that names no other."""

    mix_until: Literal["first_exhausted", "all_exhausted"] = added_later("first_exhausted")
    """Where an epoch of a mix ends: when the first part has no more documents, of which the others then leave some out;
    or when the last one has none, so that the others repeat theirs."""

    @property
    def parts(self) -> Mapping[str, DataConfig]:
        """The parts of the mix as blocks of their own, by name; without a mix, this block under an empty name."""
        if self.mix is None:
            return {"": self}
        parts = {name: self._part(part) for name, part in self.mix.items()}
        if not isinstance(self.tokenizer, TokenizerConfig):
            return parts
        documents = tuple(sorted((dataclasses.replace(part, tokenizer=GPT2) for part in parts.values()), key=repr))
        shared = SharedTokenizerConfig(train=self.tokenizer.train, parts=documents)
        return {name: dataclasses.replace(part, tokenizer=shared) for name, part in parts.items()}

    @property
    def writes_turns(self) -> bool:
        """Whether documents are written in the turns of ChatML; those of a mix, each by itself."""
        return self.template == CHATML and self.format != "text"

    @property
    def tokenizer_on_hub(self) -> str | None:
        """The model on the hub whose tokenizer is named; None for any other tokenizer."""
        named = self.tokenizer
        return named if isinstance(named, str) and named != GPT2 and not is_path(named) else None

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of each of `parts`, together 1."""
        if self.mix is None:
            return {"": 1.0}
        total = math.fsum(part.share for part in self.mix.values())
        return {name: part.share / total for name, part in self.mix.items()}

    @property
    def origin(self) -> str:
        """Where the documents come from, for a person."""
        if self.mix is None:
            return super().origin
        return "a mix of " + " and ".join(part.origin for part in self.parts.values())

    def is_held_out_in(self, base: DataConfig) -> bool:
        """Whether `base` holds out all documents that this does, of what both have."""
        same = (self.seed, self.group) == (base.seed, base.group)
        return same and self.validation_fraction <= base.validation_fraction

    @property
    def way_to_more(self) -> str:
        """What to do for more documents, for a person; of a mix, parts may have limits of their own."""
        if self.mix is None or all(part.num_samples is None for part in self.mix.values()):
            return super().way_to_more
        is_limited = any(part.document_limit is not None for part in self.parts.values())
        return "raise num_samples of a part, or add documents" if is_limited else "add documents"

    @property
    def documents(self) -> str:
        """How many documents are used, and where they come from, for a person; of a mix, those of each part."""
        return " and ".join(f"{part.amount} documents of {part.origin}" for part in self.parts.values())

    def _part(self, part: PartConfig) -> DataConfig:
        own = {each.name: getattr(part, each.name) for each in dataclasses.fields(DocumentsConfig)}
        if part.num_samples is None:
            own["num_samples"] = self.num_samples
        assert self.mix is not None
        has_turns = any(each.format != "text" for each in self.mix.values())
        own["template"] = PLAIN if part.format == "text" and has_turns else self.template
        # The mix has to be longer than a sequence, not each of its parts.
        return dataclasses.replace(self, max_length=LENGTH_OF_PART, mix=None, mix_until="first_exhausted", **own)

    def __post_init__(self) -> None:
        require(
            isinstance(self.tokenizer, TokenizerConfig)
            or self.tokenizer == GPT2
            or is_path(self.tokenizer)
            or is_hub_name(self.tokenizer),
            "tokenizer",
            found=self.tokenizer,
            need="gpt2, the path of a tokenizer.json such as ./tokenizer.json, the name of a model on the hub, or "
            "{train: 16384}",
        )
        require(self.max_length > 1, "max_length", found=self.max_length, need="a whole number above 1")
        require(
            0 < self.validation_fraction <= 0.5,
            "validation_fraction",
            found=self.validation_fraction,
            need="a number above 0, at most 0.5",
        )
        require(self.seed >= 0, "seed", found=self.seed, need="a whole number, 0 or above")
        if self.mix is None:
            super().__post_init__()
            self._require_an_end()
        else:
            self._require_a_mix(self.mix)
        if isinstance(self.tokenizer, TokenizerConfig) and self.template == CHATML:
            most = MAX_IDS - 2
            need = f"at most {most} with data.template: chatml, which adds the ids of its two tokens"
            require(self.tokenizer.train <= most, "tokenizer.train", found=self.tokenizer.train, need=need)
        require(
            self.mix_until == "first_exhausted" or self.mix is not None,
            "mix_until",
            found=self.mix_until,
            need="no such key without data.mix",
        )

    def _require_an_end(self) -> None:
        require(
            self.document_limit is not None or not self.is_sample,
            "num_samples",
            found=self.num_samples,
            need=f"a whole number above 0 with source={SAMPLE}, which has no end",
        )

    def _require_a_mix(self, mix: Mapping[str, PartConfig]) -> None:
        """Raise `ConfigError` unless there are parts to mix, each of them usable, and no source beside them."""
        require(len(mix) > 1, "mix", found=len(mix), need="at least two parts; name a single source by data.source")
        for each in dataclasses.fields(DocumentsConfig):
            found = getattr(self, each.name)
            need = "no such key beside data.mix, whose parts have their own"
            require(each.name == "num_samples" or found == each.default, each.name, found=found, need=need)
        for name, part in mix.items():
            need = "letters, digits, -, _ and . for the name of a part, which metrics bear"
            require(bool(_PART_NAME.fullmatch(name)), f"mix.{name}", found=name, need=need)
            try:
                self._part(part)
            except ConfigError as error:
                raise error.within(f"mix.{name}") from None


def on_hub(source: str, subset: str | None, split: str | None) -> str:
    """Return what is used of a dataset of the hub, for a person: `owner/name (subset en, split train)`."""
    told = [f"{key} {value}" for key, value in (("subset", subset), ("split", split)) if value is not None]
    return f"{source} ({', '.join(told)})" if told else source


def is_gpt2(identity: str | None) -> bool:
    """Whether facts or settings that say `identity` of a tokenizer mean GPT-2's, with or without ChatML's tokens."""
    return identity is None or identity.startswith(GPT2)


def is_path(source: str) -> bool:
    """Whether a source is a path of this machine rather than the name of a dataset."""
    return source in (".", "..", "~") or bool(_PATH.match(source))


def is_hub_name(text: str) -> bool:
    """Whether the hub can have a model or a dataset of this name, `owner/name`."""
    return _HUB_NAME.fullmatch(text) is not None


def as_number(text: str) -> float | None:
    """Return the finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
