"""`metrics.jsonl`: one JSON object a line, appended while training runs. Imports no torch.

Each line has `kind` (train, validation, checkpoint or event), `step`, `tokens_seen`, `seconds` (training time so far)
and `time`. A resumed training writes the steps after its checkpoint again, so readers go by the last line of each.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt_pipeline.storage.atomic import write_text

SENT_NAME = "metrics.sent.json"
"""Beside `metrics.jsonl`: what a tracker noted of how much of it was sent. It moves with its training."""

_logger = logging.getLogger(__name__)
_BLOCK_BYTES = 4096


class MetricsLog:
    """Appends lines; each is handed to the operating system at once, so a killed process loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record of JSON values."""
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                yield {**record, "kind": record["kind"], "step": int(record["step"])}
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                if line.endswith("\n"):
                    _logger.warning("%s: line %d is no record and is left out", path, number)


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
