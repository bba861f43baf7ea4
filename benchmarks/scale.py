"""What grows with experiments, checkpoints and source files, and whether it grows in proportion.

    python -m benchmarks.scale [--experiments 100] [--checkpoints 400] [--files 100] [--runs 1000] [--partitions 1000]
                               [--listed 10000] [--recorded 1000] [--times 10]

Measures at a size and at `--times` that size, in CPU seconds of one process: loading the definitions and `status` with
many experiments on the same data; what a sensor asks and `status` with many evaluated checkpoints, copies of one; a
plain data block's three stages over many small files; what an evaluation's step does with MLflow beside many others;
what Dagster is asked of many partitions; a step that looks up ten files of many; and finding all files of a finished
stage. The ratio is that of the seconds
for each: 1 is in proportion, 1 / `--times` is the same time whatever the size.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.checkpoints.manifest import best_checkpoint, checkpoint_key
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.check import FileCheck
from gpt_pipeline.data.documents.choice import FileChoice, code_version
from gpt_pipeline.data.documents.raw import RawStage, files_of, prepare_raw, raw_places
from gpt_pipeline.data.documents.stage import DocumentsStage, prepare_documents
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.sources.folder import LocalFolder
from gpt_pipeline.data.sources.record import FileFacts, SourceRecord
from gpt_pipeline.data.tokens.shards import ShardsStage, prepare_shards
from gpt_pipeline.evaluation.result import evaluation_path, read_evaluations, write_evaluation
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.orchestration.evaluation_step import log_result
from gpt_pipeline.progress.evaluations import pending_evaluations, wanted_evaluations
from gpt_pipeline.progress.status import experiment_status, statuses

_REPOSITORY = Path(__file__).parents[1]
_TINY = """\
experiment_name: tiny
data: {source: sample, num_samples: 300, max_length: 32, validation_fraction: 0.1}
model: {n_layer: 1, n_head: 2, n_embd: 16, context_length: 64}
training: {batch_size: 4, max_steps: 4, warmup_steps: 2}
evaluation: {eval_freq: 4, eval_iters: 1, save_every_n_iterations: 4, num_questions: 2, max_new_tokens: 4}
storage: {base_folder: ../storage}
hardware: {device: cpu}
"""
_LOAD = """
import time, dagster, gpt_pipeline.orchestration.build
began = time.process_time()
import gpt_pipeline.definitions
print(time.process_time() - began)
"""

Measured = dict[str, float]
"""CPU seconds by what took them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=100, help="the smaller number of each; 0: leave it out")
    parser.add_argument("--checkpoints", type=int, default=400)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--recorded", type=int, default=1000)
    parser.add_argument("--times", type=int, default=10, help="how many times the smaller size the larger is")
    arguments = parser.parse_args()
    subjects: dict[str, Callable[[Path, int], Measured]] = {
        "experiments": _with_experiments,
        "checkpoints": _with_checkpoints,
        "files": _with_files,
        "runs": _with_runs,
        "partitions": _with_partitions,
        "listed": _with_listed_files,
        "recorded": _with_recorded_files,
    }
    for name, measure in subjects.items():
        size = getattr(arguments, name)
        if size == 0:
            continue
        with tempfile.TemporaryDirectory() as folder:
            small = measure(Path(folder) / "small", size)
            large = measure(Path(folder) / "large", size * arguments.times)
        print(f"{name:30} {size:>10,} {size * arguments.times:>10,}  ratio for each", flush=True)
        for what, seconds in large.items():
            each = seconds / max(small[what], 1e-9) / arguments.times
            print(f"  {what:28} {small[what]:>8.2f} s {seconds:>8.2f} s  {each:.2f}", flush=True)


def _seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def _with_experiments(folder: Path, count: int) -> Measured:
    files = folder / "experiments"
    files.mkdir(parents=True)
    for number in range(count):
        text = _TINY.replace("tiny", f"tiny {number}")
        (files / f"tiny-{number}.yaml").write_text(text, encoding="utf-8")
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD], cwd=folder, capture_output=True, text=True, check=True, env=_environment()
    )
    return {
        "load the definitions": float(loaded.stdout.split()[-1]),
        "status": _seconds(lambda: statuses([], experiments=files)),
    }


def _environment() -> dict[str, str]:

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "GPT_PIPELINE_"))}
    return {**kept, "PYTHONPATH": str(_REPOSITORY)}


def _finished(folder: Path) -> Experiment:
    """Return a small experiment that was run to its end, in a project of its own."""
    file = folder / "experiments" / "tiny.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(_TINY, encoding="utf-8")
    command = [sys.executable, "-m", "gpt_pipeline", "run", str(file)]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, env=_environment())
    return load_experiment(file)


