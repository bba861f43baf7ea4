"""How much longer Dagster takes to check this project's definitions than those of an empty project.

    python -m benchmarks.startup [--runs 7] [--experiments 4]

Both are checked in turn by `dagster definitions validate`, each in a process of its own, after one round that is not
counted. Prints the medians and their ratio; the goal is 1.3.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 1.3
_REPOSITORY = Path(__file__).parents[1]
_EMPTY = "import dagster as dg\n\ndefs = dg.Definitions()\n"
_KEPT_OUT = ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="times that each is measured")
    parser.add_argument(
        "--experiments", type=int, default=4, help="experiment files in the project, copies of the demo"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        empty = _project(Path(folder) / "empty")
        (empty / "empty_project.py").write_text(_EMPTY)
        ours = _project(Path(folder) / "ours")
        _copy_demo(ours, count=arguments.experiments)
        seconds: dict[str, list[float]] = {"empty project": [], "this project": []}
        for _ in range(arguments.runs + 1):
            seconds["empty project"].append(_validate("empty_project", empty))
            seconds["this project"].append(_validate("gpt_pipeline.definitions", ours))
    medians = {name: statistics.median(measured[1:]) for name, measured in seconds.items()}
    for name, median in medians.items():
        print(f"{name:13}  {median:.2f} s  (of {arguments.runs}: {min(seconds[name][1:]):.2f} at best)")
    ratio = medians["this project"] / medians["empty project"]
    print(f"ratio          {ratio:.2f}  (goal {GOAL})")
    return 0 if ratio <= GOAL else 1


def _project(folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(_REPOSITORY / "dagster.yaml", folder / "dagster.yaml")
    return folder


def _copy_demo(project: Path, *, count: int) -> None:
    (project / "experiments").mkdir()
    text = (_REPOSITORY / "experiments" / "demo.yaml").read_text(encoding="utf-8")
    for number in range(1, count + 1):
        copy = text.replace("experiment_name: Demo", f"experiment_name: Demo {number}")
        (project / "experiments" / f"demo_{number}.yaml").write_text(copy, encoding="utf-8")


def _validate(module: str, folder: Path) -> float:
    """Return the seconds that the command takes for a module in a folder."""
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", module]
    environment = {name: value for name, value in os.environ.items() if name not in _KEPT_OUT}
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
