"""How busy the trainer's machine is: processors, memory, GPUs. Needs psutil, and pynvml for GPUs; goes without either.

The names are MLflow's, so that its pages show them as system metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_logger = logging.getLogger(__name__)
_EVERY_SECONDS = 10.0  # as MLflow's own sampler
_PREFIX = "system/"


class MachineLoad:
    """Measures the machine that it runs on, now and then; what cannot be measured is left out."""

    def __init__(
        self, *, gpus: bool, every: float = _EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`gpus`: whether to measure those of the machine too; `every`: seconds between two samples, at least."""
        self._every = every
        self._clock = clock
        self._last = clock()
        self._readings = [*_readings_of_host(), *(_readings_of_gpus() if gpus else ())]

    def sample(self) -> dict[str, float]:
        """Return percentages, megabytes and watts by name; nothing if the last sample is too recent.

        The share of the processors is the mean since that sample. A reading that fails is logged and left out from then
        on, the others go on: many a GPU does not tell its power, or under MIG how busy it is.
        """
        now = self._clock()
        if now - self._last < self._every:
            return {}
        self._last = now
        found: dict[str, float] = {}
        for reading in tuple(self._readings):
            try:
                found |= reading.take()
            except Exception as error:  # of whatever the system or the driver refuses
                _logger.warning("%s cannot be measured (%s); training goes on without", reading.what, error)
                self._readings.remove(reading)
        return {f"{_PREFIX}{name}": round(value, 1) for name, value in found.items()}


class _Reading(NamedTuple):
    """Figures that are asked for together."""

    what: str
    take: Callable[[], dict[str, float]]
    """Returns them by name."""


def _readings_of_host() -> list[_Reading]:
    """Return those of the machine itself; none without psutil."""
    try:
        import psutil
    except ImportError:  # a GPU host's own Python
        return []
    psutil.cpu_percent()  # the first call has nothing to compare with

    def memory() -> dict[str, float]:
        found = psutil.virtual_memory()
        return {
            "system_memory_usage_megabytes": found.used / 1e6,
            "system_memory_usage_percentage": found.used / found.total * 100,
        }

    return [
        _Reading("the use of the processors", lambda: {"cpu_utilization_percentage": psutil.cpu_percent()}),
        _Reading("the use of the memory", memory),
    ]


def _readings_of_gpus() -> list[_Reading]:
    """Return those of the machine's GPUs; none without pynvml (`pip install nvidia-ml-py`) or NVIDIA's driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        _logger.warning("NVIDIA's driver does not tell how busy its GPUs are (%s); training goes on", error)
        return []
    return [reading for place, handle in enumerate(handles) for reading in _readings_of_gpu(pynvml, place, handle)]


def _readings_of_gpu(nvml: Any, place: int, handle: Any) -> list[_Reading]:
    def memory() -> dict[str, float]:
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            f"gpu_{place}_memory_usage_megabytes": found.used / 1e6,
            f"gpu_{place}_memory_usage_percentage": found.used / found.total * 100,
        }

    def utilization() -> dict[str, float]:
        return {f"gpu_{place}_utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def power() -> dict[str, float]:
        return {f"gpu_{place}_power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000}

    whose = f"of GPU {place}"
    return [
        _Reading(f"the utilization {whose}", utilization),
        _Reading(f"the memory {whose}", memory),
        _Reading(f"the power {whose}", power),
    ]
