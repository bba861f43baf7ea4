"""The losses and rewards in a `metrics.jsonl`, for those who look at it again and again while it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from gpt_pipeline.training.config import ESTIMATES, PASSES
from gpt_pipeline.training.metrics import parse_record

_MOST_POINTS = 800  # of the training loss; a screen shows no more
_BLOCK_BYTES = 1 << 20
_END_BYTES = 512  # of what was read: its last line has times, by which a file is known again
_REMEMBERED = 256  # files


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Training loss and the trainer's estimates by step."""

    train: Mapping[int, float]
    """Nats per token, ascending, of each record or of each second, fourth ... one: some 800 at most."""

    rewards: Mapping[int, float]
    """Mean reward of the answers sampled at the steps of `train`; empty where nothing is rewarded."""

    estimates: Mapping[str, Mapping[int, float]]
    """By the names of `ESTIMATES`, in nats per token, and `PASSES`, a share; what the file lacks is absent."""

    @property
    def validation(self) -> Mapping[int, float]:
        """The estimates of `val_loss`."""
        return self.estimates.get("val_loss", {})


class _Reader:
    """Reads a file again and again, only the lines that came since the last look; for any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = Lock()
        self._begin_anew()

    def losses(self) -> Losses:
        """Return what the file holds now; one that took the other's place is read from its beginning."""
        with self._turn:
            self._refresh()
            estimates = {name: dict(losses) for name, losses in self._estimates.items()}
            return Losses(train=dict(self._train), rewards=dict(self._rewards), estimates=estimates)

    def _refresh(self) -> None:
        try:
            with self._path.open("rb") as file:
                # A training that went back to a checkpoint has another file, which begins as this one did.
                file.seek(self._offset - len(self._end))
                if file.read(len(self._end)) != self._end:
                    self._begin_anew()
                    file.seek(0)
                while self._take(file.read(_BLOCK_BYTES)):
                    file.seek(self._offset)
        except FileNotFoundError:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._train: dict[int, float] = {}
        self._rewards: dict[int, float] = {}
        self._estimates: dict[str, dict[int, float]] = {}
        self._end, self._offset, self._trained, self._every = b"", 0, 0, 1

    def _take(self, block: bytes) -> bool:
        """Read the whole lines of `block`; False if it has none."""
        end = block.rfind(b"\n") + 1
        self._end = (self._end + block[:end])[-_END_BYTES:]
        for line in block[:end].splitlines():
            if b'"train"' in line:
                self._trained += 1
                if self._trained % self._every == 0:
                    self._keep(line)
            elif b'"validation"' in line:
                self._keep(line)
        self._offset += end
        return end > 0

    def _keep(self, line: bytes) -> None:
        try:
            record = parse_record(line)
        except ValueError:  # damaged: whoever reads the file as a whole reports it
            return
        step = int(record["step"])
        if record["kind"] == "train" and record.get("train_loss") is not None:
            if step <= next(reversed(self._train), -1):  # the training went back to a checkpoint
                self._keep_steps([each for each in self._train if each < step])
                for name, losses in self._estimates.items():
                    self._estimates[name] = {each: loss for each, loss in losses.items() if each <= step}
            self._train[step] = float(record["train_loss"])
            if record.get("reward") is not None:
                self._rewards[step] = float(record["reward"])
        elif record["kind"] == "validation":
            for name in (*ESTIMATES, PASSES):
                if record.get(name) is not None:
                    self._estimates.setdefault(name, {})[step] = float(record[name])
        if len(self._train) > _MOST_POINTS:
            self._keep_steps(list(self._train)[1::2])
            self._every *= 2

    def _keep_steps(self, steps: Sequence[int]) -> None:
        self._train = {step: self._train[step] for step in steps}
        self._rewards = {step: self._rewards[step] for step in steps if step in self._rewards}


def losses_of(metrics: Path) -> Losses:
    """Return the losses in `metrics.jsonl` as they are now; empty where it does not exist."""
    return _reader(metrics).losses()


@lru_cache(maxsize=_REMEMBERED)
def _reader(metrics: Path) -> _Reader:
    return _Reader(metrics)
