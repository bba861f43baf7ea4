"""How much later a training's first step is done as a job of Slurm or Ray than as a child process.

    python -m benchmarks.launch_overhead [--engine ray] [--turns 5]

Both train two processes on the CPU, in turn: `torchrun` here, and a job of two nodes, on a cluster that is started for
it on this machine: Slurm (it needs slurm-wlm, munge and root), or Ray (it needs the extra `ray`). Measured from the
start, or the submission, to the first line of training in `metrics.jsonl`. Prints the medians, and the median
difference and ratio of the pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from gpt_pipeline.experiment.launching import launcher_of, training_command
from gpt_pipeline.launchers.config import RayConfig, SlurmConfig
from gpt_pipeline.launchers.protocol import ALIVE
from gpt_pipeline.launchers.submission import ensure_submitted, only_follower
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.ray_cluster import ray_cluster
from gpt_pipeline_tests.slurm_cluster import slurm_cluster, why_not
from gpt_pipeline_tests.training_jobs import make_job, trainer_command

_SECONDS = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["slurm", "ray"], default="slurm")
    parser.add_argument("--turns", type=int, default=5, help="times that each is measured")
    options = parser.parse_args()
    engine, turns = options.engine, options.turns
    if problem := _missing(engine):
        print(f"not measured: {problem}")
        return 0
    seconds: dict[str, list[float]] = {"child process": [], f"{engine} job": []}
    with tempfile.TemporaryDirectory(prefix="launch-") as name, _cluster(engine, Path(name)) as hardware:
        for turn in range(turns):
            seconds["child process"].append(_locally(_job(Path(name) / f"local{turn}", hardware)))
            seconds[f"{engine} job"].append(_as_a_job(_job(Path(name) / f"job{turn}", hardware)))
    for name, measured in seconds.items():
        print(f"{name:13}  {statistics.median(measured):5.2f} s to the first step  (best {min(measured):.2f})")
    later = [there - here for here, there in zip(*seconds.values(), strict=True)]
    ratio = statistics.median(there / here for here, there in zip(*seconds.values(), strict=True))
    print(f"later          {statistics.median(later):5.2f} s, ratio {ratio:.2f}: medians of {turns} pairs")
    return 0


def _missing(engine: str) -> str:
    """Return why there can be no such cluster here; empty if there can be one."""
    if engine == "ray":
        return "" if importlib.util.find_spec("ray") else "Ray is not installed"
    return f"Slurm {problem}" if (problem := why_not()) else ""


@contextmanager
def _cluster(engine: str, folder: Path) -> Iterator[HardwareConfig]:
    """Yield what an experiment file says to train on both nodes of a new cluster."""
    if engine == "ray":
        with ray_cluster(nodes=2) as cluster:
            yield HardwareConfig(device="cpu", launcher="ray", ray=RayConfig(address=cluster.address, nodes=2))
    else:
        with slurm_cluster(folder / "cluster") as slurm:
            os.environ.update(slurm.environment)
            yield HardwareConfig(device="cpu", launcher="slurm", slurm=SlurmConfig(nodes=2))


def _job(folder: Path, hardware: HardwareConfig) -> TrainingJob:
    folder.mkdir()
    return dataclasses.replace(make_job(folder, training={"max_steps": 12}), hardware=hardware)


def _locally(job: TrainingJob) -> float:
    interpreter, *trainer = trainer_command(job)
    torchrun = [interpreter, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *trainer]
    begun = time.monotonic()
    child = subprocess.Popen(torchrun, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = _until_first_step(job) - begun
    child.wait()
    return seconds


def _as_a_job(job: TrainingJob) -> float:
    job.write(job.folder.job)
    engine = launcher_of(job.hardware)
    assert engine is not None
    begun = time.monotonic()
    with only_follower(job.folder):
        note = ensure_submitted(
            job.folder,
            engine,
            fingerprint=job.fingerprint,
            request="",
            saved=lambda: -1,
            command=lambda note: training_command(job, note, {}),
            say=lambda _: None,
        )
        seconds = _until_first_step(job) - begun
        _wait(lambda: engine.state(note.id or "").state not in ALIVE)
    return seconds


def _until_first_step(job: TrainingJob) -> float:
    metrics = job.folder.metrics
    _wait(lambda: metrics.exists() and '"kind": "train"' in metrics.read_text())
    return time.monotonic()


def _wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _SECONDS
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError("the training does not go on")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