def _with_checkpoints(folder: Path, count: int) -> Measured:
    experiment = _finished(folder)
    _copy_checkpoint(experiment, count)
    return {
        "pending evaluations, first": _seconds(lambda: pending_evaluations(experiment)),
        "pending evaluations, again": _seconds(lambda: pending_evaluations(experiment)),
        "status": _seconds(lambda: experiment_status(experiment)),
    }


def _copy_checkpoint(experiment: Experiment, count: int) -> None:
    """Write `count` more manifests of checkpoints, with their evaluations as in MLflow, like the one that is there."""
    folder, evaluations = experiment.folder.checkpoints, experiment.folder.evaluations
    manifest, weights = folder / "checkpoint_step_4.json", folder / "checkpoint_step_4.pt"
    (evaluation,) = evaluations.glob("step_*.json")
    mark = json.loads((evaluations / "logged" / evaluation.name).read_text(encoding="utf-8"))
    mark["alias"] = None
    for step in range(5, 5 + count):
        name, sha256 = f"checkpoint_step_{step}", hashlib.sha256(str(step).encode()).hexdigest()
        own = {"path": f"{name}.pt", "step": step, "sha256": sha256, "weights_sha256": sha256}
        _write(folder / f"{name}.json", {**json.loads(manifest.read_text(encoding="utf-8")), **own})
        (folder / f"{name}.pt").hardlink_to(weights)
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    for wanted in wanted_evaluations(experiment):
        step, sha256 = wanted.checkpoint.step, wanted.checkpoint.weights_sha256
        name = f"step_{step:08}-{wanted.fingerprint[:12]}.json"
        checkpoint = {**result["checkpoint"], "step": step, "weights_sha256": sha256}
        _write(evaluations / name, {**result, "fingerprint": wanted.fingerprint, "checkpoint": checkpoint})
        _write(evaluations / "logged" / name, {**mark, "weights_sha256": sha256})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _with_files(folder: Path, count: int) -> Measured:
    source, data = folder / "source", folder / "data"
    source.mkdir(parents=True)
    for number in range(count):
        texts = [f"Document {number} says something in its line {line}." for line in range(3)]
        pq.write_table(pa.table({"text": texts}), source / f"{number:06}.parquet")
    config = DataConfig(source=str(source), format="text", num_samples="all", max_length=16, validation_fraction=0.1)
    began = time.process_time()
    raw = prepare_raw(config, data)
    checked = time.process_time()
    documents = prepare_documents(config, raw, data)
    written = time.process_time()
    prepare_shards(config, documents, data)
    stages = (RawStage, DocumentsStage, ShardsStage)
    return {
        "raw_files": checked - began,
        "documents": written - checked,
        "token_shards": time.process_time() - written,
        "find all three": _seconds(lambda: [each(config=config, data_folder=data).find() for each in stages]),
    }


def _with_runs(folder: Path, count: int) -> Measured:
    """Measure what an evaluation's step does once it has the result, beside `count` evaluations in MLflow."""
    import dagster as dg

    experiment = _finished(folder)
    (result,) = read_evaluations(experiment.folder.evaluations)
    database = folder / "mlflow.db"
    _copy_checkpoint(experiment, count)
    _copy_run(database, f"step_{result.step}", count)
    _copy_points(database, count)
    last, context = result.step + count, dg.build_asset_context()

    def log(step: int, *, is_best: bool = False) -> None:
        weights = _best_weights(experiment) if is_best else f"{step:064}"
        own = {**result.checkpoint, "step": step, "weights_sha256": weights}
        identity = hashlib.sha256(str(step).encode()).hexdigest()
        path = evaluation_path(result.path.parent, checkpoint_key(step), identity)
        new = dataclasses.replace(result, checkpoint=own, fingerprint=identity, path=path)
        write_evaluation(new)
        log_result(context, experiment, f"sqlite:///{database.as_posix()}", new)

    log(last + 1)  # imports MLflow
    return {
        "log one more evaluation": _seconds(lambda: log(last + 2)),
        "the next": _seconds(lambda: log(last + 3)),
        "one that is the best": _seconds(lambda: log(last + 4, is_best=True)),
    }


def _best_weights(experiment: Experiment) -> str:
    best = best_checkpoint(experiment.folder.checkpoints)
    assert best is not None
    return best.weights_sha256


