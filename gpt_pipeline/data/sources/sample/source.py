"""The sample as a source of raw files, each written when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.data.sources.folder import LocalFolder
from gpt_pipeline.data.sources.sample.rows import SAMPLE_VERSION, file_name, write_file
from gpt_pipeline.shown import Say


@dataclass(frozen=True, kw_only=True)
class SampleFolder(LocalFolder):
    """A folder with the sample's files; what they hold depends on their number alone."""

    names: tuple[str, ...] = tuple(map(file_name, range(1, 1000)))

    @property
    def description(self) -> str:
        return "the sample that the project writes itself"

    def record_key(self, name: str) -> str:
        return f"{SAMPLE_VERSION}/{name}"

    def path(self, name: str) -> Path:
        return self.folder / SAMPLE_VERSION / name

    def fetch(self, name: str, *, again: bool = False, say: Say) -> Path:
        """Return the file's path, after writing it if it is missing, or in any case if `again`."""
        path = self.find(name)
        if path is None or again:
            path = write_file(self.path(name), self.names.index(name) + 1)
        return path
