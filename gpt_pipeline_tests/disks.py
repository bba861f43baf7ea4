"""Disks that lack what others have, made by system calls that fail."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, number: int, *, kind: Callable[[int], bool]) -> None:
    """Have a system call fail as on a disk that does not support it."""
    module, name = call.split(".")
    real = getattr(importlib.import_module(module), name)

    def call_that_fails(descriptor: int, *arguments: Any) -> Any:
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        return real(descriptor, *arguments)

    monkeypatch.setattr(call, call_that_fails)
