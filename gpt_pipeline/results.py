"""The results of experiments as pandas DataFrames, for notebooks and scripts.

    from gpt_pipeline import results

    losses = results.metrics("experiments/a.yaml", "experiments/b.yaml")
    answers = results.answers("experiments")  # every experiment of the folder

Everything is read from the experiments' folders; nothing is computed or changed, and no other part of the pipeline
needs pandas. Each function takes any number of experiment files and folders of them. Its frame has one row per result
and always the documented columns and dtypes, also when there are no rows yet. A field that is written by some trainings
only, or by a newer version, follows the documented columns under its own name. `experiment` is the file's name as
Dagster has it, such as `my_idea` of `my-idea.yaml`; of files that share it, the end of the path that tells them apart,
such as `one/my-idea.yaml`. `step` counts updates.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.evaluation.result import EvaluationResult, read_evaluations, same_samples
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.training.metrics import read_metrics

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

_TEXT, _WHOLE, _REAL, _FLAG, _TIME = "string", "Int64", "float64", "boolean", "datetime64[us, UTC]"

_METRICS = {
    "experiment": _TEXT,
    "kind": _TEXT,
    "step": _WHOLE,
    "tokens_seen": _WHOLE,
    "seconds": _REAL,
    "time": _TIME,
    "train_loss": _REAL,
    "val_loss": _REAL,
    "document_loss": _REAL,
    "completion_loss": _REAL,
    "is_best": _FLAG,
    "learning_rate": _REAL,
    "gradient_norm": _REAL,
    "loss_scale": _REAL,
    "skipped_updates": _WHOLE,
    "tokens_per_second": _REAL,
    "mfu": _REAL,
    "peak_flops": _REAL,
    "memory_gb": _REAL,
    "eta_seconds": _REAL,
    "updates": _WHOLE,
    "file": _TEXT,
    "sha256": _TEXT,
    "size": _WHOLE,
    "stall_seconds": _REAL,
    "event": _TEXT,
    "message": _TEXT,
    "device": _TEXT,
}
_CHECKPOINTS = {
    "experiment": _TEXT,
    "step": _WHOLE,
    "tokens_seen": _WHOLE,
    "train_loss": _REAL,
    "val_loss": _REAL,
    "is_best_model": _FLAG,
    "path": _TEXT,
    "size": _WHOLE,
    "sha256": _TEXT,
    "weights_sha256": _TEXT,
    "created_at": _TIME,
}
_OF_CHECKPOINT = ("step", "tokens_seen", "size", "sha256", "weights_sha256", "created_at")
_EVALUATION = {"experiment": _TEXT, "step": _WHOLE, "comparable": _FLAG}
_EVALUATIONS = {
    **_EVALUATION,
    "val_loss": _REAL,
    "perplexity": _REAL,
    "val_bpb": _REAL,
    "validation_tokens": _REAL,
    "document_loss": _REAL,
    "completion_loss": _REAL,
    "averaged_val_loss": _REAL,
    "base_val_loss": _REAL,
    "answer_loss": _REAL,
    "documents": _REAL,
    "documents_truncated": _REAL,
    "num_questions": _REAL,
    "well_formed": _REAL,
    "ended": _REAL,
    "correct": _REAL,
    "exact_match": _REAL,
    "numeric_match": _REAL,
    "choice_match": _REAL,
    "pass_at_1": _REAL,
    "pass_at_k": _REAL,
    "token_f1": _REAL,
    "distinct_2": _REAL,
    "new_tokens": _REAL,
    "prompts_truncated": _REAL,
    "seconds": _REAL,
    "device": _TEXT,
    "created_at": _TIME,
    "weights_sha256": _TEXT,
    "fingerprint": _TEXT,
}
_KINDS = {**_EVALUATION, "kind": _TEXT, "val_loss": _REAL, "answer_loss": _REAL, "correct": _REAL}
_ANSWERS = {
    **_EVALUATION,
    "document": _TEXT,
    "kind": _TEXT,
    "question": _TEXT,
    "expected": _TEXT,
    "generated": _TEXT,
    "reasoning": _TEXT,
    "answer": _TEXT,
    "correct": _FLAG,
    "well_formed": _FLAG,
    "ended": _FLAG,
    "exact_match": _FLAG,
    "numeric_match": _FLAG,
    "choice_match": _FLAG,
    "token_f1": _REAL,
    "distinct_2": _REAL,
    "new_tokens": _WHOLE,
    "prompt_truncated": _FLAG,
    "reference_reasoning": _TEXT,
    "reference_answer": _TEXT,
    "reference_tokens": _WHOLE,
}
_CONTINUATIONS = {
    **_EVALUATION,
    "document": _WHOLE,
    "kind": _TEXT,
    "beginning": _TEXT,
    "generated": _TEXT,
    "original": _TEXT,
    "ended": _FLAG,
    "distinct_2": _REAL,
    "new_tokens": _WHOLE,
    "reference_tokens": _WHOLE,
}
_OWN_NAMES = {"synth_id": "document", "exercise": "kind"}  # of an answer's fields, where a general word serves better


def metrics(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return what the trainer recorded: a row per experiment, step and kind; of a repeated step the last.

    All rows: `kind` (`train`, `validation`, `checkpoint` or `event`), `step` (updates done), `tokens_seen`, `seconds`
    (training time so far), `time` (UTC).
    `train`: means or last values since the row before. `train_loss` (nats per token), `learning_rate`,
    `gradient_norm` (before clipping), `tokens_per_second`, `mfu` (share of the device's peak, in [0, 1]),
    `peak_flops` (FLOP/s of all devices), `memory_gb` (peak, GB), `eta_seconds` (estimated time left), `updates`.
    In fp16 also `loss_scale` and `skipped_updates`.
    `validation`: `val_loss`, on whole documents `document_loss`, and in fine-tuning `completion_loss`, on their answers
    with reasoning alone (nats per token, on a few batches), `is_best` (lowest so far).
    `checkpoint`: `file`, `sha256`, `size` (bytes), `stall_seconds` (how long it kept the training waiting).
    `event`: `event` (its name), `message`, and `device` (`cpu`, `cuda` ...) where the training begins or goes on.
    Behind these, where a training wrote them: `reward` and what else it noted of rewards, and `system/...` (how busy
    its machine was).
    """
    return _frame(
        _METRICS, (row for name, each in _load(experiments) for row in _of(name, read_metrics(each.folder.metrics)))
    )


