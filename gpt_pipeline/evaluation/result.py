"""The result of an evaluation and the file that keeps it. Imports nothing heavy, so that looking it up is cheap."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.manifest import BEST_NAME, CheckpointInfo
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint, identity_of
from gpt_pipeline.storage.shape import require_shape

OF_SAMPLES = ("samples_per_question", "sample_temperature")
"""Keys of `EvaluationResult.config` that leave all but `pass_at_1` and `pass_at_k` alone."""

OF_ANSWERS = ("num_questions", "max_new_tokens", "num_documents", "seed", *OF_SAMPLES)
"""Keys of `EvaluationResult.config` that leave the validation loss alone."""

BASE_LOSS = "base_val_loss"
"""The metric of a post-training: nats per token of what its pretraining held out; absent where `val_loss` is that."""

BEST_ALIAS = BEST_NAME.removesuffix(".pt")
"""The second name of the evaluated checkpoint whose weights `best_model.pt` holds."""

SHARES = ("pass_at_1", "correct")
"""Of the metrics that rank evaluations, those of which more is better; the others are losses."""

_STAND_FOR: Mapping[str, tuple[str, ...]] = {"error_rate": SHARES}  # what an evaluation measures instead
_LONGEST_NAME = 250 - len("answer_loss/")  # MLflow's longest key
_HASH_DIGITS, _KEPT_LETTERS = 12, 60
_REMEMBERED = 1 << 15  # results, some 10 kB each: beyond that a page reads all files anew each time it looks at them
_TOLD_APART = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}$")
EVALUATION_VERSION = "2"
"""Raise it when the same weights, data and configuration give another result: every checkpoint is evaluated again.

2: losses by kind of exercise; the answers' loss on documents of its own choice; multiple choice.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The evaluation of one checkpoint. The file holds everything but `path` and `reused`."""

    fingerprint: str
    key: str
    """Of the checkpoint: `step_00000100`."""

    checkpoint: Mapping[str, Any]
    """`file`, `step`, `sha256`, `weights_sha256`, `training_fingerprint`, and `metrics` as the trainer saw them."""

    config: Mapping[str, Any]
    """The part of the configuration that decides the result."""

    upstream: Mapping[str, str]
    """Fingerprints of the data: `shards`, `english`."""

    metrics: Mapping[str, float]
    """By name; a metric that does not apply (numbers right where no number is asked for) is absent."""

    answers: tuple[Mapping[str, Any], ...]
    """One per question, in the order of the question set."""

    continuations: tuple[Mapping[str, Any], ...] = ()
    """One per held-out document that was begun, where documents ask nothing; older evaluations lack them."""

    started_at: str
    """UTC, ISO 8601. MLflow gets this and `created_at`, so that logging again writes the same."""

    created_at: str
    seconds: float
    device: str
    versions: Mapping[str, str]

    path: Path
    reused: bool

    @property
    def step(self) -> int:
        """Optimizer updates behind the weights."""
        return int(self.checkpoint["step"])


def evaluation_identity(config: EvaluationConfig, *, max_length: int) -> dict[str, Any]:
    """Return the part of the configuration that decides the result of an evaluation."""
    keys = ("num_questions", "num_documents", "max_new_tokens", "max_validation_tokens", "seed", *OF_SAMPLES)
    return {**identity_of(config, *keys), "max_length": max_length}


def evaluation_fingerprint(
    config: EvaluationConfig,
    *,
    weights_sha256: str,
    shards_fingerprint: str,
    max_length: int,
    parts: Mapping[str, str] | None = None,
) -> str:
    """Return the identity of an evaluation.

    The weights count, not the file: `best_model.pt` and the `checkpoint_step_<N>.pt` it equals are one. The shards'
    fingerprint stands for the documents, the split and the tokenizer, and so for the questions too. `parts` are the
    fingerprints of the shards of a mix's parts, by the names that its results bear.
    """
    return fingerprint(
        "evaluation",
        config={**evaluation_identity(config, max_length=max_length), **({"parts": dict(parts)} if parts else {})},
        upstream=[weights_sha256, shards_fingerprint],
        code_version=EVALUATION_VERSION,
    )


def exercise_names(exercises: Iterable[str]) -> dict[str, str]:
    """Return what metrics call each kind of exercise, as in `val_loss/math_exercise`: a name that MLflow takes.

    Kinds that would share a name, such as `Math` and `math`, and those that have none end in a hash of their own.
    """
    plain = {
        exercise: re.sub(r"[^\w.-]+", "_", exercise.lower()).strip("_") or "unknown" for exercise in set(exercises)
    }
    bearers = Counter(plain.values())
    return {
        exercise: name if bearers[name] == 1 and _is_metric_name(name) else _told_apart(name, exercise)
        for exercise, name in sorted(plain.items())
    }


def _is_metric_name(name: str) -> bool:
    is_path = name not in (".", "..")
    return is_path and len(name) <= _LONGEST_NAME and _TOLD_APART.search(name) is None


def _told_apart(name: str, exercise: str) -> str:
    digest = hashlib.sha256(exercise.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name.strip('.')[:_KEPT_LETTERS] or 'unknown'}-{digest[:_HASH_DIGITS]}"


def write_evaluation(result: EvaluationResult) -> None:
    """Write `result` to its path, atomically."""
    value = dataclasses.asdict(result)
    del value["path"], value["reused"]
    write_json(result.path, value)


def evaluation_path(folder: Path, key: str, identity: str) -> Path:
    """Return `<folder>/<checkpoint key>-<first digits of the fingerprint>.json`."""
    return folder / f"{key}-{identity[:SHORT]}.json"


