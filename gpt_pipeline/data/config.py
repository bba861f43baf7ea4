"""The `data:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.errors import require
from gpt_pipeline.storage.fingerprint import added_later

SYNTH = "PleIAs/SYNTH"
SAMPLE = "sample"


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which columns of the files hold what the format needs."""

    text: str = "text"
    """The column with the text of each document, for `format: text`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which documents to train on, and how they are cut."""

    num_samples: int | Literal["all"] | None
    """Documents to use, taken in file order; `all` or null: the whole source."""

    max_length: int = 512
    """Tokens in one training sequence."""

    source: str = SYNTH
    """A dataset of the hub in parquet files, or `sample`: documents that the project generates itself."""

    revision: str | None = None
    """Commit of the hub's dataset; null: the newest at the first download, recorded and kept from then on."""

    local_dataset_path: str | None = None
    """A folder with parquet files, such as those of SYNTH as downloaded from the hub; used instead of `source`."""

    validation_fraction: float = 0.005
    """Share of documents held out of training, in (0, 0.5]; those that grew from one article stay together."""

    seed: int = 0
    """Chooses which documents are held out."""

    format: Literal["synth", "text"] = added_later("synth")
    """What a row is: `synth`, with SYNTH's columns, or `text`, with the text of a document in one column."""

    columns: ColumnsConfig = added_later(ColumnsConfig())  # frozen
    """The names of the columns that `format: text` reads."""

    @property
    def document_limit(self) -> int | None:
        """Documents to use at most; None for the whole source."""
        return None if self.num_samples is None or isinstance(self.num_samples, str) else self.num_samples

    @property
    def amount(self) -> str:
        """`num_samples` for a person."""
        return "all" if self.document_limit is None else f"{self.document_limit:,}"

    @property
    def origin(self) -> str:
        """Where the documents come from, for a person."""
        return self.source if self.local_dataset_path is None else f"local folder {self.local_dataset_path}"

    @property
    def is_sample(self) -> bool:
        """Whether the project generates the documents itself."""
        return self.local_dataset_path is None and self.source == SAMPLE

    def __post_init__(self) -> None:
        limit = self.document_limit
        require(
            limit is None or limit > 0, "num_samples", found=self.num_samples, need="a whole number above 0, or all"
        )
        require(
            limit is not None or not self.is_sample,
            "num_samples",
            found=self.num_samples,
            need=f"a whole number above 0 with source={SAMPLE}, which has no end",
        )
        require(
            self.format == "text" or self.columns == ColumnsConfig(),
            "columns.text",
            found=self.columns.text,
            need="no data.columns with data.format=synth, whose columns are fixed; set data.format: text",
        )
        require(
            self.format == "synth" or not self.is_sample,
            "format",
            found=self.format,
            need=f"synth with source={SAMPLE}; for texts of your own set data.local_dataset_path",
        )
        require(self.max_length > 1, "max_length", found=self.max_length, need="a whole number above 1")
        require(
            self.source == SAMPLE or self.source.count("/") == 1,
            "source",
            found=self.source,
            need=f"a dataset of the hub such as {SYNTH}, or {SAMPLE}",
        )
        require(
            0 < self.validation_fraction <= 0.5,
            "validation_fraction",
            found=self.validation_fraction,
            need="a number above 0, at most 0.5",
        )
        require(self.seed >= 0, "seed", found=self.seed, need="a whole number, 0 or above")
