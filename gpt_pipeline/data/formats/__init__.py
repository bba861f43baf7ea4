"""What the rows of raw files mean: each format knows its columns, and makes documents of rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt_pipeline.data.config import GPT2, DataConfig

if TYPE_CHECKING:
    from gpt_pipeline.data.formats.protocol import Format


@dataclass(frozen=True, kw_only=True)
class StageNames:
    """What the data stages of a format are called, on disk and in Dagster."""

    raw: str
    documents: str
    documents_part: str
    """The documents of one raw file."""

    documents_file: str
    """How the names of the documents' files begin."""

    has_tokenizer: bool = False
    """Whether there is a stage `tokenizer` before the shards: of all tokenizers but GPT-2's."""

    @property
    def all(self) -> tuple[str, ...]:
        """The data stages in the order in which they are made."""
        return self.raw, self.documents, *(("tokenizer",) if self.has_tokenizer else ()), "token_shards"


_OF_ENGLISH = StageNames(
    raw="raw_synth",
    documents="english_parquet",
    documents_part="english_documents",
    documents_file="synth_en_samples",
)
_OF_LANGUAGES = StageNames(
    raw="raw_synth", documents="documents", documents_part="documents", documents_file="documents"
)
MIXED_SHARDS = "mixed_shards"
"""The stage of the shards of a mix."""

_OF_OWN = StageNames(raw="raw_files", documents="documents", documents_part="documents", documents_file="documents")


def stage_names(config: DataConfig) -> StageNames:
    """Return what the data stages of `config` are called; imports no format, for it is asked at every start."""
    own = _OF_OWN if config.format != "synth" else _OF_ENGLISH if config.is_english else _OF_LANGUAGES
    return dataclasses.replace(own, has_tokenizer=config.tokenizer != GPT2)


def shards_name(config: DataConfig) -> str:
    """Return what the stage of the shards that a training reads is called."""
    return stage_names(config).all[-1] if config.mix is None else MIXED_SHARDS


def has_questions(config: DataConfig) -> bool:
    """Whether the documents are questions with answers, which an evaluation can ask."""
    return any(part.format in ("synth", "question_answer", "chat") for part in config.parts.values())


def has_reasoning(config: DataConfig) -> bool:
    """Whether documents reason before they answer."""
    return any(part.format == "synth" or part.columns.reasoning is not None for part in config.parts.values())


def has_conversations(config: DataConfig) -> bool:
    """Whether documents may have several questions, each with its answer."""
    return any(part.format == "chat" for part in config.parts.values())


def format_of(config: DataConfig) -> Format:
    """Return the format of the raw files that `config` names."""
    from gpt_pipeline.data.formats.filter import conditions_of

    conditions = conditions_of(config.filter)
    if config.format == "synth":
        from gpt_pipeline.data.formats.synth import Synth

        return Synth(filter=conditions, languages=config.wanted_languages, template=config.template)
    from gpt_pipeline.data.formats.keys import RowKeys

    keys, columns = RowKeys(filter=conditions, group=config.group, kind=config.kind), config.columns
    if config.format == "text":
        from gpt_pipeline.data.formats.text import TextFormat

        return TextFormat(column=columns.text, split_at=config.split_text_at, keys=keys)
    if config.format == "chat":
        from gpt_pipeline.data.formats.chat import ChatFormat

        return ChatFormat(messages=columns.messages, join_parts=config.join_parts, keys=keys, template=config.template)
    from gpt_pipeline.data.formats.question_answer import QuestionAnswerFormat

    return QuestionAnswerFormat(
        question=columns.question,
        reasoning=columns.reasoning,
        answer=columns.answer,
        result=columns.result,
        keys=keys,
        template=config.template,
    )