def _copy_points(database: Path, count: int) -> None:
    """Write `count` more points into the series of evaluations in the training's run, at the steps that follow."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (run,) = connection.execute("select run_uuid from runs where name = 'training'").fetchone()
        for table in ("metrics", "latest_metrics"):
            chosen = f"from {table} where run_uuid = ? and key like 'eval/%'"
            columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
            rows = [dict(zip(columns, row, strict=True)) for row in connection.execute(f"select * {chosen}", [run])]
            more = range(1, count + 1) if table == "metrics" else [count]
            new = [{**row, "step": row["step"] + number} for row in rows for number in more]
            marks = ", ".join(f":{column}" for column in columns)
            connection.executemany(f"insert or replace into {table} values ({marks})", new)


def _copy_run(database: Path, name: str, count: int) -> None:
    """Write `count` more runs into MLflow's SQLite file, like the one of this name, of evaluations of their own."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (run,) = connection.execute("select run_uuid from runs where name = ?", [name]).fetchone()
        for table in ("runs", "tags", "params", "latest_metrics", "metrics"):
            columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
            for row in connection.execute(f"select * from {table} where run_uuid = ?", [run]).fetchall():
                values = dict(zip(columns, row, strict=True))
                own = [{**values, **_of_copy(values, number)} for number in range(count)]
                marks = ", ".join(f":{column}" for column in columns)
                connection.executemany(f"insert into {table} values ({marks})", own)


def _of_copy(values: Mapping[str, Any], number: int) -> dict[str, str]:
    """Return in what a copy's row differs."""
    digest = hashlib.sha256(f"copy {number}".encode()).hexdigest()
    is_own = values.get("key") in ("gpt_pipeline.evaluation", "weights_sha256")
    return {"run_uuid": digest[:32], **({"value": digest} if is_own else {})}


def _with_partitions(folder: Path, count: int) -> Measured:
    import dagster as dg

    folder.mkdir(parents=True)
    key, partitions = dg.AssetKey(["tiny", "evaluation"]), [f"step_{number:08}" for number in range(count)]
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        add = _seconds(lambda: instance.add_dynamic_partitions("tiny", partitions))
        record = _seconds(
            lambda: [
                instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=each)) for each in partitions
            ]
        )
        return {
            "add the partitions": add,
            "record each": record,
            "add one that is there": _seconds(lambda: instance.add_dynamic_partitions("tiny", partitions[:1])),
            "which are recorded": _seconds(lambda: instance.get_materialized_partitions(key)),
            "state of each, for the page": _seconds(
                lambda: instance.get_status_by_partition(key, partitions, dg.DynamicPartitionsDefinition(name="tiny"))
            ),
        }


def _with_listed_files(folder: Path, count: int) -> Measured:
    """Measure a step of the documents that looks up ten of the source's files, before and after reading each."""
    source, data = folder / "source", folder / "data"
    source.mkdir(parents=True)
    for number in range(count):
        path = source / f"{number:06}.parquet"
        if number < 10:
            pq.write_table(pa.table({"text": [f"Document {number}.", f"Another of {number}."]}), path)
        else:  # of which nothing but the name is needed
            path.touch()
    config = DataConfig(source=str(source), format="text", num_samples=20, max_length=16, validation_fraction=0.1)
    raw = prepare_raw(config, data)

    def look_up() -> None:
        places = raw_places(config, raw)
        for _ in range(2):
            for file in files_of(raw)[:10]:
                places.path(file)

    return {"look up ten files twice": _seconds(look_up)}


def _with_recorded_files(folder: Path, count: int) -> Measured:
    """Measure how the files of a finished stage are found: each as it is on record, and as it lies there."""
    source, names = folder / "source", tuple(f"{number:06}.parquet" for number in range(count))
    source.mkdir(parents=True)
    config = DataConfig(source=str(source), format="text", num_samples="all", max_length=16, validation_fraction=0.1)
    format, record = format_of(config), SourceRecord(folder=folder / "record")
    (record.folder / "files").mkdir(parents=True)
    identity = hashlib.sha256(code_version(format).encode())
    for name in names:
        (source / name).touch()
        sha256, stat = hashlib.sha256(name.encode()).hexdigest(), (source / name).stat()
        facts = FileFacts(
            key=name, size=0, mtime_ns=stat.st_mtime_ns, sha256=sha256, rows=3, documents=3, rule=format.version
        )
        _write(record._facts_path(name), dataclasses.asdict(facts))  # not durably, which takes minutes
        identity.update(f"\n{sha256}".encode())
        record.new_documents[identity.hexdigest()] = 3
    check = FileCheck(source=LocalFolder(folder=source, names=names), record=record, data_folder=folder, format=format)
    choice = FileChoice(check=check, limit=None)
    assert len(choice.recorded() or ()) == count
    return {"find the files on record": _seconds(choice.recorded)}


if __name__ == "__main__":
    main()
