"""Which raw files are needed: the source's first ones that hold as many different documents as are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt_pipeline.data.documents.check import FileCheck
from gpt_pipeline.data.documents.index import Rows, repeated_documents
from gpt_pipeline.data.formats.synth import RULE_VERSION, count_english_rows
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.data.sources.record import FileFacts, SourceRecord
from gpt_pipeline.data.stage import Say
from gpt_pipeline.errors import ConfigError, UnreadableFileError

CODE_VERSION = f"2.{RULE_VERSION}"


@dataclass(frozen=True, kw_only=True)
class ChosenFile:
    """One file of the stage, looked at."""

    name: str
    facts: FileFacts
    new_documents: int
    repeats: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class FileChoice:
    """Chooses among the files of one source; what is found is kept in its record."""

    check: FileCheck
    num_samples: int

    @property
    def _source(self) -> Source:
        return self.check.source

    @property
    def _record(self) -> SourceRecord:
        return self.check.record

    def recorded(self) -> list[ChosenFile] | None:
        """Return the source's first files that hold `num_samples` documents, if the record knows them all."""
        chosen: list[ChosenFile] = []
        for name in self._source.names:
            facts = self.check.recorded(name)
            if facts is None:
                return None
            new = self._record.new_documents.get(_identity_of([*(each.facts for each in chosen), facts]))
            if new is None:
                return None
            chosen.append(ChosenFile(name=name, facts=facts, new_documents=new))
            if sum(each.new_documents for each in chosen) >= self.num_samples:
                return chosen
        return None

    def enough(self, *, say: Say) -> list[str]:
        """Return the source's first files that could hold `num_samples` documents, judged by their English rows.

        A file that turns out not to be readable ends them: its own part will say what is wrong with it.
        """
        names: list[str] = []
        total = 0
        for name, count in self._counts(say):
            names.append(name)
            total += count
            if total >= self.num_samples:
                break
        self._record.save()
        return names

    def _counts(self, say: Say) -> Iterator[tuple[str, int]]:
        """Yield each file with the documents, or at least the English rows, that it has."""
        known: dict[str, int] = {}
        for name in self._source.names:
            facts = self.check.recorded(name)
            count = facts.documents if facts else self._record.english_rows.get(self._source.record_key(name))
            if count is None:
                break
            known[name] = count
            yield name, count
        rest = [name for name in self._source.names if name not in known]
        counts = self._source.read_each(rest, count_english_rows, say=say)
        for name in rest:
            try:
                _, count = next(counts)
            except UnreadableFileError as error:
                say(f"{error}")
                yield name, self.num_samples
                return
            if self._source.revision is not None:  # what stands at a commit cannot change
                self._record.english_rows[self._source.record_key(name)] = count
            yield name, count

    def choose(self, *, say: Say) -> list[ChosenFile]:
        """Return the first files that hold `num_samples` different documents, by name in order.

        English rows are more than documents, so the last file may have to be added here.

        Raises:
            ConfigError: the source does not hold so many.
            UserError: a file is damaged, or the hub cannot be reached or refuses.
        """
        names = self.enough(say=say)
        self._source.require_room([name for name in names if self._source.find(name) is None])
        while True:
            chosen = self._compared(names, say)
            total = 0
            for count, each in enumerate(chosen, start=1):
                total += each.new_documents
                if total >= self.num_samples:
                    self._record.save()
                    return chosen[:count]
            rest = self._source.names[len(names) :]
            if not rest:
                raise _too_few(self.num_samples, total, self._source.description)
            say(f"{total:,} different documents of {self.num_samples:,} in {len(names)} files; taking one more")
            self._source.require_room([name for name in rest[:1] if self._source.find(name) is None])
            names = [*names, rest[0]]

    def _compared(self, names: Sequence[str], say: Say) -> list[ChosenFile]:
        """Return the files with what each has that none before it has, and keep these counts in the self._record."""
        facts = [self.check.look_at(name, say=say) for name in names]
        indexes = [self.check.index_of(name, each, say=say) for name, each in zip(names, facts, strict=True)]
        repeats = repeated_documents(indexes)
        chosen = [
            ChosenFile(name=name, facts=each, new_documents=each.documents - len(own), repeats=own)
            for name, each, own in zip(names, facts, repeats, strict=True)
        ]
        for count, own in enumerate(chosen, start=1):
            self._record.new_documents[_identity_of(facts[:count])] = own.new_documents
        return chosen


def _identity_of(files: Iterable[FileFacts]) -> str:
    checksums = "\n".join(file.sha256 for file in files)
    return hashlib.sha256(f"{CODE_VERSION}\n{checksums}".encode()).hexdigest()


def _too_few(num_samples: int, documents: int, where: str) -> ConfigError:
    return ConfigError(
        "data.num_samples",
        found=num_samples,
        need=f"at most {documents}, the different English documents in {where}",
        remedy=f"set it to {documents} or fewer, or add files",
    )
