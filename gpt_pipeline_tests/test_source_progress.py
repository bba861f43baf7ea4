from __future__ import annotations

import io
import os

import pytest

from gpt_pipeline.data.sources.hub.progress import Meter, lines, shown

_MB = 10**6


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


def test_meter_tells_bytes_rate_and_time_left() -> None:
    clock = Clock()
    meter = Meter({"synth_003.parquet": 470 * _MB}, clock=clock)
    meter.moved("synth_003.parquet", 0)
    clock.now = 3.0
    meter.moved("synth_003.parquet", 120 * _MB)
    assert meter.describe() == "120 of 470 MB, 40 MB/s, 9 s left"


def test_meter_resumed_file_counts_what_was_there_but_not_into_the_rate() -> None:
    clock = Clock()
    meter = Meter({"a": 400 * _MB}, clock=clock)
    meter.moved("a", 300 * _MB)
    assert meter.describe() == "300 of 400 MB, 0.0 MB/s"
    clock.now = 10.0
    meter.moved("a", 320 * _MB)
    assert meter.describe() == "320 of 400 MB, 2.0 MB/s, 40 s left"


def test_meter_file_that_starts_over_does_not_count_backwards() -> None:
    clock = Clock()
    meter = Meter({"a": 400 * _MB}, clock=clock)
    meter.moved("a", 0)
    meter.moved("a", 400 * _MB)
    meter.moved("a", 0)
    clock.now = 10.0
    meter.moved("a", 100 * _MB)
    assert meter.describe() == "100 of 400 MB, 50 MB/s, 6 s left"


def test_meter_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    meter = Meter({"a": 1000 * _MB}, clock=clock)
    for second in range(100):
        clock.now = second
        meter.moved("a", 10 * _MB * min(second, 50))
    assert meter.rate == 0
    assert meter.here == 500 * _MB


def test_meter_large_amounts_and_long_times_are_readable() -> None:
    clock = Clock()
    meter = Meter({f"file {number}": 472 * _MB for number in range(500)}, clock=clock)
    meter.moved("file 1", 0)
    clock.now = 10.0
    meter.moved("file 1", 100 * _MB)
    assert meter.describe() == "0.1 of 236.0 GB, 10 MB/s, 6 h 33 min left"


def test_lines_come_every_five_seconds() -> None:
    clock, said = Clock(), list[str]()
    observe = lines("a", Meter({"a": 100 * _MB}, clock=clock), say=said.append, clock=clock)
    for tenth in range(121):
        clock.now = tenth / 10
        observe("a", tenth * _MB // 2)
    assert said == ["a: 25 of 100 MB, 5.0 MB/s, 15 s left", "a: 50 of 100 MB, 5.0 MB/s, 10 s left"]


@pytest.mark.parametrize(("sizes", "title"), [({"a.parquet": 100}, "a.parquet"), ({"a": 60, "b": 40}, "2 files")])
def test_shown_on_a_terminal_is_a_row(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], title: str) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp(), raising=False)  # in its foreground
    said, terminal = list[str](), Terminal()
    with shown(sizes, say=said.append, stream=terminal) as observe:
        for name, size in sizes.items():
            observe(name, size)
    assert title in terminal.getvalue()
    assert "100 of 100 bytes" in terminal.getvalue()
    assert said == []


def test_shown_elsewhere_writes_nothing_on_the_stream() -> None:
    stream = io.StringIO()
    with shown({"a": 100}, say=lambda line: None, stream=stream) as observe:
        observe("a", 100)
    assert stream.getvalue() == ""
