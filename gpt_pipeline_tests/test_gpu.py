"""The checks of `gpu_checks.py`: on the GPU of this machine, where it has one, and on the CPU, to see that they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_pipeline.hardware import devices
from gpt_pipeline_tests.gpu_checks import CHECKS, NotHereError

GPU = devices.find_gpu()
_LONG = ("resumed", "deterministic", "compiled")  # begin the names of what takes a CPU seconds
_TOO_LONG = ("compiled step is the eager one: llama", "compiled step is the eager one: nanochat")


def _passes(name: str, device: str, folder: Path) -> None:
    try:
        assert CHECKS[name](device, folder)
    except NotHereError as reason:
        pytest.skip(str(reason))


@pytest.mark.gpu
@pytest.mark.skipif(GPU is None, reason="needs a GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_check_on_the_gpu_passes(name, tmp_path):
    assert GPU is not None
    _passes(name, GPU, tmp_path)


@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith(_LONG)])
def test_check_on_the_cpu_passes(name, tmp_path):
    _passes(name, "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in CHECKS if name.startswith(_LONG) and name not in _TOO_LONG])
def test_long_check_on_the_cpu_passes(name, tmp_path):
    _passes(name, "cpu", tmp_path)


def test_check_that_does_not_hold_says_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_pipeline_tests.gpu_checks.RESUME_TOLERANCE", -1.0)
    with pytest.raises(AssertionError, match=r"losses differ by 0\.0e\+00 nats, need -1\.0"):
        CHECKS["resumed training has the losses of a whole one: adamw"]("cpu", tmp_path)
