"""Whether values that were read from a state file are of the types that their dataclass declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    NoneType: (NoneType,),
}


def require_shape(value: Any) -> None:
    """Raise TypeError, naming the field, unless the fields of the dataclass `value` hold what they declare.

    A list serves for any sequence. Where a table or a sequence holds plain values, null is one too.
    """
    for name, hint in _hints(value.__class__).items():
        found = getattr(value, name)
        if not _fits(found, hint):
            raise TypeError(f"{name}: found {str(found)[:100]!r}, need {_declared(type(value), name)}")


def _fits(value: Any, hint: Any) -> bool:
    if hint in _PLAIN:
        return type(value) in _PLAIN[hint]
    if get_origin(hint) is not None:
        return _fits_composed(value, get_origin(hint), get_args(hint))
    if hint is Any or not isinstance(hint, type):
        return True
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):
        require_shape(value)
    return isinstance(value, hint)


def _fits_composed(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and (
            inner[1] is Any or all(_fits_within(each, inner[1]) for each in value.values())
        )
    if issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits_within(each, inner[0]) for each in value)
    return isinstance(value, origin)


def _fits_within(value: Any, hint: Any) -> bool:
    return value is None or _fits(value, hint)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind)}


def _declared(kind: type[Any], name: str) -> str:
    return next(str(each.type) for each in dataclasses.fields(kind) if each.name == name)
