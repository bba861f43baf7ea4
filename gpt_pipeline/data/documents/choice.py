"""Which raw files are needed: the source's first ones that hold as many different documents as are wanted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt_pipeline.data.documents.check import FileCheck
from gpt_pipeline.data.documents.index import Rows, repeated_documents
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.formats.rules import in_words, with_hints
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.data.sources.record import FileFacts, SourceRecord
from gpt_pipeline.errors import ConfigError, UnreadableFileError
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.manifest import StageResult

REPEATED, NEAR_DUPLICATE = "repeated", "near_duplicate"
"""Why documents are left out, in counts and as keys: the text of an earlier one, or nearly its words."""

_CODE_VERSION = "2"


def code_version(format: Format) -> str:
    """Return the version of the choice of files, which depends on what the format makes of them."""
    return f"{_CODE_VERSION}.{format.version}"


@dataclass(frozen=True, kw_only=True)
class ChosenFile:
    """One file of the stage, looked at."""

    name: str
    facts: FileFacts
    new_documents: int
    left_out: Mapping[str, Rows] = field(default_factory=dict)
    """Documents of the file that are not new, by the reason, from 0 on; nothing where only their number is known."""


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """One file, looked at, with what was made of it here; every byte of that is as it was written."""

    name: str
    facts: FileFacts
    index: StageResult
    signatures: StageResult | None
    """None: nobody asks for near duplicates."""


@dataclass(frozen=True, kw_only=True)
class FileChoice:
    """Chooses among the files of one source; what is found is kept in its record."""

    check: FileCheck
    limit: int | None
    """Documents wanted; None: all of the source."""

    @property
    def _source(self) -> Source:
        return self.check.source

    @property
    def _record(self) -> SourceRecord:
        return self.check.record

    def recorded(self) -> list[ChosenFile] | None:
        """Return the source's first files that hold the documents, if the record knows them all as they are now."""
        return self._known(self.check.recorded)

    def examined(self) -> list[ChosenFile] | None:
        """Return the files that were the first to hold the documents when they were examined, whatever they are now."""
        return self._known(self.check.examined)

    def _known(self, facts_of: Callable[[str], FileFacts | None]) -> list[ChosenFile] | None:
        chosen: list[ChosenFile] = []
        identity, total = self._identity_of_none(), 0
        for name in self._source.names:
            facts = facts_of(name)
            if facts is None:
                return None
            new = self._record.new_documents.get(_extended(identity, facts))
            if new is None:
                return None
            chosen.append(ChosenFile(name=name, facts=facts, new_documents=new))
            total += new
            if self._is_enough(total):
                return chosen
        return chosen if chosen and self.limit is None else None

    def _is_enough(self, documents: int) -> bool:
        return self.limit is not None and documents >= self.limit

    def enough(self, *, say: Say) -> list[str]:
        """Return the source's first files that could hold the documents, judged by the rows that the format counts.

        A file that turns out not to be readable ends them: its own part will say what is wrong with it.
        """
        if self.limit is None:
            return list(self._source.names)
        names, total = self._reaching(self.limit, self._source.names, say)
        if names and not total and self._source.revision is not None:  # before all of it is downloaded for nothing
            [(_, dropped)] = self._source.read_each(names[:1], self.check.format.count_dropped, say=say)
            where = f"the {counted(len(names), 'file')} of {self._source.description}"
            raise _too_few(self.limit, 0, where, dropped)
        return names

    def _reaching(self, documents: int, among: Sequence[str], say: Say) -> tuple[list[str], int]:
        """Return the first of some files that could hold so many documents, and how many they could hold.

        They are never more than will be needed: no file holds more documents than it is counted for.
        """
        names: list[str] = []
        total = 0
        for name, count in self._counts(among, say):
            names.append(name)
            total += count
            if total >= documents:
                break
        self._record.save()
        return names, total

    def _counts(self, names: Sequence[str], say: Say) -> Iterator[tuple[str, int]]:
        """Yield each file with the documents, or at least the rows, that it has."""
        known: dict[str, int] = {}
        for name in names:
            facts = self.check.recorded(name)
            count = facts.documents if facts else self._record.english_rows.get(self._source.record_key(name))
            if count is None:
                break
            known[name] = count
            yield name, count
        rest = [name for name in names if name not in known]
        counts = self._source.read_each(rest, self.check.format.count_rows, say=say)
        for name in rest:
            try:
                _, count = next(counts)
            except UnreadableFileError as error:
                say(f"{error}")
                yield name, self.limit or 0
                return
            if self._source.revision is not None:  # what stands at a commit cannot change
                self._record.english_rows[self._source.record_key(name)] = count
            yield name, count

    def choose(self, *, say: Say) -> list[ChosenFile]:
        """Return the first files that hold as many different documents as are wanted, by name in order.

        Rows are more than documents, so files may have to be added here.

        Raises:
            ConfigError: the source does not hold so many.
            UserError: a file is damaged, or the hub cannot be reached or refuses.
        """
        names = self.enough(say=say)
        looked: list[_Looked] = []
        while True:
            self._source.require_room([name for name in names if self._source.find(name) is None])
            looked += [self._look_at(name, say) for name in names]
            chosen = self._compared(looked)
            total = 0
            for count, each in enumerate(chosen, start=1):
                total += each.new_documents
                if self._is_enough(total):
                    self._record.save()
                    return chosen[:count]
            rest = self._source.names[len(chosen) :]
            if self.limit is None and total:
                self._record.save()
                return chosen
            if self.limit is None or not rest:
                raise _too_few(self.limit, total, self._source.description, self._dropped(looked))
            names, _ = self._reaching(self.limit - total, rest, say)
            found = f"{total:,} different documents of {self.limit:,} in {counted(len(chosen), 'file')}"
            say(f"{found}; taking {len(names)} more")

    def _look_at(self, name: str, say: Say) -> _Looked:
        facts = self.check.look_at(name, say=say)
        near = self.check.near
        return _Looked(
            name=name,
            facts=facts,
            index=self.check.index_of(name, facts, say=say),
            signatures=None if near is None else self.check.signatures_of(near, name, facts, say=say),
        )

    def _compared(self, looked: Sequence[_Looked]) -> list[ChosenFile]:
        """Return the files with what each has that none before it has, and record these counts."""
        left_out = [{REPEATED: rows} for rows in repeated_documents([each.index for each in looked])]
        if (near := self.check.near) is not None:
            signed = [each.signatures for each in looked if each.signatures is not None]
            for not_new, rows in zip(left_out, near.find(signed), strict=True):
                not_new[NEAR_DUPLICATE] = np.setdiff1d(rows, not_new[REPEATED], assume_unique=True)
        chosen = [
            ChosenFile(
                name=each.name,
                facts=each.facts,
                new_documents=each.facts.documents - sum(map(len, own.values())),
                left_out=own,
            )
            for each, own in zip(looked, left_out, strict=True)
        ]
        identity = self._identity_of_none()
        for each in chosen:
            self._record.new_documents[_extended(identity, each.facts)] = each.new_documents
        return chosen

    def _dropped(self, looked: Iterable[_Looked]) -> Counter[str]:
        """Return why rows of the files became no document, as far as their indexes say so."""
        dropped = (each.index.manifest.facts.get("dropped", {}) for each in looked)
        return sum(map(Counter[str], dropped), Counter[str]())

    def _identity_of_none(self) -> hashlib._Hash:
        """Return what `_extended` begins with: the identity of the first files, before there is one."""
        near = [] if self.check.near is None else [json.dumps(self.check.near.identity)]
        return hashlib.sha256("\n".join([code_version(self.check.format), *near]).encode())


def _extended(identity: hashlib._Hash, file: FileFacts) -> str:
    """Add the next file to the identity of those before it; return that of all of them."""
    identity.update(f"\n{file.sha256}".encode())
    return identity.hexdigest()


def _too_few(limit: int | None, documents: int, where: str, dropped: Counter[str]) -> ConfigError:
    if not documents:
        reasons = in_words(dropped)
        need = f"documents, but no row in {where} becomes one" + (f" ({reasons})" if reasons else "")
        of_languages = any(reason.startswith("language ") for reason in dropped)
        remedy = f"look at the files, at {'data.languages' if of_languages else 'data.columns'} and at data.filter"
        remedy = with_hints(remedy, dropped)
    else:
        need = f"at most {documents}, the different documents in {where}"
        remedy = f"set it to {documents} or fewer, or add files"
    return ConfigError("data.num_samples", found="all" if limit is None else limit, need=need, remedy=remedy)
