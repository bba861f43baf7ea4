"""Numbers in readable form; the template's filters."""

from __future__ import annotations

import math
from typing import Any

from gpt_pipeline import shown

NOTHING = "–"  # shown if there is no value


def number(value: Any) -> str:
    """1234567 -> `1,234,567`."""
    return NOTHING if value is None else f"{value:,.0f}"


def count(value: Any) -> str:
    """1612345678 -> `1.61 B`; below 100,000 in full."""
    if value is None:
        return NOTHING
    if not abs(value) >= 1e5:  # nan too
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    scale, unit = next(each for each in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(rounded) >= each[0])
    return f"{rounded / scale:.3g} {unit}"


def decimal(value: Any, places: int = 3) -> str:
    """3.14159 -> `3.142`; large values with fewer places."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{places}f}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: Any) -> str:
    """0.125 -> `12.5 %`; 1 -> `100 %`."""
    if value is None:
        return NOTHING
    text = f"{100 * value:.1f}"
    return f"{text.removesuffix('.0')} %"


def duration(seconds: Any) -> str:
    """5025 -> `1 h 24 min`."""
    return NOTHING if seconds is None else shown.duration(seconds)


def size(value: Any) -> str:
    """1234567 -> `1.23 MB`."""
    return NOTHING if value is None else shown.size(value)


def setting(value: Any) -> str:
    """Return a configuration's value as in an experiment file."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def words(key: str) -> str:
    """`train_tokens` -> `train tokens`, `pass_at_1` -> `pass@1`; a unit at the end is left to the value."""
    return "time" if key == "seconds" else key.removesuffix("_bytes").replace("_at_", "@").replace("_", " ")


def at_step(step: int) -> str:
    """735 -> `step 735`; 0, which only a training that starts from other weights has, is explained."""
    return f"step {step:,}" if step else "step 0, the weights it began with"


def of_metric(key: str) -> str:
    """Return what a metric of an evaluation is for a person, as in a sentence."""
    return {"val_loss": "validation loss", "correct": "share of right answers"}.get(key, words(key))


def fact(key: str, value: Any) -> str:
    """Return one fact's value in the unit that its name implies."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("bytes"):
        return size(value)
    if key.endswith("seconds"):
        return duration(value)
    return number(value) if float(value).is_integer() else f"{value:,.4g}"
