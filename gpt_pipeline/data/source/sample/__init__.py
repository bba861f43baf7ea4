"""Documents that the project generates itself, with SYNTH's columns: a data set for machines without the hub."""

from gpt_pipeline.data.source.sample.rows import SAMPLE_VERSION
from gpt_pipeline.data.source.sample.write import write_sample

__all__ = ["SAMPLE_VERSION", "write_sample"]
