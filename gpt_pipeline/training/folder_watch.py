"""Follow a training that runs elsewhere by what it writes into its folder. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, list_checkpoints
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.heartbeat import heartbeat_path
from gpt_pipeline.training.metrics import parse_record
from gpt_pipeline.training.observer import Observer


class FolderWatch:
    """Tells an observer what is new in the folder since the watch began: the trainer's lines and its checkpoints."""

    def __init__(self, folder: ExperimentFolder, observer: Observer, *, fingerprint: str, max_steps: int) -> None:
        """`fingerprint` and `max_steps` are those of the training that is watched."""
        self._folder = folder
        self._observer = observer
        self._fingerprint = fingerprint
        self._max_steps = max_steps
        self._offset = 0
        self._told: list[int] = []  # hashes of the lines before `_offset`
        self._new_lines()
        self._known = {_identity(info) for info in self._checkpoints()}

    def look(self) -> None:
        """Tell what is new."""
        for record in self._new_records():
            match record["kind"]:
                case "train" | "validation":
                    self._observer.progress({**record, "max_steps": self._max_steps})
                case "event":
                    self._observer.message(str(record.get("message", "")))
                case "checkpoint":
                    self._tell_checkpoints()

    def newest_step(self) -> int:
        """Return the step of the training's newest checkpoint; -1 if it has none."""
        return max((info.step for info in self._checkpoints()), default=-1)

    def _new_records(self) -> Iterator[dict[str, Any]]:
        for line in self._new_lines():
            try:
                yield parse_record(line)
            except ValueError:
                continue  # `read_metrics` tells of it

    def _new_lines(self) -> list[bytes]:
        """Return the whole lines since the last look; after a return to a checkpoint, those that come after it."""
        try:
            with self._folder.metrics.open("rb") as file:
                is_shorter = os.fstat(file.fileno()).st_size < self._offset
                self._offset = 0 if is_shorter else self._offset
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")  # what follows is still being written
        except FileNotFoundError:  # the training before was moved aside
            self._offset, self._told = 0, []
            return []
        self._offset += len(whole) + len(newline)
        lines = whole.splitlines()
        hashes = [hash(line) for line in lines]
        if not is_shorter:
            self._told += hashes
            return lines
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(hashes, self._told, strict=False)))
        self._told = hashes
        return lines[known:]

    def _tell_checkpoints(self) -> None:
        for info in self._checkpoints():
            if _identity(info) not in self._known:
                self._known.add(_identity(info))
                self._observer.checkpoint(info)

    def _checkpoints(self) -> list[CheckpointInfo]:
        return [info for info in list_checkpoints(self._folder.checkpoints) if info.fingerprint == self._fingerprint]


class Pulse:
    """The signs of life of a trainer elsewhere, timed by this machine's clock alone: the other's may be wrong."""

    def __init__(self, folder: ExperimentFolder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = heartbeat_path(folder.root)
        self._clock = clock
        self._seen = self._look()
        self._since = clock()
        self.was_felt = False
        """Whether there was a sign since the last `reset`."""

    def reset(self) -> None:
        """Begin anew: the trainer is not at work yet."""
        self._seen, self._since, self.was_felt = self._look(), self._clock(), False

    def silence(self) -> float:
        """Return the seconds since the last sign of life."""
        found = self._look()
        if found != self._seen:
            self._seen, self._since, self.was_felt = found, self._clock(), True
        return self._clock() - self._since

    @property
    def has_left(self) -> bool:
        """Whether the trainer left in order, as far as the last look tells, or never came."""
        return self._seen is None

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino


def _identity(info: CheckpointInfo) -> tuple[int, str]:
    return info.step, info.weights_sha256
