"""What a comparison holds: the standings of experiments, in groups of those whose losses can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.experiment.differences import Difference
from gpt_pipeline.report.cost import Cost, Record
from gpt_pipeline.report.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one checkpoint reached."""

    step: int
    tokens_seen: int | None
    seconds: float | None
    """Training time up to it."""

    evaluation: EvaluationResult

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.evaluation.metrics


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One experiment's figures; what does not exist yet is None."""

    name: str
    display_name: str
    status: str
    parameters: int
    cost: Cost
    best: Reached | None
    """The best of its evaluations, by what its training brings down."""

    last: Reached | None
    """Newest of its evaluated checkpoints."""

    rank: int | None = None
    """1 is best in its group; None where there is nothing to rank it with."""

    family: str | None = None
    step: int = 0
    """Of the training, as far as it is."""

    max_steps: int | None = None
    loss: str
    """The loss that its training brings down; that of validation where it goes by rewards."""

    estimate: float | None = None
    """Of that loss, the trainer's newest."""

    updated_at: str | None = None
    """When its training or its newest evaluation last said something; UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Experiments whose losses can be compared."""

    standings: tuple[Standing, ...]
    """Best first."""

    ranked_by: str
    """The metric of their best checkpoints by which they are ranked."""

    held_out_of: str
    """The documents from which the validation split was taken, for a person."""

    apart: tuple[str, ...]
    """Why its losses cannot be compared with those of the first group; empty for the first."""

    answer_obstacles: tuple[str, ...]
    """Why the answers' metrics cannot be compared although the losses can."""


@dataclass(frozen=True, kw_only=True)
class KeyLine:
    """Experiments that differ in the key alone."""

    name: str
    """The other keys' values, such as `data.seed 1`; empty where no other key differs."""

    standings: tuple[Standing | None, ...]
    """One for each of the key's values; None where no experiment with an evaluation has it."""


@dataclass(frozen=True, kw_only=True)
class ByKey:
    """Experiments whose losses compare, by the value of a key."""

    key: str
    metric: Metric
    values: tuple[Any, ...]
    """Ascending if they are numbers."""

    lines: tuple[KeyLine, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.metric.label} of the best checkpoints by {self.key}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several experiments."""

    groups: tuple[Group, ...]
    """In the order asked for, by their first experiment."""

    across: tuple[tuple[Standing, ...], ...]
    """Experiments of several groups with the same held-out text but other tokenizers, each set by bits per byte."""

    waiting: tuple[Standing, ...]
    """Those without evaluations."""

    differences: tuple[Difference, ...]
    """Values in the order of `standings`."""

    by_key: tuple[ByKey, ...] = ()
    """A metric against a key, group by group; see `with_key`."""

    records: Mapping[str, Sequence[Record]] = field(default_factory=dict, repr=False)
    """The metrics of the trainings by experiment, as they were read; empty where more were read than a chart draws."""

    @property
    def standings(self) -> tuple[Standing, ...]:
        """All: group by group, then those without evaluations."""
        return (*(standing for group in self.groups for standing in group.standings), *self.waiting)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why not all losses can be compared; empty if they can."""
        return tuple(reason for group in self.groups for reason in group.apart)
