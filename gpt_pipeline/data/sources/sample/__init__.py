"""Documents that the project generates itself, with SYNTH's columns: a data set for machines without the hub."""

from gpt_pipeline.data.sources.sample.rows import SAMPLE_VERSION
from gpt_pipeline.data.sources.sample.write import file_name, write_file

__all__ = ["SAMPLE_VERSION", "file_name", "write_file"]
