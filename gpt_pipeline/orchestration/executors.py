"""Which executor runs the steps of a run, chosen by a file of the project: `executor.yaml`."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._config import validate_config  # `configured` itself checks only when a run starts
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.run_config import fixed_executor

FILE = "executor.yaml"

_EXECUTORS = {
    "in_process": ("dagster", "in_process_executor"),
    "multiprocess": ("dagster", "multiprocess_executor"),
    "k8s": ("dagster_k8s", "k8s_job_executor"),
    "celery": ("dagster_celery", "celery_executor"),
    "celery_k8s": ("dagster_celery_k8s", "celery_k8s_job_executor"),
    "ray": ("dagster_ray", "ray_executor"),
}

_LIMIT = "max_concurrent"

PRELOADED = [
    "gpt_pipeline.definitions",
    "gpt_pipeline.data.documents.stage",
    "gpt_pipeline.data.tokens.part",
    "tiktoken",
]
"""Modules that are already imported when a step starts: the definitions, and what a source file needs.

Not torch, which most steps do not need. numpy and Arrow cope with a fork after they have started their threads.
"""

_UNFIT = {
    "dask": "dagster-dask (0.29) runs the steps that are known when a run starts, never those of the source files, "
    "which are found during the run, and then calls the run a success; on several machines use celery or k8s"
}


def project_executor(root: Path, experiments: Sequence[Experiment] = ()) -> dg.ExecutorDefinition:
    """Return the executor that `executor.yaml` in the folder `root` names, with its configuration, for `experiments`.

    Without the file, Dagster's default: a process for each step, as many at a time as there are processors. Where the
    system can fork safely, from a process that has loaded the definitions: a step starts in a tenth of the time.

    Raises:
        ConfigError: the file names no known executor, or configures it wrongly.
        UserError: the file is not YAML, or the executor's package is not installed.
    """
    path = root / FILE
    if not path.is_file():
        return _default(experiments)
    value = _read(path)
    name, config = value.get("executor"), value.get("config") or {}
    if not isinstance(name, str) or name not in _EXECUTORS:
        need, remedy = f"one of {', '.join(_EXECUTORS)}", _UNFIT.get(str(name), "")
        raise ConfigError(f"{path}: executor", found=name, need=need, remedy=remedy)
    definition = _definition(name)
    checked = validate_config(definition.config_schema.config_type, config)
    if not checked.success:
        problem = checked.errors[0].message if checked.errors else "another shape"
        raise ConfigError(f"{path}: config", found=config, need=f"what {name} takes ({problem})")
    if name == "multiprocess":
        config = {**_start_method(), **config}
    return fixed_executor(definition, dict(config), name=name, experiments=experiments)


def _default(experiments: Sequence[Experiment]) -> dg.ExecutorDefinition:
    config: dict[str, object] = {"multiprocess": _start_method()}
    executor = dg.multi_or_in_process_executor
    return fixed_executor(executor, config, name="multi_or_in_process_executor", experiments=experiments)


def _start_method() -> dict[str, Any]:
    # On macOS the system's own libraries may have started threads by then, which a fork does not survive (Python's
    # documentation of multiprocessing: "Contexts and start methods").
    if sys.platform == "darwin" or "forkserver" not in multiprocessing.get_all_start_methods():
        return {}
    return {"start_method": {"forkserver": {"preload_modules": PRELOADED}}}


def _definition(name: str) -> dg.ExecutorDefinition:
    package, attribute = _EXECUTORS[name]
    try:
        definition: dg.ExecutorDefinition = getattr(importlib.import_module(package), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{FILE} asks for the executor {name}, but {error.name} is not installed; "
            f"run: pip install {package.replace('_', '-')}"
        ) from error
    return _with_limit(definition) if name == "ray" else definition


def _with_limit(ray: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Return dagster-ray's executor with the key that it heeds and (0.4.8) does not let itself be given.

    Without a limit it hands all steps of a run to the cluster at once, and Ray fails a job that waits for 15 minutes.
    """
    fields = ray.config_schema.config_type.fields  # type: ignore[union-attr] # a shape, so it has some
    if _LIMIT in fields:
        return ray
    limit = dg.Field(dg.Int, is_required=False, description="Most steps of a run that the cluster has at a time.")
    return dg.ExecutorDefinition(
        name=ray.name,
        config_schema={**fields, _LIMIT: limit},
        requirements=ray.get_requirements,
        executor_creation_fn=ray.executor_creation_fn,
        description=ray.description,
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found bytes that are no UTF-8 ({error.reason}); save it as UTF-8") from error
    except (YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    unknown = set(value) - {"executor", "config"} if isinstance(value, Mapping) else None
    if unknown is None or unknown:
        found = value if unknown is None else sorted(map(str, unknown))
        raise ConfigError(str(path), found=found, need="the keys executor and config, nothing else")
    return dict(value)
