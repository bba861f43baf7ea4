"""The `data:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require

SYNTH = "PleIAs/SYNTH"
SAMPLE = "sample"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which documents to train on, and how they are cut."""

    num_samples: int
    """English documents to use, taken in file order."""

    max_length: int = 512
    """Tokens in one training sequence."""

    source: str = SYNTH
    """A dataset of the hub with SYNTH's columns, or `sample`: documents that the project generates itself."""

    revision: str | None = None
    """Commit of the hub's dataset; null: the newest at the first download, recorded and kept from then on."""

    local_dataset_path: str | None = None
    """A folder with SYNTH's parquet files, as downloaded from the hub; used instead of `source`."""

    validation_fraction: float = 0.005
    """Share of seed articles held out of training, in (0, 0.5]."""

    seed: int = 0
    """Chooses which seed articles are held out."""

    def __post_init__(self) -> None:
        require(self.num_samples > 0, "num_samples", found=self.num_samples, need="a whole number above 0")
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
