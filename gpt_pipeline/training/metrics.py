"""`metrics.jsonl`: one JSON object a line, appended while training runs. Imports no torch.

Each line has `kind` (train, validation, checkpoint or event), `step`, `tokens_seen`, `seconds` (training time so far)
and `time`. A resumed training writes the steps after its checkpoint again, so readers go by the last line of each.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.storage.atomic import atomic_path, parse_json, write_text
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.room import explained_full_disk
from gpt_pipeline.training.config import ESTIMATES, StepLayout
from gpt_pipeline.training.observer import Observer

if TYPE_CHECKING:
    from gpt_pipeline.checkpoints.snapshot import Progress
    from gpt_pipeline.training.update import UpdateResult

SENT_NAME = "metrics.sent.json"
"""Beside `metrics.jsonl`: what a tracker noted of how much of it was sent. It moves with its training."""

_logger = logging.getLogger(__name__)
_BLOCK_BYTES = 4096
_MOST_STEPS = 2**63
_NUMBERS: tuple[str, ...] = (
    "tokens_seen",
    "seconds",
    "train_loss",
    *ESTIMATES,
    "updates",
    "learning_rate",
    "gradient_norm",
)
_NUMBERS += ("tokens_per_second", "mfu", "peak_flops", "memory_gb", "eta_seconds", "size", "stall_seconds")
_NUMBERS += ("loss_scale", "skipped_updates")
_NUMBERS += ("reward", "dropped_groups", "answer_tokens", "entropy", "ended", "distance")
_NUMBERS += ("pass_at_1", "pass_at_k", "error_rate")


class MetricsLog:
    """Appends lines; each is handed to the operating system at once, so a killed process loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record of JSON values.

        Raises:
            DiskFullError: there is no room for it.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with explained_full_disk(self._path):
            _write_all(self._file, line.encode("utf-8"))

    def close(self) -> None:
        self._file.close()


def _write_all(file: io.FileIO, content: bytes) -> None:
    while content:  # a disk that becomes full takes a part
        content = content[file.write(content) :]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the last record of each (kind, step), in the order of steps; events also differ by their name.

    A last line that is still being written is left out.
    """
    last = {(record["kind"], record["step"], record.get("event")): record for record in _records(path)}
    return sorted(last.values(), key=lambda record: int(record["step"]))


def write_metrics_up_to(source: Path, target: Path, *, step: int) -> None:
    """Write the records of `source` up to and including `step` to `target`, atomically."""
    kept = [record for record in _records(source) if record["step"] <= step]
    write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def remove_lines_from(path: Path, *, step: int) -> None:
    """Remove the lines of `step` and later ones from a file of JSON lines, atomically; those before stay as they are.

    For a file that people read as it is, before a resumed training writes these steps again.

    Raises:
        DiskFullError: there is no room for the copy; the file stays as it was.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if not _is_from(line, step)]
    if len(kept) < len(lines):
        with explained_full_disk(path), atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(kept))


def _is_from(line: bytes, step: int) -> bool:
    try:
        found = parse_json(line)
    except ValueError:  # the torn line of a machine that went down
        return False
    return isinstance(found, dict) and _is_step(found.get("step")) and bool(found["step"] >= step)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_record(line)
            except ValueError:
                if line.endswith("\n"):
                    _logger.warning("%s: line %d is no record and is left out", path, number)


def parse_record(line: str | bytes) -> dict[str, Any]:
    """Return the record in a line; raises ValueError if it is none, such as one that is being written."""
    record = parse_json(line)
    if not isinstance(record, dict) or type(record.get("kind")) is not str or not _is_step(record.get("step")):
        raise ValueError("found no record, need kind and step")
    if not isinstance(record.get("event"), str | None):
        raise ValueError(f"event: found {record['event']!r}, need a word")
    if strange := [key for key in _NUMBERS if isinstance(record.get(key), str | bool | list | dict)]:
        raise ValueError(f"{strange[0]}: found {record[strange[0]]!r}, need a number")
    return record


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_STEPS


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last line end: a record that a dying machine did not finish."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def _mean_figures(updates: Sequence[UpdateResult]) -> dict[str, float]:
    """Return each figure's mean over the updates that have it."""
    found: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.figures.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _scaling(updates: Sequence[UpdateResult]) -> dict[str, float]:
    """Return the last loss scale and how many updates were skipped; nothing where losses are not scaled."""
    scale = updates[-1].loss_scale
    return {} if scale is None else {"loss_scale": scale, "skipped_updates": sum(each.skipped for each in updates)}


