"""What the rows of raw files mean: each format knows its columns, and makes documents of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt_pipeline.data.config import DataConfig
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

    @property
    def all(self) -> tuple[str, str, str]:
        """The data stages in the order in which they are made."""
        return self.raw, self.documents, "token_shards"


_NAMES = {
    "synth": StageNames(
        raw="raw_synth",
        documents="english_parquet",
        documents_part="english_documents",
        documents_file="synth_en_samples",
    ),
    "text": StageNames(raw="raw_files", documents="documents", documents_part="documents", documents_file="documents"),
}


def stage_names(config: DataConfig) -> StageNames:
    """Return what the data stages of `config` are called; imports no format, for it is asked at every start."""
    return _NAMES[config.format]


def has_questions(config: DataConfig) -> bool:
    """Whether the documents are questions with answers, which an evaluation can ask."""
    return config.format == "synth"


def format_of(config: DataConfig) -> Format:
    """Return the format of the raw files that `config` names."""
    if config.format == "text":
        from gpt_pipeline.data.formats.text import TextFormat

        return TextFormat(column=config.columns.text)
    from gpt_pipeline.data.formats.synth import SYNTH

    return SYNTH
