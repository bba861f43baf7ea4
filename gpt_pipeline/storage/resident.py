"""The memory of this process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")  # Linux


def peak_resident_bytes() -> int | None:
    """Return the peak resident memory of this process so far; None where the system does not report it."""
    if sys.platform == "win32":
        return _peak_working_set()
    if _STATUS.is_file():
        return _peak_resident()
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS


def give_back_freed() -> None:
    """Give the system what glibc keeps of freed memory; elsewhere do nothing."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # not in musl
        libc.malloc_trim(0)


def _peak_resident() -> int | None:
    """Return Linux's figure for this program; getrusage's includes that of the process before exec."""
    with _STATUS.open(encoding="ascii", errors="replace") as status:
        line = next((line for line in status if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


if sys.platform == "win32":

    class _MemoryCounters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h."""

        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    def _peak_working_set() -> int | None:
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
        known = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
        return int(counters.peak_working_set) if known else None
