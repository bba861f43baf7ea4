"""The errors a person is meant to read: one clear line, with what to do about it."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpt_pipeline.shown import on_terminal, without_password


class UserError(Exception):
    """Something the user can mend. Its text is complete: the command line prints it without a traceback."""

    def __str__(self) -> str:
        return on_terminal(without_password(super().__str__()))


class ConfigError(UserError, ValueError):
    """A value in an experiment file that cannot be used: key path, value found, value needed, remedy."""

    def __init__(self, key: str, *, found: Any, need: str, remedy: str = "") -> None:
        self.key = key
        self.found = found
        self.need = need
        self.remedy = remedy
        super().__init__(key, found, need, remedy)

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return on_terminal(without_password(f"{self.key}: found {self.found!r}, need {self.need}{remedy}"))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from positional arguments; this one must survive the way back from another process.
        return partial(ConfigError, self.key, found=self.found, need=self.need, remedy=self.remedy), ()

    def within(self, section: str) -> ConfigError:
        """The same error with its key placed inside `section`."""
        return ConfigError(f"{section}.{self.key}", found=self.found, need=self.need, remedy=self.remedy)


class DataError(UserError):
    """Input data that cannot be used; names the file and what is wrong with it."""


class UnreadableFileError(DataError):
    """A file that is not what it should be, so that reading it again would not help."""


class DamagedFileError(UserError):
    """A file whose content is not what its manifest says."""


class NewerFileError(UserError):
    """A file that a newer version of gpt_pipeline wrote, which this one cannot read without losing something."""


class DiskFullError(UserError, OSError):
    """A disk, or a user's share of it, is full."""

    def __str__(self) -> str:
        return str(self.args[0])  # where an OSError has a number, its own text is made of that


class LockedError(UserError):
    """Another live process holds the folder; names it."""


class StoppedError(Exception):
    """The user asked to stop, and what was done is saved. Nothing went wrong."""


def require(condition: bool, key: str, *, found: Any, need: str, remedy: str = "") -> None:
    """Raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(key, found=found, need=need, remedy=remedy)
