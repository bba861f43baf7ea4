"""Where things lie in a mirror: as in the base folder, but for a training, which has a folder for each term.

data/<stage>-<fingerprint>/...                                     a stage, its manifest.json last
data/sources/<source>/...                                          what is known of the raw files of a source
<experiment>/training-<fingerprint>/leases/000001.json             who writes, or wrote, the first term
<experiment>/training-<fingerprint>/leases/000001.alive            a sign of life of that writer
<experiment>/training-<fingerprint>/000001/checkpoints/...         what was sent in that term
"""

from __future__ import annotations

import re

from gpt_pipeline.storage.fingerprint import SHORT

SOURCES = "sources"
MANIFEST = "manifest.json"
MADE = "made.json"
SOURCE = "source.json"
CHECKPOINTS = "checkpoints"
STARTED = "start.json"
"""Written in an experiment's folder when a training starts there, with its fingerprint."""

_LEASE = re.compile(r"leases/(\d+)\.json$")
_TERM = re.compile(r"^(\d+)/(.+)$")


def training_prefix(experiment: str, fingerprint: str) -> str:
    """Return where a training lies; `experiment` is the name of the experiment's folder."""
    return f"{experiment}/training-{fingerprint[:SHORT]}"


def leases_prefix(training: str) -> str:
    """Return where the leases of a training lie."""
    return f"{training}/leases"


def lease_name(training: str, term: int) -> str:
    """Return the object whose creation began a term."""
    return f"{training}/leases/{term:06d}.json"


def alive_name(training: str, term: int) -> str:
    """Return the object by which the writer of a term shows life."""
    return f"{training}/leases/{term:06d}.alive"


def term_of_lease(name: str) -> int | None:
    """Return the term that a lease's object is of; None for another object."""
    found = _LEASE.search(name)
    return int(found[1]) if found else None


def term_prefix(training: str, term: int) -> str:
    """Return where the files of a term lie."""
    return f"{training}/{term:06d}"


def split_term(name: str, training: str) -> tuple[int, str] | None:
    """Return the term of an object of a training, and its path in the experiment's folder; None for a lease."""
    found = _TERM.match(name.removeprefix(f"{training}/"))
    return (int(found[1]), found[2]) if found else None


def is_plain(name: str) -> bool:
    """Whether a name leads to a place inside the folder that it is put into, on any system."""
    return not name.startswith("/") and "\\" not in name and ":" not in name and ".." not in name.split("/")
