"""Files of one's own against those of SYNTH, and against `datasets`: `python -m benchmarks.own_data`.

One set of generated texts is written as parquet of SYNTH's shape, as parquet with a column of text, and as JSON lines.
Contestants, each in a process of its own, in turns, from the raw files to verified shards: the three kinds by our
stages, with a worker process for each core; and the JSON lines by what one would write with `datasets`: `map` with
tiktoken's `encode_ordinary_batch`, as many processes as cores, and the tokens behind one another in a file.
Then the peak memory of each of our stages, in a process of its own, for a file of a tenth of the texts and for a file
of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.english import in_workers, silent
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.formats.synth import SYNTH, documents_of, select
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.storage.resident import peak_resident_bytes

_FILES = 10
_TYPOS = 600  # bytes in which a letter is exchanged: words that occur once, as real text has them
_TEXTS = ("query", "synthetic_reasoning", "synthetic_answer")
_STAGES = (RawStage, DocumentsStage, ShardsStage)


@dataclass(frozen=True, kw_only=True)
class _Job:
    source: Path
    """A folder of files of one kind, or one file."""

    work: Path
    """An empty folder."""

    workers: int

    @property
    def config(self) -> DataConfig:
        if self.source.name == "synth":
            return DataConfig(num_samples="all", local_dataset_path=str(self.source))
        return DataConfig(num_samples="all", source=str(self.source), format="text")


@dataclass(frozen=True, kw_only=True)
class _Figures:
    seconds: float
    cpu_seconds: float
    """Of the process and those that it started."""

    peak_mb: float
    """Of the process alone."""


def _ours(job: _Job) -> None:
    for stage in _STAGES:
        in_workers(stage(config=job.config, data_folder=job.work), job.workers)


def _mapped(job: _Job) -> None:
    """Tokenize as nanoGPT's preparation of a dataset does, with lists of texts rather than one at a time."""
    import datasets

    datasets.disable_progress_bars()
    files = [str(path) for path in sorted(job.source.iterdir())]
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(job.work))
    rows = rows.map(_encoded, batched=True, num_proc=job.workers, remove_columns=["text"])
    with (job.work / "train.bin").open("wb") as file:
        for batch in rows.with_format("arrow").iter(1_000):
            file.write(batch["tokens"].combine_chunks().flatten().to_numpy().tobytes())


def _encoded(rows: dict[str, list[str]]) -> dict[str, list[NDArray[np.uint16]]]:
    from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2

    ids = gpt2().encode_batch(rows["text"])
    return {"tokens": [np.array([*own, EOT_TOKEN], np.uint16) for own in ids]}


_SYNTH, _PARQUET, _LINES, _MAPPED = "SYNTH's parquet", "text parquet", "JSON lines", "datasets.map + tiktoken"
_CONTESTANTS: dict[str, tuple[Callable[[_Job], None], str]] = {
    _SYNTH: (_ours, "synth"),
    _PARQUET: (_ours, "parquet"),
    _LINES: (_ours, "jsonl"),
    _MAPPED: (_mapped, "jsonl"),
}


def _whole_stage(job: _Job, number: int) -> None:
    prepare(_STAGES[number](config=job.config, data_folder=job.work), say=silent)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        documents, text_bytes = _in_a_process(_write_files, folder, options.rows)[0]
        print(f"{documents:,} documents, {text_bytes / 1e6:.0f} MB of text, {options.workers} workers")
        figures: dict[str, list[_Figures]] = {contestant: [] for contestant in _CONTESTANTS}
        for _ in range(options.turns):
            for contestant, (run, kind) in _CONTESTANTS.items():
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    job = _Job(source=folder / kind, work=Path(work), workers=options.workers)
                    figures[contestant].append(_in_a_process(run, job)[1])
                print(f"  {contestant}: {figures[contestant][-1].seconds:.1f} s", flush=True)
        _print_speeds(figures, text_bytes)
        for kind in ("parquet", "jsonl"):
            _print_memory(kind, folder)


