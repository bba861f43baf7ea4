"""How busy the trainer's machine is, as its lines and MLflow have it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt_pipeline.training.machine_load import MachineLoad
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.training_jobs import Listener, make_job

OF_HOST = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
}


class DriverError(Exception):
    pass


class FakeDriver:
    """NVIDIA's, of a machine with two GPUs."""

    NVMLError = DriverError

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        if name == self.fails:
            raise DriverError("GPU is lost")
        answers = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetHandleByIndex": None,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=20_000_000_000, total=80_000_000_000),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97),
            "nvmlDeviceGetPowerUsage": 350_000,
        }
        return lambda *_: answers[name]


def test_machine_load_samples_the_host_no_more_often_than_asked() -> None:
    now = [0.0]
    load = MachineLoad(gpus=False, every=10, clock=lambda: now[0])
    assert load.sample() == {}
    now[0] = 10.0
    found = load.sample()
    assert set(found) == OF_HOST
    assert 0 < found["system/system_memory_usage_percentage"] <= 100
    now[0] = 19.0
    assert load.sample() == {}


def test_machine_load_of_gpus_has_mlflows_names_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver())
    found = MachineLoad(gpus=True, every=0).sample()
    assert set(found) > OF_HOST
    of_second = {name: value for name, value in found.items() if "gpu_1" in name}
    assert of_second == {
        "system/gpu_1_utilization_percentage": 97,
        "system/gpu_1_memory_usage_megabytes": 20_000,
        "system/gpu_1_memory_usage_percentage": 25,
        "system/gpu_1_power_usage_watts": 350,
    }


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_machine_load_of_a_driver_that_fails_is_the_hosts_alone(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(fails=fails))
    assert set(MachineLoad(gpus=True, every=0).sample()) == OF_HOST


@pytest.mark.parametrize(
    ("fails", "missing"),
    [
        ("nvmlDeviceGetPowerUsage", "power_usage_watts"),
        ("nvmlDeviceGetUtilizationRates", "utilization_percentage"),
        ("nvmlDeviceGetMemoryInfo", "memory_usage"),
    ],
)
def test_machine_load_of_a_gpu_that_lacks_a_figure_has_all_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver())
    names = set(MachineLoad(gpus=True, every=0).sample())
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(fails=fails))
    load = MachineLoad(gpus=True, every=0)
    first, second = load.sample(), load.sample()
    assert set(first) == set(second) == {name for name in names if not ("gpu_" in name and missing in name)}
    assert len(caplog.records) == 2  # once for each GPU


def test_machine_load_without_psutil_and_pynvml_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psutil", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)
    assert MachineLoad(gpus=True, every=0).sample() == {}


def test_training_writes_the_load_of_its_machine_into_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_pipeline.training.run.MachineLoad", lambda *, gpus: MachineLoad(gpus=gpus, every=0))
    job = make_job(tmp_path)
    run_job(job, Listener())
    lines = [record for record in read_metrics(job.folder.metrics) if record["kind"] == "train"]
    assert lines
    assert all(set(line) >= OF_HOST for line in lines)
