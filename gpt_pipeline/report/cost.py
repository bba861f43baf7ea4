"""What a training cost: time, speed, memory, disk space. Read from its metrics and files, never measured here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Record = Mapping[str, Any]

_CPU_IN_WORDS = re.compile(r"\bCPU, \d+ threads?\b")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one training so far; None where unknown."""

    seconds: float | None
    """Training time over all runs, validation and checkpoints included."""

    gpus: int
    """Devices side by side; 0 on a CPU."""

    tokens_seen: int | None
    tokens_per_second: float | None
    """Median of the `train` lines."""

    mfu: float | None
    """Median share of the device's peak FLOP/s, in [0, 1]."""

    memory_gb: float | None
    """Highest so far, of the first process."""

    stall_seconds: float
    """How long checkpoints kept the training waiting."""

    checkpoints: int
    """Written, kept or not."""

    evaluation_seconds: float
    """Of all evaluations; they run beside the training."""

    disk_bytes: int
    """Of the kept checkpoints; one file under two names counts once."""

    @property
    def gpu_hours(self) -> float | None:
        """Training time times the GPUs it kept busy; None on a CPU."""
        return None if self.seconds is None or not self.gpus else self.seconds * self.gpus / 3600

    @property
    def seconds_per_million_tokens(self) -> float | None:
        """Of training time, validation and checkpoints included."""
        return None if not self.tokens_seen or self.seconds is None else self.seconds / self.tokens_seen * 1e6


def cost_of(records: Sequence[Record], *, checkpoints: Path, hardware: Record, evaluation_seconds: float) -> Cost:
    """Return the cost according to `metrics.jsonl`; `hardware` is that block of the trainer's job."""
    train = [record for record in records if record["kind"] == "train"]
    written = [record for record in records if record["kind"] == "checkpoint"]
    newest = records[-1] if records else {}
    return Cost(
        seconds=max((float(value) for value in _values(records, "seconds")), default=None),
        gpus=_processes(hardware) if _is_on_gpu(records) else 0,
        tokens_seen=newest.get("tokens_seen"),
        tokens_per_second=_median(train, "tokens_per_second"),
        mfu=_median(train, "mfu"),
        memory_gb=max((float(value) for value in _values(train, "memory_gb")), default=None),
        stall_seconds=sum(float(value) for value in _values(written, "stall_seconds")),
        checkpoints=len(written),
        evaluation_seconds=evaluation_seconds,
        disk_bytes=_bytes(checkpoints),
    )


def _is_on_gpu(records: Sequence[Record]) -> bool:
    """Whether the training began, or last went on, on a GPU.

    Earlier versions noted the device in words only. Without any, a peak tells: a CPU has none.
    """
    begun = next((each for each in reversed(records) if each.get("event") in ("started", "resumed")), None)
    if begun is None:
        return any(record.get("peak_flops") for record in records)
    if "device" in begun:
        return bool(begun["device"] != "cpu")
    return _CPU_IN_WORDS.search(str(begun.get("message"))) is None


def _processes(hardware: Record) -> int:
    """Return how many processes trained together, one a GPU, by that block."""
    block = hardware.get(str(hardware.get("launcher"))) or {}
    return int(hardware.get("num_gpus") or 1) * int(block.get("nodes") or 1)


def seconds_at(records: Sequence[Record], step: int) -> float | None:
    """Return the training time at which `step` was reached; None if no line says."""
    reached = _values([record for record in records if int(record["step"]) >= step], "seconds")
    return min(map(float, reached), default=None)


def _values(records: Sequence[Record], key: str) -> list[Any]:
    return [record[key] for record in records if record.get(key) is not None]


def _median(records: Sequence[Record], key: str) -> float | None:
    values = _values(records, key)
    return float(median(values)) if values else None


def _bytes(folder: Path) -> int:
    files = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (path.stat() for path in folder.glob("*.pt"))}
    return sum(files.values())
