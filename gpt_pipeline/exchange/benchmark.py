"""Public benchmarks of a checkpoint by lm-evaluation-harness.

The package `lm_eval` is an optional extra. Its tasks fetch their documents from the hub or read a local copy.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.load import Weights, weights_info
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_key
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.export import export_checkpoint, trained_length
from gpt_pipeline.exchange.own_tasks import own_files
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.hardware import devices
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.config import Device

CODE_VERSION = "1"
_FOLDER = "benchmarks"  # in the experiment's folder


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """The scores of one checkpoint."""

    fingerprint: str
    step: int
    weights_sha256: str
    scores: tuple[Score, ...]
    samples: Mapping[str, int]
    """Documents of each task that were scored."""

    versions: Mapping[str, Any]
    """Of lm_eval, and of each task by its own count."""

    created_at: str
    path: Path
    reused: bool


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """What to measure."""

    tasks: Sequence[str]
    """By their names in the harness."""

    limit: int | None = None
    """Documents of each task; None: all."""

    task_folder: Path | None = None
    """A folder with your own task files."""

    weights: Weights = "raw"
    device: Device = "cpu"
    batch_size: int = 16
    """Texts at a time."""


def benchmark_checkpoint(experiment: Experiment, checkpoint: Path, request: BenchmarkRequest) -> BenchmarkResult:
    """Score one of the experiment's checkpoints and keep the result, or return the result already kept.

    Every text begins with `<|endoftext|>`, as in training, and is cut to the length of the training sequences.

    Raises:
        UserError: lm_eval is not installed, has no such task, or cannot get its documents, or there is no such device.
        DamagedFileError: the checkpoint is damaged.
    """
    version = _harness_version()
    info = weights_info(checkpoint, request.weights)
    identity = _fingerprint(request, info, version, max_length=trained_length(experiment, info))
    path = experiment.folder.root / _FOLDER / f"{checkpoint_key(info.step)}-{identity[:SHORT]}.json"
    if (kept := _read(path, identity)) is not None:
        return kept
    found = _run(experiment, info, request)
    result = BenchmarkResult(
        fingerprint=identity,
        step=info.step,
        weights_sha256=info.weights_sha256,
        scores=tuple(_scores(found["results"])),
        samples={task: counts["effective"] for task, counts in found["n-samples"].items()},
        versions={"lm_eval": version, **found["versions"]},
        created_at=utc_now(),
        path=path,
        reused=False,
    )
    write_json(path, {k: v for k, v in asdict(result).items() if k not in ("path", "reused")})
    return result


def _harness_version() -> str:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "benchmarks need lm-evaluation-harness, which is not installed; in the project's clone run: "
            "pip install -c constraints.txt -e '.[benchmarks]'"
        ) from None


def _fingerprint(request: BenchmarkRequest, info: CheckpointInfo, version: str, *, max_length: int) -> str:
    config = {
        "tasks": sorted(request.tasks),
        "limit": request.limit,
        "max_length": max_length,
        "lm_eval": version,
        "own": own_files(request.task_folder) if request.task_folder else {},
    }
    return fingerprint("benchmark", config=config, upstream=[info.weights_sha256], code_version=CODE_VERSION)


def _run(experiment: Experiment, info: CheckpointInfo, request: BenchmarkRequest) -> dict[str, Any]:
    """Return the harness's results for the checkpoint."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gpt_pipeline.data.sources.hub.patience import TransportError

    device = devices.choose_kind(request.device)
    manager = TaskManager(include_path=str(request.task_folder) if request.task_folder else None)
    _require_known(request.tasks, manager.all_tasks)
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as temporary:
        exported = export_checkpoint(experiment, info.path, Path(temporary) / "model", weights=request.weights)
        model = HFLM(
            pretrained=str(exported.folder),
            device=device,
            dtype="float32",
            max_length=trained_length(experiment, info),
            add_bos_token=True,
            batch_size=request.batch_size,
        )
        try:
            found = lm_eval.simple_evaluate(
                model=model, tasks=list(request.tasks), limit=request.limit, task_manager=manager, log_samples=False
            )
        except (OSError, TransportError) as error:  # the hub's failures, and a missing file
            raise UserError(
                f"the documents of {', '.join(request.tasks)} cannot be loaded ({error}); connect to the hub, set "
                "HF_HOME to a folder that has them, or give task files for local documents by --task-folder"
            ) from error
    return dict(found)


def _require_known(tasks: Sequence[str], known: Sequence[str]) -> None:
    from difflib import get_close_matches

    for task in tasks:
        if task not in known:
            near = get_close_matches(task, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
            raise UserError(f"--tasks: found {task!r}, need a task of lm-evaluation-harness{hint}")


def _scores(results: Mapping[str, Mapping[str, Any]]) -> list[Score]:
    """Return the metrics of each task; the harness names them `acc,none` and `acc_stderr,none`."""
    scores = []
    for task, values in results.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            known = stderr if isinstance(stderr, int | float) else None  # `N/A` where there is none
            scores.append(Score(task=task, metric=name, value=float(value), stderr=known))
    return scores


def _read(path: Path, identity: str) -> BenchmarkResult | None:
    def parse(value: dict[str, Any]) -> BenchmarkResult:
        scores = tuple(Score(**known_fields(Score, score)) for score in value["scores"])
        known = known_fields(BenchmarkResult, value)
        return BenchmarkResult(**{**known, "scores": scores, "path": path, "reused": True})

    found = read_kept(path, parse, otherwise="it is measured again")
    return found if found is not None and found.fingerprint == identity else None