def find_evaluation(folder: Path, identity: str) -> EvaluationResult | None:
    """Return the finished evaluation in `folder` with this fingerprint, or None."""
    for path in sorted(folder.glob(f"*-{identity[:SHORT]}.json")):
        result = read_evaluation(path)
        if result is not None and result.fingerprint == identity:
            return result
    return None


def read_evaluation(path: Path) -> EvaluationResult | None:
    """Return what `write_evaluation` wrote, or None where it is missing or damaged."""

    def parse(value: dict[str, Any]) -> EvaluationResult:
        known = known_fields(EvaluationResult, value)
        require_shape(
            _Evaluated(**{each.name: value["checkpoint"][each.name] for each in dataclasses.fields(_Evaluated)})
        )
        texts = {"answers": tuple(value["answers"]), "continuations": tuple(value.get("continuations", ()))}
        return EvaluationResult(**{**known, **texts, "path": path, "reused": True})

    return read_kept(path, parse, otherwise="it does not count as an evaluation")


def read_evaluations(folder: Path) -> list[EvaluationResult]:
    """Return every finished evaluation in `folder`, by step, then by time."""
    results = [result for path in sorted(folder.glob("*.json")) if (result := read_evaluation(path)) is not None]
    return sorted(results, key=lambda result: (result.step, result.created_at))


def summarize_evaluations(folder: Path) -> list[EvaluationResult]:
    """Return what `read_evaluations` does, without the texts; a file is read again only once it has changed."""
    found = [_summary_now(path) for path in sorted(folder.glob("*.json"))]
    return sorted((each for each in found if each is not None), key=lambda result: (result.step, result.created_at))


def _summary_now(path: Path) -> EvaluationResult | None:
    try:
        stat = path.stat()
    except FileNotFoundError:  # moved away in this moment
        return None
    return _summary(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_REMEMBERED)
def _summary(path: Path, *_identity: int) -> EvaluationResult | None:
    result = read_evaluation(path)
    return None if result is None else dataclasses.replace(result, answers=(), continuations=())


def alias_of(result: EvaluationResult, best: CheckpointInfo | None) -> str | None:
    """Return `best_model` if the evaluated weights are those of `best`, the training's `best_model.pt` as it is now."""
    weights = best_weights(best, training_fingerprint=str(result.checkpoint.get("training_fingerprint")))
    return BEST_ALIAS if weights == result.checkpoint["weights_sha256"] else None


def best_weights(best: CheckpointInfo | None, *, training_fingerprint: str) -> str | None:
    """Return the hash of the weights in `best`, or None if there is none, or one of another training."""
    return best.weights_sha256 if best is not None and best.fingerprint == training_fingerprint else None


def ranking_metric(results: Iterable[EvaluationResult], decides: str) -> str:
    """Return the metric that ranks evaluations: the loss by which their trainings choose the best, where all have it.

    `decides` is that loss (`training.config.deciding_loss`). Earlier versions measured `val_loss` alone, which then
    ranks them all.
    """
    found = list(results)
    names = _STAND_FOR.get(decides, (decides,))

    # Shares of answers compare where the questions are the same.
    def compare(name: str) -> bool:
        keys = () if name == "pass_at_1" else OF_SAMPLES
        return name not in SHARES or all(_asked_alike(each, found[0], but=keys) for each in found)

    return next((name for name in names if all(name in each.metrics for each in found) and compare(name)), "val_loss")


def rank_of(result: EvaluationResult, metric: str) -> float:
    """Return a number that is lower for a better result."""
    return rank_of_value(float(result.metrics[metric]), metric)


def rank_of_value(value: float, metric: str) -> float:
    """Return a number that is lower for a better value of the metric."""
    return -value if metric in SHARES else value


def losses_key(result: EvaluationResult) -> str:
    """Return what is equal for results of which `same_losses` is true."""
    config = {"upstream": dict(result.upstream), "config": _of_losses(result.config)}
    return fingerprint("losses", config=config, code_version="1")


def same_losses(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Whether the validation losses compare: means over the same held-out tokens, measured alike.

    The shards' fingerprint stands for the documents, the split and the tokenizer.
    """
    return one.upstream == other.upstream and _of_losses(one.config) == _of_losses(other.config)


def alike_newest(results: Iterable[EvaluationResult]) -> list[EvaluationResult]:
    """Return those with a validation loss that compares with that of the newest: others are of earlier settings."""
    measured = [result for result in results if "val_loss" in result.metrics]
    newest = max(measured, key=lambda result: result.created_at, default=None)
    return [result for result in measured if newest is not None and same_losses(result, newest)]


def same_answers(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Whether losses and answers compare: they are to the same questions, asked alike. Drawn ones need not."""
    same_questions = [*map(question_id, one.answers)] == [*map(question_id, other.answers)]
    return _asked_alike(one, other, but=OF_SAMPLES) and same_questions


def same_samples(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Whether all figures compare: those of drawn answers too, which are as many, drawn alike."""
    return same_answers(one, other) and one.config == other.config


def _asked_alike(one: EvaluationResult, other: EvaluationResult, *, but: Sequence[str]) -> bool:
    """Whether two evaluations have the same data and configuration, leaving out some keys of that."""
    rest = [{key: value for key, value in each.config.items() if key not in but} for each in (one, other)]
    return one.upstream == other.upstream and rest[0] == rest[1]


def question_id(answer: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what tells the question of one of `EvaluationResult.answers` from others."""
    return answer.get("synth_id"), answer.get("question")


def _of_losses(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in OF_ANSWERS}


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """What `EvaluationResult.checkpoint` holds at least."""

    step: int
    weights_sha256: str
