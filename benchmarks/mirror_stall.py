"""What a mirror costs a training: `python -m benchmarks.mirror_stall`.

Checkpoints of GPT-2 124M with AdamW, 1.5 GB, are sent by the agent while updates go on; between two of them, updates
go on alone. Printed: how much slower updates are meanwhile, in clock and in CPU seconds, and what a checkpoint every
1,000 updates costs. The mirror is a folder on the same disk, unless `--mirror` names another: a bucket needs its
credentials in the environment. Training hands the agent nothing, so all it can cost are the machine's processors and
disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoint_stall import EVERY, training_job
from benchmarks.contest import describe_machine
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress
from gpt_pipeline.hardware import devices
from gpt_pipeline.mirror.order import Order, read_state_of, start_agent, write_order
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.state import take_snapshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cost:
    """Of some updates."""

    seconds: list[float]
    cpu_seconds: list[float]

    def more_than(self, other: _Cost) -> tuple[float, float]:
        """Return how many times as long these took, by the clock and in CPU seconds of the training."""
        pairs = ((self.seconds, other.seconds), (self.cpu_seconds, other.cpu_seconds))
        clock, cpu = (statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs)
        return clock, cpu


class _Measurement:
    def __init__(self, settings: StepSettings, folder: Path, mirror: str) -> None:
        self._updater = make_updater(settings)
        self._device = self._updater.model.head_weight.device
        self._settings = settings
        self._job = training_job(settings, folder / "experiment")
        self._order = Order(mirror=mirror, keep_last=1, fingerprint=self._job.fingerprint)
        self._step = 0
        self._alone = _Cost(seconds=[], cpu_seconds=[])
        self._during = _Cost(seconds=[], cpu_seconds=[])

    def run(self, *, sends: int, steps: int) -> None:
        self._update(_Cost(seconds=[], cpu_seconds=[]))
        took, cpu, size = [], [], 0
        for _ in range(sends):
            for _ in range(steps):
                self._update(self._alone)
            info = save_checkpoint(
                self._job.folder.checkpoints, take_snapshot(self._job, Progress(step=self._step), self._updater)
            )
            size = info.size
            seconds, agent_cpu = self._send()
            took.append(seconds)
            cpu.append(agent_cpu)
        self._tell(size, statistics.median(took), statistics.median(cpu))

    def _tell(self, size: int, took: float, agent_cpu: float) -> None:
        step = statistics.median(self._alone.seconds)
        step_cpu = statistics.median(self._alone.cpu_seconds)
        clock, cpu = self._during.more_than(self._alone)
        print(f"a checkpoint: {size / 1e9:.2f} GB; an update: {step:.3f} s, {step_cpu:.3f} CPU seconds")
        print(f"sent in {took:.1f} s by an agent that used {agent_cpu:.2f} CPU seconds")
        print(f"meanwhile updates take {clock:.2f} times their time, {cpu:.2f} times their CPU seconds")
        extra = max(0.0, clock - 1) * took
        print(f"RATIO at one in {EVERY} updates: {extra / (EVERY * step):.3%} of the time of training")
        print(f"RATIO of CPU seconds: {agent_cpu / (EVERY * step_cpu):.3%} of those of the training")

    def _send(self) -> tuple[float, float]:
        """Have the newest checkpoint sent while updates go on; return how long that took, and the agent's CPU time."""
        write_order(self._job.folder, self._order)
        began, agent = time.perf_counter(), start_agent(self._job.folder)
        while True:
            pid, _, usage = os.wait4(agent.pid, os.WNOHANG)
            if pid:
                break
            self._update(self._during)
        agent.returncode = 0
        state = read_state_of(self._job.folder)
        if state is None or not state.complete_at:
            raise SystemExit(f"not sent: {'the agent said nothing' if state is None else state.in_words}")
        return time.perf_counter() - began, usage.ru_utime + usage.ru_stime

    def _update(self, cost: _Cost) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        self._step += 1
        inputs, targets = (part.to(self._device) for part in self._settings.batch(self._step))
        self._updater.update(self._step, Batch(inputs, targets)).result()
        cost.seconds.append(time.perf_counter() - began)
        cost.cpu_seconds.append(time.process_time() - cpu)


def main() -> None:
    options = _options()
    settings = StepSettings(
        model=ModelConfig(n_layer=options.layers),
        sequences=options.sequences,
        micro_batch_size=options.micro_batch_size,
        length=options.length,
        device=options.device,
    )
    print(f"{describe_machine()}; {settings.sequences} x {settings.length} tokens a step, {options.layers} layers")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "mirror").mkdir()
        mirror = options.mirror or (folder / "mirror").as_uri()
        _Measurement(settings, folder, mirror).run(sends=options.sends, steps=options.steps)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mirror_stall")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=8, help="in one update")
    parser.add_argument("--micro-batch-size", type=int, help="sequences in one forward pass; default: all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sends", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="updates between two checkpoints")
    parser.add_argument("--device", default=devices.find_gpu() or "cpu")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--mirror", help="its address; default: a folder beside what is written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
