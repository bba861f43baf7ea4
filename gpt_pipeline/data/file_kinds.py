"""Which kinds of files hold documents, by the ends of their names."""

from __future__ import annotations

from pathlib import PurePosixPath

PARQUET, JSON_LINES, JSON, CSV, TSV, ARROW, TAR, TEXT = "parquet", "jsonl", "json", "csv", "tsv", "arrow", "tar", "text"
TEXT_LIST = "text list"
"""Written by `data.sources.text_lists`."""

_KINDS = {
    ".parquet": PARQUET,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".arrow": ARROW,
    ".tar": TAR,
    ".txt": TEXT,
    ".md": TEXT,
    ".textlist": TEXT_LIST,
}
COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".bz2": "bz2"}

READABLE = (
    "parquet, JSON lines, JSON, CSV, TSV, Arrow, tar (WebDataset) and text; all but parquet also as gz, xz, zst, bz2"
)


def kind_of(name: str) -> str | None:
    """Return what kind of file `name` is; None for one that holds no documents."""
    base = name.rpartition("/")[2].lower()  # as pathlib's `suffixes`, which takes ten times as long
    suffixes = [] if base.endswith(".") else [f".{each}" for each in base.lstrip(".").split(".")[1:]]
    if suffixes[-1:] and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        return None if suffixes[-1:] == [".parquet"] else _KINDS.get(suffixes[-1] if suffixes else "")
    return _KINDS.get(suffixes[-1] if suffixes else "")


def ending_of(name: str) -> str:
    """Return the end of a file's name that tells its kind, with that of its compression: `.txt.gz`."""
    return "".join(PurePosixPath(name).suffixes[-2 if compression_of(name) else -1 :])


def compression_of(name: str) -> str | None:
    """Return how the file is compressed as a whole, if it is."""
    return COMPRESSIONS.get(PurePosixPath(name).suffix.lower())