Clock = Callable[[], float]


class Recorder:
    """Gathers updates and writes them as lines."""

    def __init__(
        self,
        progress: Progress,
        *,
        log: MetricsLog | None,
        observer: Observer,
        layout: StepLayout,
        flops_per_token: float,
        peak_flops: float | None,
        peak_memory: Callable[[], int | None],
        machine_load: Callable[[], Mapping[str, float]] = dict,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`log` is None in the processes besides the first.

        `peak_flops` is that of all processes together, `peak_memory` (bytes; None: unknown) that of this one.
        `machine_load` is asked with each line of training for what is to be said of the machine, by name.
        """
        self._progress = progress
        self._log = log
        self._observer = observer
        self._layout = layout
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._peak_memory = peak_memory
        self._machine_load = machine_load
        self._clock = clock
        self._updates: list[UpdateResult] = []
        self._update_seconds = 0.0
        self._tokens_seen = progress.tokens_seen  # those of updates under way left out
        self._last_tick = self._updates_since = clock()

    def tick(self) -> float:
        """Add the time since the last call to the training time; return the time now, in seconds."""
        now = self._clock()
        self._progress.seconds += now - self._last_tick
        self._last_tick = now
        return now

    def begin_updates(self) -> None:
        """Count the time of updates from here on: what went before, such as an estimate, is none of theirs."""
        self._updates_since = self.tick()

    def update(self, result: UpdateResult) -> None:
        """Take note of an update that has just been made; write a line when it is time."""
        self._updates.append(result)
        self._tokens_seen += result.tokens
        now = self.tick()
        self._update_seconds += now - self._updates_since
        self._updates_since = now
        if result.step % self._layout.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Write the updates since the last line as one line."""
        if not self._updates:
            return
        last, count, seconds = self._updates[-1], len(self._updates), max(self._update_seconds, 1e-9)
        speed = sum(update.tokens for update in self._updates) / seconds
        memory = self._peak_memory()
        self._write(
            "train",
            step=last.step,
            tokens_seen=self._tokens_seen,
            train_loss=sum(update.train_loss for update in self._updates) / count,
            **_mean_figures(self._updates),
            updates=count,
            learning_rate=last.learning_rate,
            gradient_norm=next((each.gradient_norm for each in reversed(self._updates) if not each.skipped), None),
            **_scaling(self._updates),
            tokens_per_second=speed,
            mfu=None if self._peak_flops is None else speed * self._flops_per_token / self._peak_flops,
            peak_flops=self._peak_flops,
            memory_gb=None if memory is None else round(memory / 1e9, 3),
            eta_seconds=(self._layout.max_steps - last.step) * seconds / count,
            **self._machine_load(),
        )
        self._updates.clear()
        self._update_seconds = 0.0

    def validating(self, done: int, total: int) -> None:
        """Tell the user how far an estimate of the validation loss is, in batches."""
        self._observer.validating(done, total)

    def validation(self, losses: Mapping[str, float], *, is_best: bool) -> None:
        """Write estimates of the losses on held-out documents, by name."""
        self.tick()
        self._write("validation", **losses, is_best=is_best)

    def checkpoint(self, info: CheckpointInfo, *, stall_seconds: float) -> None:
        """Write that a checkpoint has become durable, maybe some steps after its own."""
        self.tick()
        self._write(
            "checkpoint",
            step=info.step,
            tokens_seen=info.tokens_seen,
            file=info.path.name,
            sha256=info.sha256,
            size=info.size,
            stall_seconds=round(stall_seconds, 4),
        )

    def event(self, event: str, message: str, **values: Any) -> None:
        """Write that something happened, with JSON values that are not for the user, and tell the user."""
        self.tick()
        self._write("event", event=event, message=message, **values)
        self._observer.message(message)

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()

    def _write(self, kind: str, **values: Any) -> None:
        if self._log is None:
            return
        progress = self._progress
        record = {"kind": kind, "step": progress.step, "tokens_seen": progress.tokens_seen} | values
        record |= {"seconds": round(progress.seconds, 3), "time": utc_now()}
        self._log.write(record)
        if kind in ("train", "validation"):
            self._observer.progress({**record, "max_steps": self._layout.max_steps})
