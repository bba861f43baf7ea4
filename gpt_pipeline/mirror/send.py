"""What is finished here and not in the mirror yet, piece by piece, the most urgent first.

Nothing is kept of what was sent but a note of small files: the mirror itself says what it has. So work that was cut off
goes on, an emptied mirror is filled again, and a checkpoint that retention removed here meanwhile is passed over in
favour of newer ones.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.manifest import (
    BEST_NAME,
    CheckpointInfo,
    best_checkpoint,
    list_checkpoints,
    manifest_path,
)
from gpt_pipeline.errors import UserError
from gpt_pipeline.mirror import names
from gpt_pipeline.mirror.lease import Lease
from gpt_pipeline.mirror.order import Order, held_training
from gpt_pipeline.mirror.store import MirrorError, Progress, Store, parsed
from gpt_pipeline.storage.atomic import parse_json, read_kept, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import FileRecord, Manifest, has_damaged_manifest, read_manifest

_logger = logging.getLogger(__name__)
_STEP = re.compile(r"checkpoint_step_(\d+)\.json$")
_BEST_MANIFEST = manifest_path(Path(BEST_NAME)).name
_METRICS_SECONDS = 60.0  # between two copies of a metrics.jsonl that grows


@dataclass(frozen=True, kw_only=True)
class Work:
    """One object to be sent."""

    name: str
    size: int
    """Bytes."""

    do: Callable[[], None]


@dataclass(frozen=True)
class _Damage:
    """What is wrong with a stage."""

    why: str
    made: int
    """As `Sender._made`: a stage that is made anew has another."""


class Sender:
    """Sends for one experiment's folder; for one thread."""

    def __init__(
        self,
        store: Store,
        folder: ExperimentFolder,
        *,
        each: Progress = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`each` is told of the bytes as they are sent, and may raise to break off."""
        self._store = store
        self._folder = folder
        self._each = each
        self._clock = clock
        self._damaged: dict[str, _Damage] = {}
        self._stages: dict[str, dict[str, int]] = {}
        self._sources: dict[str, Any] = {}
        self._training: _TrainingSender | None = None

    @property
    def damaged(self) -> str:
        """What of the work that was last yielded is not sent because it is damaged here; empty: nothing."""
        found = [damage.why for damage in self._damaged.values()]
        found += [] if self._training is None else self._training.damaged
        more = f" (and {len(found) - 1} more)" if found[1:] else ""
        return f"{found[0]}{more}" if found else ""

    def work(self, order: Order, lease: Lease | None, *, at_rest: bool) -> Iterator[Work]:
        """Yield what is to be sent, the most urgent first; `lease` None: nothing of the training.

        `at_rest` says that no trainer is at work, so that what grows has grown.
        """
        self._damaged = {stage: damage for stage, damage in self._damaged.items() if stage in order.stages}
        if lease is not None and order.fingerprint:
            if self._training is None or self._training.lease is not lease:
                self._training = _TrainingSender(self._store, self._folder, lease, each=self._each, clock=self._clock)
            yield from self._training.work(order, at_rest=at_rest)
        for stage in order.stages:
            yield from self._source(stage) if names.SOURCES in stage.split("/") else self._stage(stage)

    def _stage(self, stage: str) -> Iterator[Work]:
        folder = self._folder.base / stage
        if stage not in self._stages:
            self._stages[stage] = self._store.sizes(stage)
        there = self._stages[stage]
        if f"{stage}/{names.MANIFEST}" in there or self._is_damaged(stage):
            return
        manifest = read_manifest(folder)
        if manifest is None:  # being made anew, unless the file is there
            if has_damaged_manifest(folder):
                self._give_up(stage, f"{folder / names.MANIFEST} is damaged")
            return
        for file, record in manifest.files.items():
            name = f"{stage}/{file}"
            if there.get(name) != record.size:  # what is there and as long is compared when it is brought
                yield Work(name=name, size=record.size, do=self._file_sent(stage, name, folder / file, record))
        yield Work(name=f"{stage}/{names.MANIFEST}", size=0, do=self._manifest_sent(stage, folder, manifest))

    def _is_damaged(self, stage: str) -> bool:
        """Whether the stage was found damaged, and neither was made anew since nor is being made."""
        damage, made = self._damaged.get(stage), self._made(stage)
        if damage is not None and (not made or made != damage.made):
            del self._damaged[stage]
        return stage in self._damaged

    def _made(self, stage: str) -> int:
        """Return when the stage's manifest was written, in ns; 0: there is none."""
        try:
            return (self._folder.base / stage / names.MANIFEST).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _file_sent(self, stage: str, name: str, path: Path, record: FileRecord) -> Callable[[], None]:
        def send() -> None:
            if not path.is_file():
                self._give_up(stage, f"{path} is missing")
            elif (sent := self._store.put(name, path, each=self._each)) != record:
                self._store.remove([name])  # else the next sender takes it for the file, by its length
                self._give_up(stage, f"{path} is damaged: found sha256 {sent.sha256}, need {record.sha256}")
            else:
                self._stages[stage][name] = record.size

        return send

    def _give_up(self, stage: str, why: str) -> None:
        why = f"{why}; delete {self._folder.base / stage} and run again"
        self._damaged[stage] = _Damage(why, self._made(stage))
        _logger.warning("not sent to the mirror: %s", why)

    def _manifest_sent(self, stage: str, folder: Path, manifest: Manifest) -> Callable[[], None]:
        def send() -> None:
            if stage in self._damaged:
                return
            made = folder / names.MADE
            if made.is_file():
                self._store.put(f"{stage}/{names.MADE}", made)
            content = (folder / names.MANIFEST).read_bytes()
            if parse_json(content).get("fingerprint") == manifest.fingerprint:
                self._store.put_bytes(f"{stage}/{names.MANIFEST}", content)
            self._stages[stage][f"{stage}/{names.MANIFEST}"] = len(content)

        return send

    def _source(self, source: str) -> Iterator[Work]:
        """Yield the record of a source of raw files, without which another machine does not know what they are."""
        folder = self._folder.base / source
        record = folder / names.SOURCE
        if not record.is_file():
            return
        if source not in self._stages:
            self._stages[source] = self._store.sizes(source)
        for path in sorted((folder / "files").glob("*.json")):
            name = f"{source}/files/{path.name}"
            if name not in self._stages[source]:
                yield Work(name=name, size=path.stat().st_size, do=self._fact_sent(source, name, path))
        seen = record.stat().st_mtime_ns
        if self._sources.get(source) != seen:
            size = record.stat().st_size
            yield Work(name=f"{source}/{names.SOURCE}", size=size, do=self._record_sent(source, record, seen))

    def _fact_sent(self, source: str, name: str, path: Path) -> Callable[[], None]:
        def send() -> None:
            content = path.read_bytes()
            self._store.put_bytes(name, content)
            self._stages[source][name] = len(content)

        return send

    def _record_sent(self, source: str, record: Path, seen: int) -> Callable[[], None]:
        def send() -> None:
            name = f"{source}/{names.SOURCE}"
            theirs, ours = parsed(self._store.get_bytes(name)) or {}, parse_json(record.read_bytes())
            if (both := _merged(theirs, ours)) != theirs:
                self._store.put_bytes(name, json.dumps(both, indent=2, ensure_ascii=False).encode())
            self._sources[source] = seen

        return send


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both records of a source know; where they differ, as for a dataset's newest commit, the first stays.

    The names of a folder's files are those that were seen last.
    """
    both = {**ours, **theirs}
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            both[key] = {**value, **other}
        elif isinstance(value, list):
            both[key] = value
    return both


class _TrainingSender:
    """Sends what belongs to one training, in one term."""

    def __init__(
        self, store: Store, folder: ExperimentFolder, lease: Lease, *, each: Progress, clock: Callable[[], float]
    ) -> None:
        self.lease = lease
        self._store = store
        self._folder = folder
        self._each = each
        self._clock = clock
        self._prefix = names.term_prefix(lease.training, lease.term)
        self._there = store.sizes(lease.training)
        self._refused: set[tuple[str, str]] = set()
        """Checkpoints that are damaged here: their names, and the sha256 in their manifests."""

        self.damaged: list[str] = []
        """Which of them are part of the work that was last yielded, in words."""

        self._contents = dict(self._known_contents())
        self._note = folder.root / "mirror" / "sent.json"
        self._sent = self._noted()
        self._metrics_at = -_METRICS_SECONDS

    def work(self, order: Order, *, at_rest: bool) -> Iterator[Work]:
        own = [info for info in list_checkpoints(self._folder.checkpoints) if info.fingerprint == order.fingerprint][
            -order.keep_last :
        ]
        missing = [info for info in reversed(own) if self._is_missing(info)]
        best = best_checkpoint(self._folder.checkpoints)
        # That of the training before, where this one went on from it and never became better.
        if best is not None and order.fingerprint not in (best.fingerprint, held_training(self._folder)):
            best = None
        self.damaged = [
            f"{info.path} is damaged: its sha256 is not that of its manifest; remove both and run again"
            for info in (*own, *([] if best is None else [best]))
            if self._is_refused(info)
        ]
        for info in missing[:1]:
            yield self._of_checkpoint(info, order)
        if best is not None and self._is_missing_best(best):
            yield Work(name=self._name(_BEST_MANIFEST), size=best.size, do=lambda: self._send_best(best))
        if held_training(self._folder) in (None, order.fingerprint):  # else they are of the one before it
            yield from self._small(own, at_rest=at_rest)
        for info in missing[1:]:
            yield self._of_checkpoint(info, order)

    def _is_missing(self, info: CheckpointInfo) -> bool:
        return self._manifest_name(info.path) not in self._there and not self._is_refused(info)

    def _is_refused(self, info: CheckpointInfo) -> bool:
        return (info.path.name, info.sha256) in self._refused

    def _is_missing_best(self, best: CheckpointInfo) -> bool:
        known = self._contents.get(best.sha256, "")
        is_there = self._name(_BEST_MANIFEST) in self._there and known == self._best_data(best)
        return not is_there and not self._is_refused(best)

    def _of_checkpoint(self, info: CheckpointInfo, order: Order) -> Work:
        return Work(
            name=self._manifest_name(info.path), size=info.size, do=lambda: self._send_checkpoint(info, order.keep_last)
        )

    def _send_checkpoint(self, info: CheckpointInfo, keep_last: int) -> None:
        name = self._name(info.path.name)
        if self._put(info, name):
            # The lines of its steps come before it counts, so that whoever continues from it has them.
            for path in (self._folder.root / names.STARTED, self._folder.metrics, self._folder.samples):
                for work in self._changed(path):
                    work.do()
            self._put_manifest(info, self._manifest_name(info.path), data=info.path.name)
            self._prune(keep_last)

    def _send_best(self, best: CheckpointInfo) -> None:
        """Send the best under a name of its step; its manifest, which names that, changes from one to the other."""
        data = self._best_data(best)
        known = self._contents.get(best.sha256)
        if known is not None and known != data:
            self._store.copy(known, data)
        elif known is None and not self._put(best, data):
            return
        self._put_manifest(best, self._name(_BEST_MANIFEST), data=data.rpartition("/")[2])
        self._contents[best.sha256] = data
        self._there[data] = best.size
        stem = self._name(BEST_NAME.removesuffix(".pt"))
        old = [name for name in self._there if name.startswith(f"{stem}_step_") and name != data]
        self._remove(old)

    def _put(self, info: CheckpointInfo, name: str) -> bool:
        """Send a checkpoint's file, held meanwhile; return False if it is gone, or not what its manifest says."""
        try:
            with hold(info.path):
                sent = self._store.put(name, info.path, each=self._each)
        except MirrorError:
            raise
        except (UserError, FileNotFoundError):  # removed to make room for a newer one, which is sent instead
            return False
        if (sent.size, sent.sha256) != (info.size, info.sha256):
            replaced = best_checkpoint(self._folder.checkpoints) if info.path.name == BEST_NAME else info
            if replaced == info:
                self._refused.add((info.path.name, info.sha256))
                _logger.warning("%s is not what its manifest says and is not sent to the mirror", info.path)
            return False
        self._there[name] = info.size
        self._contents[info.sha256] = name
        return True

    def _put_manifest(self, info: CheckpointInfo, name: str, *, data: str) -> None:
        content = json.dumps({**info.to_json(), "path": data}, indent=2, ensure_ascii=False).encode()
        self._store.put_bytes(name, content)
        self._there[name] = len(content)

    def _prune(self, keep_last: int) -> None:
        """Remove checkpoints beyond the newest, in earlier terms too; manifests first.

        Those of this term go last: what an earlier one has besides may be damaged, or newer than what we went on from.
        Were one of ours removed for it, it would be sent again and again.
        """
        found: list[tuple[bool, int, int, str]] = []
        best_of_earlier: list[str] = []
        for name in self._there:
            place = names.split_term(name, self.lease.training)
            if place is None or not self.lease.first_term <= place[0] <= self.lease.term:
                continue
            if matched := _STEP.search(place[1]):
                found.append((place[0] == self.lease.term, int(matched[1]), place[0], name))
            elif place[0] < self.lease.term and place[1].startswith(f"{names.CHECKPOINTS}/best_model"):
                best_of_earlier.append(name)
        kept: set[int] = set()
        for _, step, _, manifest in sorted(found, reverse=True):  # of one step, that of the newest term
            if step in kept or len(kept) == keep_last:
                self._remove([manifest, f"{manifest.removesuffix('.json')}.pt"])
            else:
                kept.add(step)
        if self._name(_BEST_MANIFEST) in self._there:
            self._remove(sorted(best_of_earlier))  # best_model.json comes before best_model_step_...

    def _remove(self, gone: list[str]) -> None:
        self._store.remove(gone)
        for name in gone:
            self._there.pop(name, None)
        self._contents = {sha256: name for sha256, name in self._contents.items() if name not in gone}

    def _small(self, own: list[CheckpointInfo], *, at_rest: bool) -> Iterator[Work]:
        """Yield the other files of the experiment that have changed; that it is finished comes last."""
        folder = self._folder
        for path in (folder.root / names.STARTED, folder.job, *sorted(folder.evaluations.glob("*.json"))):
            yield from self._changed(path)
        if at_rest or self._clock() - self._metrics_at >= _METRICS_SECONDS:
            yield from self._changed(folder.metrics)
            yield from self._changed(folder.samples)
        yield from self._changed(folder.report)
        if own and not self._is_missing(own[-1]) and not self._is_refused(own[-1]):
            yield from self._changed(folder.training)

    def _changed(self, path: Path) -> Iterator[Work]:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return
        name = path.relative_to(self._folder.root).as_posix()
        seen = [stat.st_size, stat.st_mtime_ns]
        if self._sent.get(name) == seen and f"{self._prefix}/{name}" in self._there:
            return
        yield Work(name=f"{self._prefix}/{name}", size=stat.st_size, do=lambda: self._send_small(path, name, seen))

    def _send_small(self, path: Path, name: str, seen: list[int]) -> None:
        try:
            sent = self._store.put(f"{self._prefix}/{name}", path, each=self._each)
        except FileNotFoundError:
            return  # moved aside by a training that starts over
        if path == self._folder.metrics:
            self._metrics_at = self._clock()
        self._there[f"{self._prefix}/{name}"] = sent.size
        self._sent[name] = seen
        write_json(self._note, {"term": self._prefix, "mirror": self._store.url, "files": self._sent})

    def _noted(self) -> dict[str, list[int]]:
        note = read_kept(self._note, lambda value: {**value}, otherwise="small files are sent again") or {}
        is_ours = (note.get("term"), note.get("mirror")) == (self._prefix, self._store.url)
        return dict(note.get("files", {})) if is_ours else {}

    def _known_contents(self) -> Iterator[tuple[str, str]]:
        """Yield the sha256 of each checkpoint of this term in the mirror, and its object."""
        start = f"{self._prefix}/{names.CHECKPOINTS}/"
        for name in sorted(self._there, key=lambda name: name.endswith(_BEST_MANIFEST)):
            if name.startswith(start) and name.endswith(".json"):
                content = self._store.get_bytes(name)
                try:
                    value = parse_json(content or b"")
                    yield str(value["sha256"]), f"{start}{value['path']}"
                except (ValueError, KeyError, TypeError):
                    del self._there[name]  # not a manifest: written again

    def _best_data(self, best: CheckpointInfo) -> str:
        return self._name(f"{BEST_NAME.removesuffix('.pt')}_step_{best.step}.pt")

    def _manifest_name(self, path: Path) -> str:
        return self._name(manifest_path(path).name)

    def _name(self, file: str) -> str:
        return f"{self._prefix}/{names.CHECKPOINTS}/{file}"