def _print_speeds(figures: dict[str, list[_Figures]], text_bytes: int) -> None:
    print(f"\n{'':>24}   MB/s of text   (least to most)   CPU s")
    for name, own in figures.items():
        seconds = [each.seconds for each in own]
        low, middle, high = (
            text_bytes / 1e6 / each for each in (max(seconds), statistics.median(seconds), min(seconds))
        )
        cpu = statistics.median(each.cpu_seconds for each in own)
        print(f"{name:>24}   {middle:>12.1f}   {f'({low:.1f} to {high:.1f})':>16}   {cpu:>5.1f}")
    for name, other, target in ((_PARQUET, _SYNTH, 0.9), (_LINES, _MAPPED, 3)):
        pairs = list(zip(figures[name], figures[other], strict=True))
        ratio, cpu = (
            statistics.median(getattr(b, what) / getattr(a, what) for a, b in pairs)
            for what in ("seconds", "cpu_seconds")
        )
        print(f"RATIO of {name} to {other}: {ratio:.2f} (target: at least {target}); by CPU seconds {cpu:.2f}")


def _print_memory(kind: str, folder: Path) -> None:
    names = (f"one.{kind}", f"all.{kind}")
    peaks = []
    for name in names:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            job = _Job(source=folder / "single" / name, work=Path(work), workers=1)
            peaks.append([_in_a_process(_whole_stage, job, number)[1].peak_mb for number in range(len(_STAGES))])
    print(f"\n{'peak MB, ' + kind:>24}   a tenth    all   ratio")
    for stage, small, large in zip(_STAGES, *peaks, strict=True):
        print(f"{stage.__name__:>24}   {small:>7.0f}   {large:>4.0f}    {large / small:.2f}")
    ratio = max(peaks[1]) / max(peaks[0])
    print(f"RATIO of peak memory, {kind}: {ratio:.2f} (target, from 1 GB to 10: at most 1.1)")


def _in_a_process(work: Callable[..., Any], *arguments: object) -> tuple[Any, _Figures]:
    """Return the result of `work`, and what it took."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(there, work, arguments))
    process.start()
    there.close()
    found: tuple[Any, _Figures] = here.recv()
    process.join()
    return found


def _serve(connection: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    started = time.perf_counter()
    result = work(*arguments)
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(each.ru_utime + each.ru_stime for each in used)
    peak_mb = (peak_resident_bytes() or 0) / 1e6
    connection.send((result, _Figures(seconds=seconds, cpu_seconds=cpu_seconds, peak_mb=peak_mb)))


def _write_files(folder: Path, rows: int) -> tuple[int, int]:
    """Write the same texts as each kind of file; returns how many there are, and their bytes."""
    for kind in ("synth", "parquet", "jsonl", "single"):
        (folder / kind).mkdir()
    documents = text_bytes = 0
    with ExitStack() as stack:
        lines = stack.enter_context((folder / "single/all.jsonl").open("wb"))
        schema = pa.schema([("text", pa.string())])
        table = stack.enter_context(pq.ParquetWriter(folder / "single/all.parquet", schema))
        for number, (texts, as_lines) in enumerate(_tables(folder, rows)):
            documents += texts.num_rows
            text_bytes += texts["text"].combine_chunks().buffers()[2].size
            pq.write_table(texts, folder / f"parquet/{number:03}.parquet")
            (folder / f"jsonl/{number:03}.jsonl").write_bytes(as_lines)
            table.write_table(texts)
            lines.write(as_lines)
    for kind in ("parquet", "jsonl"):
        (folder / f"single/one.{kind}").hardlink_to(folder / f"{kind}/000.{kind}")
    return documents, text_bytes


def _tables(folder: Path, rows: int) -> Iterator[tuple[pa.Table, bytes]]:
    """Write SYNTH's files, and yield the texts of each as a table and as JSON lines."""
    from benchmarks.synth_set import with_typos, write_set

    rng = np.random.default_rng(0)
    for path in write_set(folder / "synth", rows, rows_per_file=-(-rows // _FILES)):
        table = pq.read_table(path)
        for column in _TEXTS:
            typed = with_typos(rng, table[column].combine_chunks(), _TYPOS)
            table = table.set_column(table.schema.get_field_index(column), column, typed)
        pq.write_table(table, path, row_group_size=table.num_rows)
        batches = [documents_of(select(batch)).select(["text"]) for batch in read_rows(path, SYNTH.columns)]
        texts = pa.table({"text": pa.chunked_array([batch["text"] for batch in batches]).combine_chunks()})
        yield texts, "".join(json.dumps({"text": text}) + "\n" for text in texts["text"].to_pylist()).encode()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="of SYNTH's shape; 420,000 are some 1 GB of text")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to write, ten times the text; default: the temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
