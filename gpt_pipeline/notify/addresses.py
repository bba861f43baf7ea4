"""Where a project's notifications go. The addresses hold passwords and tokens: nothing but their kind is ever shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.project import NOTIFY_CONFIG, Project

VARIABLE = "GPT_PIPELINE_NOTIFY"
INSTALL = "pip install -c constraints.txt -e '.[notify]' (or: pip install apprise)"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://.)")
_FORM = "`addresses:` with a list of addresses of apprise, such as 'json://localhost:8000/runs'"


class Address:
    """One address; shows its kind alone, wherever it is printed."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def secret(self) -> str:
        """The whole address, for apprise alone."""
        return self._text

    def __repr__(self) -> str:
        found = _SCHEME.match(self._text)
        return f"{found[0]}://..." if found else "an address without a kind"


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """The addresses, and where they are written."""

    source: str
    addresses: tuple[Address, ...]

    @property
    def in_words(self) -> str:
        return f"{', '.join(map(repr, self.addresses))} ({self.source})"


def find_addresses(project: Project) -> Addresses | None:
    """Return the addresses in the environment, else those in the project's file; None where there are none.

    Raises:
        UserError: the file cannot be read or holds something else, an address has no kind, or apprise is missing. No
            message shows more of an address than its kind.
    """
    if (text := os.environ.get(VARIABLE)) is not None:
        found = _checked(VARIABLE, text.split())
    elif (file := project.root / NOTIFY_CONFIG).is_file():
        found = _checked(str(file), _in_file(file))
    else:
        return None
    if found.addresses and find_spec("apprise") is None:
        raise UserError(f"{found.source}: found addresses, need the package apprise to send to them; {INSTALL}")
    return found if found.addresses else None


def _checked(source: str, texts: Iterable[object]) -> Addresses:
    addresses = tuple(Address(str(text)) for text in texts)
    for number, address in enumerate(addresses, start=1):
        if not _SCHEME.match(address.secret):
            need = "an address of apprise, which begins with its kind, such as json://localhost:8000/runs"
            raise ConfigError(f"{source}: address {number}", found=repr(address), need=need)
    return Addresses(source=source, addresses=addresses)


def _in_file(file: Path) -> list[object]:
    try:
        value = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""  # its own text quotes the line
        raise UserError(
            f"{file}{line}: found what is no YAML, need {_FORM}; put each address in single quotes"
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}), need {_FORM}") from None
    if value is None:
        return []
    if not isinstance(value, dict) or {*value} != {"addresses"}:
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else "something else"
        keys = keys if re.fullmatch(r"[a-z_, ]{0,80}", keys) else "something else"  # a slip may make an address a key
        raise UserError(f"{file}: found {keys}, need {_FORM}")
    listed = value["addresses"]
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise UserError(f"{file}: addresses: found no list of texts, need {_FORM}")
    return listed
