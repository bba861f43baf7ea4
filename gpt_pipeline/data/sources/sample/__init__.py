"""Documents that the project generates itself, with SYNTH's columns: a dataset for machines without the hub."""

from gpt_pipeline.data.sources.sample.rows import SAMPLE_VERSION, file_name, write_file

__all__ = ["SAMPLE_VERSION", "file_name", "write_file"]