def checkpoints(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the checkpoints that are on disk: a row per experiment and step.

    `step`, `tokens_seen`, `train_loss` of the last update and the newest `val_loss` (nats per token, as the trainer
    estimated it), `is_best_model` (these are the weights of `best_model.pt`), `path` (absolute), `size` (bytes),
    `sha256` (of the file), `weights_sha256` (of the weights alone), `created_at` (UTC).
    """
    return _frame(_CHECKPOINTS, (row for name, each in _load(experiments) for row in _of(name, _checkpoint_rows(each))))


def evaluations(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the evaluations: a row per experiment and step, the newest where a checkpoint was evaluated again.

    `comparable` is False where the data or the `evaluation:` settings differ from those of the experiment's newest
    evaluation. `val_loss` (on `validation_tokens`), `answer_loss`, `document_loss`, `completion_loss`,
    `averaged_val_loss`, `base_val_loss` (nats per token), `perplexity`, `val_bpb` (bits per UTF-8 byte).
    `documents`, `documents_truncated`, `num_questions`, `prompts_truncated` are counts; `well_formed`, `ended`,
    `correct`, `exact_match`, `numeric_match`, `choice_match`, `pass_at_1`, `pass_at_k`, `distinct_2` shares in [0, 1];
    `token_f1` is in [0, 1], `new_tokens` the mean tokens of an answer. A metric that does not apply is NaN. `seconds`
    (the evaluation took), `device`, `created_at` (UTC), `weights_sha256`, `fingerprint` (of the evaluation).
    """
    rows = ({**head, **_evaluation_row(result)} for head, result in _results(experiments))
    return _frame(_EVALUATIONS, rows)


def kinds(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return what the evaluations found by kind of document: a row per experiment, step and `kind`.

    `val_loss` and `answer_loss` (nats per token) on documents of that kind, `correct` (share of right answers to its
    questions, in [0, 1]); NaN where none was measured. `comparable` as in `evaluations`.
    """
    rows = (
        {**head, "kind": kind, **values} for head, result in _results(experiments) for kind, values in _by_kind(result)
    )
    return _frame(_KINDS, rows)


def answers(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the answers to held-out questions: a row per experiment, step and question, in the order of the questions.

    `document` (its id) and `kind`, `question`, `expected` (answer), `generated` (all that the model wrote), its parts
    `reasoning` and `answer`; `correct`, `well_formed`, `ended`, `exact_match`, `numeric_match` and `choice_match`
    (missing where no number or option is asked for); `token_f1` and `distinct_2` in [0, 1]; `new_tokens`,
    `prompt_truncated`; `reference_reasoning`, `reference_answer` and `reference_tokens` of the document itself.
    `comparable` as in `evaluations`.
    """
    rows = ({**head, **_renamed(answer)} for head, result in _results(experiments) for answer in result.answers)
    return _frame(_ANSWERS, rows)


def continuations(*experiments: str | os.PathLike[str]) -> pd.DataFrame:
    """Return how the models go on with held-out documents that ask nothing: a row per experiment, step and document.

    `document` (its place among the held-out ones, from 0) and `kind`, `beginning` (what the model was given),
    `generated` (what it wrote) and `original` (how the document really goes on, as far as the model may write);
    `ended` (it stopped by itself), `distinct_2` in [0, 1], `new_tokens`, `reference_tokens` (of the whole rest of the
    document). `comparable` as in `evaluations`.
    """
    rows = ({**head, **each} for head, result in _results(experiments) for each in result.continuations)
    return _frame(_CONTINUATIONS, rows)


def _load(given: Iterable[str | os.PathLike[str]]) -> list[tuple[str, Experiment]]:
    """Return the experiments, each once, with the name that its rows bear.

    In a folder, one that cannot be used is left out with a warning.

    Raises:
        UserError: a file that was named cannot be used, or a folder does not exist.
    """
    found: dict[Path, Experiment] = {}
    for path in map(Path, given):
        for experiment in [load_experiment(path)] if _is_file(path) else _in_folder(path):
            found.setdefault(experiment.file, experiment)
    by_name: dict[str, list[Path]] = {}
    for file, experiment in found.items():
        by_name.setdefault(experiment.name, []).append(file)
    called = {file: _called(name, file, files) for name, files in by_name.items() for file in files}
    return [(called[file], experiment) for file, experiment in found.items()]


def _called(name: str, file: Path, files: Iterable[Path]) -> str:
    """Return what tells a file from the others of its name: the name; if there are others, the end of its path."""
    others = [each for each in files if each != file]
    count = 1
    while any(each.parts[-count:] == file.parts[-count:] for each in others):
        count += 1
    return Path(*file.parts[-count:]).as_posix() if others else name


def _is_file(path: Path) -> bool:
    """Whether `path` names a file; where there is nothing of that name, its ending tells what is missed."""
    return path.is_file() or (path.suffix != "" and not path.is_dir())


def _in_folder(folder: Path) -> Iterator[Experiment]:
    for file in find_experiments(folder):
        if file.experiment is not None:
            yield file.experiment
        else:
            warnings.warn(f"left out: {file.problem}", stacklevel=4)


def _of(name: str, rows: Iterable[Row]) -> Iterator[Row]:
    return ({"experiment": name, **row} for row in rows)


def _checkpoint_rows(experiment: Experiment) -> Iterator[Row]:
    folder = experiment.folder.checkpoints
    best = best_checkpoint(folder)
    kept = {info.step: info for info in (*([best] if best else []), *list_checkpoints(folder))}
    for step in sorted(kept):
        info = kept[step]
        yield {
            **{name: getattr(info, name) for name in _OF_CHECKPOINT},
            **{name: info.metrics.get(name) for name in ("train_loss", "val_loss")},
            "is_best_model": best is not None and best.weights_sha256 == info.weights_sha256,
            "path": str(info.path),
        }


def _results(given: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[Row, EvaluationResult]]:
    """Yield the newest evaluation of each step with the columns that place it."""
    for name, experiment in _load(given):
        by_step = {result.step: result for result in read_evaluations(experiment.folder.evaluations)}
        newest = max(by_step.values(), key=lambda result: result.created_at, default=None)
        for step, result in by_step.items():
            comparable = newest is not None and same_samples(result, newest)
            yield {"experiment": name, "step": step, "comparable": comparable}, result


def _evaluation_row(result: EvaluationResult) -> Row:
    own = {name: getattr(result, name) for name in ("seconds", "device", "created_at", "fingerprint")}
    overall = {name: value for name, value in result.metrics.items() if "/" not in name}
    return {**overall, **own, "weights_sha256": result.checkpoint["weights_sha256"]}


def _by_kind(result: EvaluationResult) -> Iterator[tuple[str, Row]]:
    """Yield each kind with its metrics, which the result names `val_loss/<kind>`."""
    found: dict[str, dict[str, float]] = {}
    for name, value in result.metrics.items():
        metric, _, kind = name.partition("/")
        if kind:
            found.setdefault(kind, {})[metric] = value
    yield from sorted(found.items())


def _renamed(answer: Row) -> Row:
    return {_OWN_NAMES.get(name, name): value for name, value in answer.items()}


def _frame(columns: Mapping[str, str], rows: Iterable[Row]) -> pd.DataFrame:
    import pandas as pd

    records = list(rows)
    further = dict.fromkeys(name for record in records for name in record if name not in columns)
    frame = pd.DataFrame.from_records(records, columns=[*columns, *further])
    for name, dtype in columns.items():
        frame[name] = (
            pd.to_datetime(frame[name], utc=True).astype(dtype) if dtype == _TIME else frame[name].astype(dtype)
        )
    return frame
