"""The mirror that `storage.mirror` names: which kinds of stores there are, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from gpt_pipeline.errors import ConfigError

KEY = "storage.mirror"
FILE = "file"
EXTRAS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
}
"""By scheme: the module that speaks to the store, and the extra of gpt-pipeline that installs it."""

_NO_LEASES = ("hf", "http", "https", "ftp", "sftp", "ssh", "webhdfs", "memory", "github")
_DRIVE = re.compile(r"/?[A-Za-z]:[\\/]")


def scheme_of(url: str) -> str:
    """Return the scheme of the address: `s3`, `file` and so on."""
    return url.partition("://")[0].lower() if "://" in url else ""


def require_mirror(url: str, *, key: str) -> None:
    """Raise ConfigError unless `url` names a store that can be a mirror.

    It needs the means to create an object only if there is none of its name: without them two machines could write
    one training.
    """
    scheme, kinds = scheme_of(url), ", ".join(f"{each}://" for each in (FILE, "s3", "gs", "az"))
    need = f"the address of a bucket and a prefix ({kinds}), such as s3://bucket/prefix, or file:///mnt/share/mirror"
    if scheme in _NO_LEASES:
        why = f"another store: {scheme}:// cannot create an object only if there is none of its name, "
        raise ConfigError(
            key, found=url, need=f"{why}so two machines could write one training", remedy=f"use one of {kinds}"
        )
    if scheme != FILE and scheme not in EXTRAS:
        raise ConfigError(key, found=url, need=need)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(key, found=f"{scheme}://...", need=f"{need} ({error})") from error
    if _has_secret(scheme, url, parts):
        raise ConfigError(
            key,
            found=f"{scheme}://...@{url.rpartition('@')[2]}",
            need="an address without user and password, which would be seen wherever the file is",
            remedy="set them in the environment, or in the provider's own configuration",
        )
    if parts.query or parts.fragment:
        raise ConfigError(key, found=f"{scheme}://{parts.netloc}{parts.path}?...", need="an address without ? and #")
    if scheme == FILE and (parts.netloc not in ("", "localhost") or not Path(folder_of(url)).is_absolute()):
        raise ConfigError(key, found=url, need="an absolute path, such as file:///mnt/share/mirror")
    if scheme != FILE and not parts.netloc:
        raise ConfigError(key, found=url, need=need)


def _has_secret(scheme: str, url: str, parts: SplitResult) -> bool:
    """Whether an address holds a user or a password, which may have a `/` in it."""
    if scheme in ("abfs", "abfss"):  # abfs://container@account is an address
        return parts.password is not None
    return parts.username is not None if scheme == FILE else "@" in url


def folder_of(url: str) -> Path:
    """Return the folder that a `file://` address names."""
    path = unquote(urlsplit(url).path)
    return Path(path.removeprefix("/") if _DRIVE.match(path) else path)
