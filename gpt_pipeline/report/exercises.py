"""How several checkpoints do at each kind of exercise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_pipeline.report.contents import CheckpointRow, spread

_LOSS, _RIGHT = "val_loss", "correct"


@dataclass(frozen=True, kw_only=True)
class ExerciseCell:
    """One checkpoint at one kind of exercise."""

    val_loss: float | None
    correct: float | None
    """Share of its questions answered right; None where none was asked."""


@dataclass(frozen=True, kw_only=True)
class ExerciseTable:
    """Kinds of exercise by name, each with a cell per checkpoint."""

    steps: tuple[int, ...]
    rows: tuple[tuple[str, tuple[ExerciseCell, ...]], ...]


def exercise_table(evaluated: Sequence[CheckpointRow]) -> ExerciseTable | None:
    """Return the losses and right answers by exercise of a few of the evaluated checkpoints; None if none tells."""
    chosen = spread(evaluated)
    measured = [row.evaluation.metrics for row in chosen if row.evaluation is not None]
    names = sorted({key.partition("/")[2] for metrics in measured for key in metrics if key.startswith(f"{_LOSS}/")})
    if not names:
        return None
    rows = tuple(
        (
            name.replace("_", " "),
            tuple(
                ExerciseCell(val_loss=metrics.get(f"{_LOSS}/{name}"), correct=metrics.get(f"{_RIGHT}/{name}"))
                for metrics in measured
            ),
        )
        for name in names
    )
    return ExerciseTable(steps=tuple(row.step for row in chosen), rows=rows)
