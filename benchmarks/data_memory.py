"""Peak memory of each data stage at a small and at a large number of rows: `python -m benchmarks.data_memory`.

Each part of each stage is made in this order in a process of its own, as Dagster's workers do it, and so is what comes
before and after the parts. Memory is what the system says was the most of that process.
"""

from __future__ import annotations

import argparse
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.synth_set import write_set
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.storage.resident import peak_resident_bytes

_KINDS = {"raw_synth": RawStage, "english_parquet": DocumentsStage, "token_shards": ShardsStage}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        raw = Path(name) / "raw"
        write_set(raw, options.large)
        peaks = [_peaks(raw, Path(name) / f"data_{rows}", rows) for rows in (options.small, options.large)]
    print(f"{'peak MB':>24}   {options.small:>10,} rows   {options.large:>10,} rows   ratio")
    for step in peaks[0]:
        small, large = (each[step] for each in peaks)
        print(f"{step:>24}   {small:>15.0f}   {large:>15.0f}   {large / small:.2f}")
    for kind in _KINDS:
        small, large = (max(peak for step, peak in each.items() if step.startswith(kind)) for each in peaks)
        print(f"RATIO of {kind}: {large / small:.2f} (target: at most 1.1)")


def _peaks(raw: Path, data_folder: Path, rows: int) -> dict[str, float]:
    """Return the peak of each kind of work, MB; of the parts the highest."""
    config = DataConfig(num_samples=int(rows * 0.77), local_dataset_path=str(raw))
    peaks: dict[str, float] = {}
    for kind in _KINDS:
        groups, peaks[f"{kind}: plan"] = _in_a_process(config, data_folder, kind, "plan", None)
        parts = [_in_a_process(config, data_folder, kind, "make", group)[1] for group in groups]
        peaks[f"{kind}: a part"] = max(parts)
        _, peaks[f"{kind}: finish"] = _in_a_process(config, data_folder, kind, "finish", None)
    return peaks


def _in_a_process(
    config: DataConfig, data_folder: Path, kind: str, move: str, names: list[str] | None
) -> tuple[list[list[str]], float]:
    here, there = get_context("spawn").Pipe()
    stage = _KINDS[kind](config=config, data_folder=data_folder)
    process = get_context("spawn").Process(target=_serve, args=(there, stage, move, names))
    process.start()
    there.close()
    found: tuple[list[list[str]], float] = here.recv()
    process.join()
    return found


def _serve(connection: Connection, stage: PartedStage, move: str, names: list[str] | None) -> None:
    result: list[list[str]] = []
    if move == "plan":
        result = [list(group) for group in stage.plan(force=False, say=_silent)]
    elif move == "make":
        stage.make(names or [], say=_silent)
    else:
        stage.finish(say=_silent)
    connection.send((result, (peak_resident_bytes() or 0) / 1e6))


def _silent(line: str) -> None:
    """Takes what is said and forgets it."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="some 3.4 GB of raw files and as much of results")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
