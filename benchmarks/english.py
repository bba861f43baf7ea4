"""The English stage against the loop that one would write: `python -m benchmarks.english`.

Contestants, each a command of its own, in turns, on a generated set of SYNTH's shape or on `--raw`: our stage with a
worker process for each core, as Dagster's multiprocess executor runs it; the same with the check of the raw files
before it (checksum, text hashes, repeats); our stage in one process; the loop of the original script (`datasets`
streaming, a test of each row's language, an f-string, pandas to parquet); and reading and decompressing the needed
columns alone.
Rows are those read; memory is the largest process's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage, prepare_raw
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.formats.synth import SYNTH, count_english_rows
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.stage import PartedStage, prepare
from gpt_pipeline.storage.resident import peak_resident_bytes


@dataclass(frozen=True, kw_only=True)
class _Job:
    config: DataConfig
    raw: list[Path]
    work: Path
    """A folder that is empty, but for the finished check of the raw files under `data`."""

    workers: int


def in_workers(stage: PartedStage, workers: int) -> None:
    """Make a stage by `workers` processes, as Dagster's multiprocess executor does."""
    groups = stage.plan(force=False, say=silent)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_make, [stage] * len(groups), groups))
    stage.finish(say=silent)


def _make(stage: PartedStage, names: list[str]) -> None:
    stage.make(names, say=silent)


def silent(line: str) -> None:
    """Takes what is said and forgets it."""


def _ours(job: _Job) -> None:
    in_workers(DocumentsStage(config=job.config, data_folder=job.work / "data"), job.workers)


def _checked(job: _Job) -> None:
    folder = job.work / "data without anything"
    in_workers(RawStage(config=job.config, data_folder=folder), job.workers)
    in_workers(DocumentsStage(config=job.config, data_folder=folder), job.workers)


def _one_process(job: _Job) -> None:
    prepare(DocumentsStage(config=job.config, data_folder=job.work / "data"), say=silent)


def _loop(job: _Job) -> None:
    import pandas as pd
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=[str(path) for path in job.raw], split="train", streaming=True)
    texts = []
    for row in rows:
        if row["language"] == "en":
            texts.append(
                f"Q: {row['query']}\n\nReasoning:\n{row['synthetic_reasoning']}\n\nA: {row['synthetic_answer']}"
            )
            if len(texts) == job.config.num_samples:
                break
    pd.DataFrame({"text": texts}).to_parquet(job.work / "texts.parquet")


def _reading(job: _Job) -> None:
    for path in job.raw:
        for _ in read_rows(path, SYNTH.columns):
            pass


_CONTESTANTS: dict[str, Callable[[_Job], None]] = {
    "gpt_pipeline, a worker a core": _ours,
    "the same and the check of the raw files": _checked,
    "gpt_pipeline, one process": _one_process,
    "the original loop": _loop,
    "reading the columns alone": _reading,
}
_WORKERS, _ONE = "gpt_pipeline, a worker a core", "gpt_pipeline, one process"
_LOOP = "the original loop"


def main() -> None:
    from benchmarks.contest import describe_machine  # here: workers import this module, and need neither
    from benchmarks.synth_set import write_set

    options = _options()
    if options.alone is not None:
        _run_alone(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        raw = options.raw or Path(name) / "raw"
        paths = sorted(raw.glob("*.parquet")) if options.raw else write_set(raw, options.rows)
        english = sum(count_english_rows(path, path.name) for path in paths)
        config = DataConfig(num_samples=int(0.95 * english), local_dataset_path=str(raw))
        read = prepare_raw(config, Path(name) / "data", say=silent).manifest.facts["rows"]
        size = sum(path.stat().st_size for path in paths)
        print(f"{len(paths)} files, {size / 1e9:.2f} GB, {read:,} rows, {english:,} of them English")
        found = {contestant: [] for contestant in _CONTESTANTS}
        for _ in range(options.turns):
            for contestant, figures in found.items():
                figures.append(_alone(contestant, config, Path(name), options.workers))
        _print_table(found, read)
        print(describe_machine())  # at the end: its torch would count as the memory of what is started from here


def _alone(contestant: str, config: DataConfig, folder: Path, workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _copy_of_check(folder / "data", Path(work) / "data")
        command = [sys.executable, "-m", "benchmarks.english", "--alone", contestant, "--work", work]
        command += ["--raw", str(config.local_dataset_path), "--samples", str(config.num_samples)]
        done = subprocess.run([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {contestant}: {figures['seconds']:.1f} s", flush=True)
    return figures


def _copy_of_check(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def _run_alone(options: argparse.Namespace) -> None:
    config = DataConfig(num_samples=options.samples, local_dataset_path=str(options.raw))
    job = _Job(config=config, raw=sorted(options.raw.glob("*.parquet")), work=options.work, workers=options.workers)
    started = time.perf_counter()
    _CONTESTANTS[options.alone](job)
    seconds = time.perf_counter() - started
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(each.ru_utime + each.ru_stime for each in (own, workers))
    peak = max(
        peak_resident_bytes() or 0, workers.ru_maxrss * 1024
    )  # Linux's unit; own.ru_maxrss begins with our parent's
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak / 1e6}))


def _print_table(found: dict[str, list[dict[str, float]]], rows: int) -> None:
    width = max(map(len, found))
    medians = {name: statistics.median(each["seconds"] for each in figures) for name, figures in found.items()}
    print(f"\n{'':{width}}    rows/s   (least to most)   CPU s   peak MB   times the loop's speed")
    for name, figures in found.items():
        seconds = [each["seconds"] for each in figures]
        spread = f"({rows / max(seconds):,.0f} to {rows / min(seconds):,.0f})"
        cpu, peak = (statistics.median(each[key] for each in figures) for key in ("cpu", "peak_mb"))
        print(
            f"{name:{width}}  {rows / medians[name]:>8,.0f}   {spread:>18}   {cpu:>5.1f}   {peak:>7.0f}"
            f"   {medians[_LOOP] / medians[name]:.1f}"
        )
    for ours in (_WORKERS, _ONE):
        print(f"RATIO to the original loop, {ours}: {medians[_LOOP] / medians[ours]:.1f} (target: at least 7)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000, help="of the generated set, some 1.4 GB")
    parser.add_argument("--raw", type=Path, help="a folder with SYNTH's files instead")
    parser.add_argument("--folder", type=Path, help="where to write, some 4 GB; default: the system's temporary folder")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--alone", choices=_CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
