"""Run what is owed of a GPU and not done yet, as far as it fits into this call."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contest import describe_machine
from benchmarks.gpu_proof import checks, memory, processes, recipes, resume, speed, stall
from benchmarks.gpu_proof.record import TABLES_NAME, Results, Task, allowed_seconds
from benchmarks.gpu_proof.setup import Setup, full_step, tiny_step
from gpt_pipeline.hardware import devices

PARTS: Mapping[int, Callable[[Setup], Iterator[Task]]] = {
    1: checks.tasks,
    2: speed.tasks,
    3: resume.tasks,
    4: stall.tasks,
    5: memory.tasks,
    6: processes.tasks,
    7: recipes.tasks,
}
_FAILED, _LEFT = 1, 3  # exit codes
_END_SECONDS = 15  # of a call, to end processes and write the tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when all is done, 1 when something failed, 3 when something is left."""
    options = _options(arguments)
    if options.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are started: more only wait
    deadline = time.monotonic() + 60 * options.minutes - _END_SECONDS
    if devices.find_gpu() is None and not options.tiny:
        sys.exit("found no GPU that torch can use; need one, or --tiny, which goes through everything on the CPU")
    results = Results(options.out, machine=f"{describe_machine()}{', tiny' if options.tiny else ''}")
    for folder in options.results_of:
        results.take_over(folder)
    if options.results_of:
        results.take_over(options.out)  # what this folder has is newer
        results.write()
    print(results.machine, flush=True)
    left: list[Task] = []
    failed = 0
    with ExitStack() as stack:
        setup = _setup(options, deadline, stack)
        for task in in_order(setup, options.parts):
            before = results.of(task)
            if before is not None and before.is_settled and not (options.again and before.status == "failed"):
                continue
            remaining = deadline - time.monotonic()
            if remaining < task.seconds * (0.1 if options.tiny else 1):
                left.append(task)
                continue
            outcome = results.run(task, limit_seconds=allowed_seconds(task, remaining))
            print(f"{task.part} {task.name}: {outcome.status}, {outcome.seconds:g} s {outcome.reason}", flush=True)
            failed += outcome.status == "failed"
            left += [] if outcome.is_settled else [task]
    return _end(results, left, failed)


def in_order(setup: Setup, parts: Sequence[int]) -> list[Task]:
    """Return the tasks of some parts in the order in which they run: the first ones of each part, then the others."""
    tasks = [task for part in parts for task in PARTS[part](setup)]
    return sorted(tasks, key=lambda task: not task.first)


def _end(results: Results, left: Sequence[Task], failed: int) -> int:
    path = results.folder / TABLES_NAME
    print(f"\n{path.read_text(encoding='utf-8') if path.is_file() else ''}\n{failed} failed in this call; {path}")
    for task in left:
        print(f"left for another call: {task.part} {task.name}, some {task.seconds:.0f} s")
    return _FAILED if failed else _LEFT if left else 0


def _setup(options: argparse.Namespace, deadline: float, stack: ExitStack) -> Setup:
    device = devices.find_gpu() or "cpu"
    return Setup(
        step=tiny_step() if options.tiny else full_step(device, micro_batch_size=options.micro_batch_size),
        tiny=options.tiny,
        scratch=options.scratch / ("tiny" if options.tiny else "full"),
        shards=options.shards,
        recipe_seconds=3 if options.tiny else 60 * options.recipe_minutes,
        turns=1 if options.tiny else 5,
        steps=1 if options.tiny else 4,
        deadline=deadline,
        stack=stack,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_proof", description=__doc__)
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help="such as 1,3; default: all")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call; what does not fit is left (9)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_proof")), help="for the results")
    parser.add_argument(
        "--results-of",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="of earlier calls, besides those in --out",
    )
    parser.add_argument("--again", action="store_true", help="what failed")
    parser.add_argument("--micro-batch-size", type=int, default=32, help="sequences of 1,024 tokens at a time (32)")
    parser.add_argument(
        "--recipe-minutes", type=float, default=10.0, help="of training, for each recipe of part 7 (10)"
    )
    parser.add_argument("--shards", type=Path, help="a finished token_shards folder for part 7, with GPT-2's tokens")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()) / "gpu_proof",
        help="for what is large; recipes go on from there",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: shows that everything runs")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[int]:
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError:
        chosen = []
    if not chosen or not set(chosen) <= PARTS.keys():
        raise argparse.ArgumentTypeError(f"found {text!r}, need numbers from 1 to {max(PARTS)}, such as 1,3")
    return sorted(set(chosen))


if __name__ == "__main__":
    sys.exit(main())
