"""One raw file: brought here, compared with the checksum its source gives, and read once for what is in it."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpt_pipeline.data.documents.index import index_part, prepare_index
from gpt_pipeline.data.documents.near import NearDuplicates
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.readers.rows import content_of
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.data.sources.record import FileFacts, SourceRecord
from gpt_pipeline.data.stage import Part
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import StageResult, forget

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """Looks at the files of one source, each once."""

    source: Source
    record: SourceRecord
    """What was found before; `write_facts` adds to it."""

    data_folder: Path
    format: Format
    near: NearDuplicates | None = None
    """Finds documents that are nearly the same; None: they are not looked for."""

    def recorded(self, name: str) -> FileFacts | None:
        """Return what was found in a file, unless another file, or none that was looked at, lies there now.

        A file that only has another time, as after a copy, is compared with its checksum, once.
        """
        facts = self.examined(name)
        path = self.source.find(name)
        if facts is not None and path is None:
            return facts if self.source.is_away(name) else None
        if facts is None or path is None or facts.is_of(path):
            return facts
        return self._with_new_time(facts, path)

    def examined(self, name: str) -> FileFacts | None:
        """Return what was found in a file, whatever lies there now."""
        facts = self.record.facts(self.source.record_key(name))
        return facts if facts is not None and facts.rule == self.format.version else None

    def _with_new_time(self, facts: FileFacts, path: Path) -> FileFacts | None:
        """Return the facts with the time that `path` has now, and note it, if its content is what they are of."""
        stat = path.stat()
        if stat.st_size != facts.size or _sha256(path, stat.st_size, stat.st_mtime_ns) != facts.sha256:
            return None
        facts = dataclasses.replace(facts, mtime_ns=stat.st_mtime_ns)
        try:
            self.record.write_facts(facts)
        except OSError as error:  # a folder that others may only read
            _logger.warning("%s: its new time cannot be noted (%s); each command compares it again", path, error)
        return facts

    def is_ready(self, name: str) -> bool:
        """Whether the file is here and looked at."""
        facts = self.recorded(name)
        is_indexed = facts is not None and all(part.find() is not None for part in self._parts(facts))
        return is_indexed and self.source.find(name) is not None

    def examined_parts(self) -> list[Part]:
        """Return what was made of each file that was examined, by earlier versions too: by its checksum alone."""
        known = [facts for facts in self.record.all_facts() if facts.rule == self.format.version]
        contents = {each: None for facts in known for each in (self._content(facts.key, facts.sha256), facts.sha256)}
        return [part for content in contents for part in self._parts_of(content)]

    def _parts(self, facts: FileFacts) -> list[Part]:
        """Return what is made of a raw file here."""
        return self._parts_of(self._content(facts.key, facts.sha256))

    def _parts_of(self, content: str) -> list[Part]:
        index = index_part(content, self.data_folder, self.format)
        return [index] if self.near is None else [index, self.near.part(content)]

    def _content(self, name: str, sha256: str) -> str:
        return content_of(name, sha256, self.format.columns)

    def look_at(self, name: str, *, say: Say) -> FileFacts:
        """Return what is in a file, after bringing it here and reading it if that was not done before.

        Raises:
            UserError: the file is damaged, or the hub cannot be reached or refuses.
        """
        if self.is_ready(name) and (facts := self.recorded(name)):
            return facts
        path, stat, sha256 = self._brought(name, say)
        content = self._content(name, sha256)
        index = prepare_index(path, content, self.data_folder, self.format, seen=stat, say=say)
        if self.near is not None:
            self.near.prepare(path, content, seen=stat, say=say)
        facts = FileFacts(
            key=self.source.record_key(name),
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            sha256=sha256,
            rows=index.manifest.facts["rows"],
            documents=index.manifest.facts["documents"],
            rule=self.format.version,
        )
        self.record.write_facts(facts)
        say(f"{name}: {counted(facts.documents, 'document')} in {counted(facts.rows, 'row')}")
        return facts

    def index_of(self, name: str, facts: FileFacts, *, say: Say) -> StageResult:
        """Return the file's index with every byte as it was written; one that is not is made again from the file."""
        content = self._content(name, facts.sha256)
        index = index_part(content, self.data_folder, self.format).intact(say=say)
        if index is not None:
            return index
        path = self.source.fetch(name, say=say)
        return prepare_index(path, content, self.data_folder, self.format, seen=path.stat(), say=say)

    def signatures_of(self, near: NearDuplicates, name: str, facts: FileFacts, *, say: Say) -> StageResult:
        """Return the signatures of the file's documents, as `index_of` does."""
        content = self._content(name, facts.sha256)
        if (found := near.part(content).intact(say=say)) is not None:
            return found
        path = self.source.fetch(name, say=say)
        return near.prepare(path, content, seen=path.stat(), say=say)

    def forget(self, name: str) -> None:
        """Have the file looked at again."""
        if facts := self.record.facts(self.source.record_key(name)):
            for part in self._parts(facts):
                forget(part.folder)

    def _brought(self, name: str, say: Say) -> tuple[Path, os.stat_result, str]:
        """Return the file's path, what the disk says of it, and its checksum, which is the source's if that gives one.

        Raises:
            DataError: it has another checksum, also after it was downloaded again.
        """
        path = self.source.fetch(name, say=say)
        stat = path.stat()  # before reading: a file that changes meanwhile is looked at again
        sha256 = self.source.proven_sha256(name) or sha256_of(path)
        needed = self.source.sha256(name)
        if needed is None or sha256 == needed:
            return path, stat, sha256
        say(f"{path}: found sha256 {sha256}, need {needed}; downloading it again")
        path = self.source.fetch(name, again=True, say=say)
        stat, sha256 = path.stat(), sha256_of(path)
        if sha256 != needed:
            raise DataError(f"{path}: found sha256 {sha256}, need {needed}; delete it and run again")
        return path, stat, sha256


@cache  # a file that turned out to be another one is asked about again and again
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Return the sha256 of the file that has this size and time."""
    _logger.warning("%s has another time than when it was examined; comparing its %s bytes", path, f"{size:,}")
    return sha256_of(path)
