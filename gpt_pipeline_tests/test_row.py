from __future__ import annotations

import io
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.row import Row, drawn, has_terminal_alone, instead_of_row, show_each_warning_once, speak_utf8
from gpt_pipeline.training.observer import RowObserver, describe, training_row

_TRAIN = {
    "kind": "train",
    "step": 12_345,
    "max_steps": 61_000,
    "train_loss": 3.2174,
    "learning_rate": 3e-4,
    "gradient_norm": 0.81,
    "tokens_per_second": 151_234.0,
    "mfu": 0.412,
    "peak_flops": 9.89e14,
    "memory_gb": 21.4,
    "eta_seconds": 36_720.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Kept:
    """What would be drawn."""

    def __init__(self) -> None:
        self.row = Row(title="")
        self.printed: list[str] = []

    def show(self, row: Row) -> None:
        self.row = row

    def print(self, text: str) -> None:
        self.printed.append(text)


@given(
    st.text("ab ", max_size=40), st.text("1/", max_size=20), st.lists(st.text("cd", max_size=30)), st.integers(40, 200)
)
def test_row_never_exceeds_the_width_and_shows_the_amount(
    title: str, amount: str, details: list[str], width: int
) -> None:
    row = Row(title=title, done=3, total=7, amount=amount, details=tuple(details))
    assert len(row.fitted(width)) <= width
    assert amount in row.fitted(width)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "training  ━───────  12,345/61,000  10 h 12 min left"),
        (80, "training  ━━────────  12,345/61,000  10 h 12 min left  loss 3.217  val 3.301"),
        (41, "training  12,345/61,000  10 h 12 min left"),
        (30, "training  12,345/61,000"),
        (20, "tr...  12,345/61,000"),
    ],
)
def test_training_row_shows_step_and_time_left_at_every_width(width: int, shown: str) -> None:
    kept = Kept()
    observer = RowObserver(kept)  # type: ignore[arg-type]
    observer.progress({"kind": "validation", "step": 12_000, "max_steps": 61_000, "val_loss": 3.3009})
    observer.progress(_TRAIN)
    assert kept.row.fitted(width) == shown


def test_training_row_on_a_wide_terminal_shows_the_speed_too() -> None:
    kept = Kept()
    RowObserver(kept).progress(_TRAIN)  # type: ignore[arg-type]
    assert "151,234 tokens/s  mfu 41.2% of 989 TFLOP/s" in kept.row.fitted(120)


def test_training_row_while_validating_shows_the_batches_and_keeps_step_and_losses() -> None:
    kept = Kept()
    observer = RowObserver(kept)  # type: ignore[arg-type]
    observer.validating(0, 40)
    assert kept.row.fitted(80) == "validating  ──────────  0/40"
    observer.progress(_TRAIN)
    observer.validating(12, 40)
    assert kept.row.fitted(80) == "validating  ━━━───────  12/40  step 12,345/61,000  10 h 12 min left  loss 3.217"


def test_training_row_at_the_last_step_has_no_time_left() -> None:
    kept = Kept()
    RowObserver(kept).progress({**_TRAIN, "step": 61_000, "eta_seconds": 0.0})  # type: ignore[arg-type]
    assert "left" not in kept.row.fitted(120)


def test_row_on_a_terminal_without_the_bars_characters_uses_ascii() -> None:
    assert Row(title="a", done=1, total=2, amount="1/2").fitted(80, encoding="cp850") == "a  #####-----  1/2"


def test_line_above_a_row_is_printed_on_a_terminal_that_calls_itself_without_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    stream = Terminal()
    with drawn(stream, Row(title="at work")) as drawing:
        drawing.print("a line of the run")
    assert "a line of the run" in stream.getvalue()


def test_line_replaces_a_row_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert instead_of_row(Terminal(), "done") == "\r\x1b[Kdone"
    assert instead_of_row(io.StringIO(), "done") == "done"
    monkeypatch.setenv("TERM", "dumb")
    assert instead_of_row(Terminal(), "done") == "done"


def test_row_is_drawn_by_no_process_that_lacks_the_terminal() -> None:
    assert not has_terminal_alone(io.StringIO())
    assert not has_terminal_alone(Terminal())  # as another session's: it has no process group to ask for


def test_warning_that_comes_again_is_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))  # type: ignore[attr-defined]
    show_each_warning_once()
    assert logging.lastResort is not None
    for text in ("a is damaged", "a is damaged", "b is damaged\x1b[2J"):
        record = logging.LogRecord("gpt_pipeline", logging.WARNING, "", 0, text, None, None)
        logging.lastResort.handle(record)
    assert capsys.readouterr().err.splitlines() == ["a is damaged", "b is damaged\\u001b[2J"]


def test_training_on_rewards_tells_the_reward_in_place_of_its_loss_and_how_often_samples_are_right() -> None:
    rewarded = {**_TRAIN, "reward": 0.4375}
    assert describe(rewarded).startswith("reward 0.438  151,234 tokens/s")
    assert "train_loss" not in describe(rewarded)
    assert "reward 0.438" in training_row(rewarded, before=Row(title="training"), val=()).details
    validation = {"kind": "validation", "val_loss": 2.0, "pass_at_1": 0.25, "pass_at_k": 0.5}
    assert describe(validation) == "val_loss 2.0000  pass_at_1 0.2500  pass_at_k 0.5000"


@pytest.mark.parametrize(
    ("chosen", "terminal", "written"),
    [
        ({}, False, "é→".encode()),
        ({}, True, b"\xe9?"),
        ({"PYTHONIOENCODING": "cp1252"}, False, b"\xe9?"),
        ({"PYTHONUTF8": "0"}, False, b"\xe9?"),
    ],
    ids=["file or pipe", "terminal", "encoding chosen by the user", "the system's encoding chosen by the user"],
)
def test_output_that_the_systems_encoding_lacks_is_printed_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], terminal: bool, written: bytes
) -> None:
    target = io.BytesIO()
    stream = io.TextIOWrapper(target, encoding="cp1252")  # of a Windows in western Europe
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    speak_utf8()
    print("é→", end="")
    stream.flush()
    assert target.getvalue() == written
    assert os.environ["PYTHONUTF8"] == chosen.get("PYTHONUTF8", "1")  # for the processes that this one starts
