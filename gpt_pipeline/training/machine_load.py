"""How busy the trainer's machine is: processors, memory, GPUs. Needs psutil, and pynvml for GPUs; goes without either.

The names are MLflow's, so that its pages show them as system metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

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
        self._processors = _psutil()
        self._gpus = _Gpus.found() if gpus else None

    def sample(self) -> dict[str, float]:
        """Return percentages, megabytes and watts by name; nothing if the last sample is too recent.

        The share of the processors is the mean since that sample. The first failure is logged, and nothing is measured
        after it: it is no reason to lose a training.
        """
        now = self._clock()
        if now - self._last < self._every:
            return {}
        self._last = now
        try:
            found = {**self._of_host(), **({} if self._gpus is None else self._gpus.sample())}
        except Exception:  # of whatever the system or the driver refuses
            _logger.exception("the load of this machine cannot be measured any more; training goes on")
            self._processors = self._gpus = None
            return {}
        return {f"{_PREFIX}{name}": round(value, 1) for name, value in found.items()}

    def _of_host(self) -> dict[str, float]:
        if self._processors is None:
            return {}
        memory = self._processors.virtual_memory()
        return {
            "cpu_utilization_percentage": self._processors.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
        }


def _psutil() -> Any:
    """Return the library; None without it."""
    try:
        import psutil
    except ImportError:  # a GPU host's own Python
        return None
    psutil.cpu_percent()  # the first call has nothing to compare with
    return psutil


class _Gpus:
    """The machine's GPUs, as NVIDIA's driver counts them."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]

    @classmethod
    def found(cls) -> _Gpus | None:
        """Return them; None without pynvml (`pip install nvidia-ml-py`) or without NVIDIA's driver."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml)
        except pynvml.NVMLError as error:
            _logger.warning("NVIDIA's driver does not tell how busy its GPUs are (%s); training goes on", error)
            return None

    def sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for place, handle in enumerate(self._handles):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            found |= {
                f"gpu_{place}_utilization_percentage": self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                f"gpu_{place}_memory_usage_megabytes": memory.used / 1e6,
                f"gpu_{place}_memory_usage_percentage": memory.used / memory.total * 100,
                f"gpu_{place}_power_usage_watts": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            }
        return found
