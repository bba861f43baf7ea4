"""File and key names made from a user's text, safe on Windows and POSIX alike."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from gpt_pipeline.errors import ConfigError

# Reserved on Windows whatever the extension (Microsoft, "Naming Files, Paths, and Namespaces").
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a drive has one letter
_MAX_NAME_BYTES = 255  # in UTF-8, of Linux's file systems
_MAX_NAME_LENGTH = 120  # characters; leaves room for the rest of a path under Windows' 260


def folder_name(text: str, *, key: str) -> str:
    """Return `text` as the name of one folder, unsafe characters replaced by `_`.

    Raises:
        ConfigError: the text would escape its parent folder or names nothing.
    """
    parts = re.split(r"[/\\]", text)
    name = _UNSAFE.sub("_", text).strip().rstrip(". ")
    if ".." in parts or not name.strip("_. "):
        raise ConfigError(key, found=text, need="a name that stays inside the base folder, with letters or digits")
    if name.split(".")[0].lower() in _RESERVED:
        name = f"_{name}"
    short = name[:_MAX_NAME_LENGTH].encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return short.rstrip(". ")


def is_name(text: str) -> bool:
    """Whether `text` names one file, on every system alike."""
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in text)  # bytes that are not UTF-8
    return is_text and not _UNSAFE.search(text) and text == text.strip() and not text.endswith(".")


def slug(text: str) -> str:
    """Return `text` as lower-case letters, digits and `_`: what Dagster accepts in keys and job names."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "experiment"


def is_windows_path(text: str) -> bool:
    """Whether `text` is a path with a drive or a UNC host, which POSIX does not have."""
    return bool(re.match(r"^[A-Za-z]:([\\/]|$)", text)) or text.startswith("\\\\")


def resolve_folder(text: str, *, relative_to: Path, key: str) -> Path:
    """Return the absolute folder that `text` names; `~` is the home, a relative path starts at `relative_to`.

    Raises:
        ConfigError: a Windows path on a machine that is not Windows, an address such as `s3://bucket/folder`, or the
            home of nobody.
    """
    if _ADDRESS.match(text):
        raise ConfigError(
            key,
            found=text,
            need="a folder on this machine; object storage holds copies of it (storage.mirror)",
            remedy=f"set {key} to a folder, such as /data/gpt",
        )
    if os.name != "nt" and is_windows_path(text):
        raise ConfigError(
            key,
            found=text,
            need="a path on this machine (this is a Windows path, and the machine does not run Windows)",
            remedy=f"set {key} to one here, such as /data/gpt",
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        need, remedy = "a folder of a user whom this machine knows", f"set {key} to the whole path"
        raise ConfigError(key, found=text, need=need, remedy=remedy) from error
    return Path(os.path.abspath(relative_to / path))


def as_typed(path: Path, here: Path) -> str:
    """Return `path` as a user in the folder `here` types it: relative if it is inside, quoted if the shell needs it."""
    shown = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return subprocess.list2cmdline([shown]) if os.name == "nt" else shlex.quote(shown)
