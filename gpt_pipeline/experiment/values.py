"""Written values as Python values of the type that a key takes: YAML 1.2, without its traps.

A whole-number key takes `1000`, `1_000`, `1e3` and `1000.0` alike; a number key takes whole numbers too. A text key
takes exactly what is written, so a commit of digits only or a name such as `2024` stays as it is. Leading zeros,
infinities and `yes`/`no`/`on`/`off` are refused with an explanation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from gpt_pipeline.data.config import Exact
from gpt_pipeline.experiment.document import Kind, Written
from gpt_pipeline.experiment.problems import listed, nearest, quoted
from gpt_pipeline.storage.atomic import MOST


class _Unfit:
    """The type of `UNFIT`."""


UNFIT = _Unfit()
"""What `read_value` returns for a value that the key cannot take."""

_DIGITS = r"(?:0|[1-9][0-9]*(?:_[0-9]+)*)"
_WHOLE = re.compile(rf"[-+]?{_DIGITS}")
_NUMBER = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ODD_NUMBER = re.compile(r"[-+]?0[0-9xXoObB_]+[0-9a-fA-F_]*")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_INFINITE = re.compile(r"[-+]?\.?(?:inf|nan|infinity)", re.IGNORECASE)
_MAX_WHOLE = 2**63 - 1
_EXACT_FLOAT = 2**53  # whole numbers below this are exact as floats
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OTHER_BOOLS = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}


def read_value(written: Written, hint: Any) -> Any:
    """Return the value as the type that `hint` names, or `UNFIT`."""
    for choice in choices(hint):
        reader = _READERS.get(choice)
        value = _word(written, choice) if reader is None else reader(written)
        if value is not UNFIT:
            return value
    return UNFIT


def need_of(hint: Any) -> str:
    """Return in words what a key of this type takes."""
    return listed([_name_of(choice) for choice in choices(hint)])


def _name_of(choice: Any) -> str:
    if get_origin(choice) is Mapping:
        return "blocks of keys, each under a name"
    return _NAMES.get(choice) or f"`{choice}`"


def remedy_for(written: Written, hint: Any) -> str:
    """Return the remedy for the usual mistakes in a value that does not fit; else an empty text."""
    for remedy in (_bracket, _unquote, _single_quote, _decimal, _finite, _boolean, _similar_word):
        text = remedy(written, hint)
        if text:
            return text
    return ""


def choices(hint: Any) -> list[Any]:
    """Return the types and words that a type hint allows, plain types first."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is Mapping:
        return [hint if dataclasses.is_dataclass(get_args(hint)[1]) else Mapping]
    if get_origin(hint) is tuple:
        return [tuple]
    if not get_args(hint) or get_origin(hint) is Annotated:
        return [hint]
    return [choice for part in get_args(hint) for choice in choices(part)]


def block_of(hint: Any) -> Any:
    """Return the config class of a block, also of one that may be null; None for the hint of a single value."""
    return next((choice for choice in choices(hint) if dataclasses.is_dataclass(choice)), None)


def named_block_of(hint: Any) -> Any:
    """Return the config class of the blocks of a key that holds several, each under a name; None for other keys."""
    return next((get_args(choice)[1] for choice in choices(hint) if get_origin(choice) is Mapping), None)


def _null(written: Written) -> Any:
    return None if written.kind is Kind.PLAIN and written.text in _NULLS else UNFIT


def _bool(written: Written) -> Any:
    return _BOOLS.get(written.text, UNFIT) if written.kind is Kind.PLAIN else UNFIT


def _whole(written: Written) -> Any:
    if written.kind is Kind.PLAIN and _WHOLE.fullmatch(written.text) and len(written.text) < 30:
        value = int(written.text)
        return value if abs(value) <= _MAX_WHOLE else UNFIT
    number = _number(written)
    integral = number is not UNFIT and number.is_integer() and abs(number) < _EXACT_FLOAT
    return int(number) if integral else UNFIT


def _number(written: Written) -> Any:
    if written.kind is not Kind.PLAIN or not _NUMBER.fullmatch(written.text):
        return UNFIT
    number = float(written.text) + 0.0  # -0.0 becomes 0.0: one value, one fingerprint
    return number if abs(number) < MOST else UNFIT


def _text(written: Written) -> Any:
    return UNFIT if _has_control_characters(written.text) else _exact_text(written)


def _exact_text(written: Written) -> Any:
    scalar = written.kind in (Kind.PLAIN, Kind.QUOTED)
    empty = written.kind is Kind.PLAIN and written.text in _NULLS
    return written.text if scalar and not empty else UNFIT


def _texts(written: Written) -> Any:
    texts = tuple(_text(item) for item in written.items)
    return texts if written.kind is Kind.LIST and texts and UNFIT not in texts else UNFIT


def _word(written: Written, word: str) -> Any:
    return word if written.kind in (Kind.PLAIN, Kind.QUOTED) and written.text == word else UNFIT


_READERS: dict[Any, Callable[[Written], Any]] = {
    NoneType: _null,
    bool: _bool,
    int: _whole,
    float: _number,
    str: _text,
    Exact: _exact_text,
    tuple: _texts,
}
_NAMES: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Exact: "text",
    tuple: "a list of texts in brackets",
    Mapping: "`name: text` lines",
}


def _bracket(written: Written, hint: Any) -> str:
    single = tuple in choices(hint) and _text(written) is not UNFIT
    return f"write [{written.text}]" if single else ""


def _unquote(written: Written, hint: Any) -> str:
    plain = Written(kind=Kind.PLAIN, text=written.text.strip())
    fits = written.kind is Kind.QUOTED and read_value(plain, hint) is not UNFIT
    return "remove the quotes" if fits and not _has_control_characters(written.text) and plain.text else ""


def _single_quote(written: Written, hint: Any) -> str:
    if str in choices(hint) and _has_control_characters(written.text):
        return "a backslash in double quotes starts an escape: use single quotes, on one line"
    return ""


def _decimal(written: Written, hint: Any) -> str:
    if not {int, float} & set(choices(hint)):
        return ""
    if _DECIMAL_COMMA.fullmatch(written.text):
        return f"write {written.text.replace(',', '.')}"
    if _ODD_NUMBER.fullmatch(written.text):
        return (
            "write it with decimal digits and without leading zeros (017 is 15 to some readers of YAML, 17 to others)"
        )
    return ""


def _finite(written: Written, hint: Any) -> str:
    numeric = {int, float} & set(choices(hint))
    if numeric and _INFINITE.fullmatch(written.text):
        return "infinity and NaN are not allowed here"
    if float in numeric and _NUMBER.fullmatch(written.text) and abs(float(written.text)) >= MOST:
        return f"numbers end at {MOST:.1e}"
    too_large = int in numeric and written.kind is Kind.PLAIN and _WHOLE.fullmatch(written.text)
    return "it does not fit into 64 bits" if too_large else ""


def _boolean(written: Written, hint: Any) -> str:
    meant = _OTHER_BOOLS.get(written.text.lower()) if bool in choices(hint) else None
    return f"write {meant} (YAML 1.2 knows only true and false)" if meant else ""


def _similar_word(written: Written, hint: Any) -> str:
    word = nearest(written.text, [choice for choice in choices(hint) if isinstance(choice, str)], alike=0.75)
    return f"did you mean {quoted(word)}?" if word else ""


def _has_control_characters(text: str) -> bool:
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)
