"""The hub's errors, each explained in one line with its remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gpt_pipeline.data.sources.hub.patience import CutShortError, TransportError, asked_wait, is_transient
from gpt_pipeline.errors import ConfigError, DataError, UserError

NO_HUB = "or download the dataset elsewhere and set data.local_dataset_path to its folder"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is requested from the hub, in words for errors."""

    repository: str
    address: str
    revision: str | None

    name: str = ""
    """The file, if the request is for one."""

    kept: Callable[[], str] = lambda: "finished files are kept"
    """Returns what the next run does not have to do again."""

    @property
    def place(self) -> str:
        file = f"{self.name} of " if self.name else ""
        return f"{file}{self.repository} on {self.address}"


@contextmanager
def explained(question: Question) -> Iterator[None]:
    """Turn the hub's errors into errors that say what to do."""
    require_usable_settings()
    try:
        yield
    except (TransportError, CutShortError, EntryNotFoundError, OSError) as error:
        raise _explanation(error, question) from error


@contextmanager
def explained_model(failure: str, *, otherwise: str) -> Iterator[None]:
    """Turn the hub's errors about a model that a key names into one line: the `failure`, why, and what to do."""
    require_usable_settings()
    try:
        yield
    except (TransportError, EntryNotFoundError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{failure} ({reason}); {_remedy_for_model(error)}, or {otherwise}") from error


def _remedy_for_model(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "free space or correct the rights, move the hub's cache with HF_HOME"
    if isinstance(error, LocalEntryNotFoundError) or not isinstance(
        error, HfHubHTTPError | EntryNotFoundError | HFValidationError
    ):
        return "check the network, the proxy, HF_ENDPOINT and HF_HUB_OFFLINE"
    return "correct the name, set HF_TOKEN if it needs one"


def require_usable_settings() -> None:
    """Refuse a proxy, certificates or a token with which nothing can be asked of the hub; offline, none is needed.

    The HTTP library reads the first two as it begins, and what it raises then is none of its errors.

    Raises:
        DataError: names the variables to correct, and shows no password.
    """
    if constants.HF_HUB_OFFLINE:
        return
    _require_clean_token()
    try:
        get_session()
    except Exception as error:  # a library that a proxy needs, an address or a file that cannot be read
        reason = str(error) if isinstance(error, ImportError | OSError) else type(error).__name__
        raise DataError(
            "nothing can be asked of the hub: a proxy or the certificates of the environment cannot be used "
            f"({reason}); correct or unset HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE; a SOCKS proxy needs "
            "`pip install socksio`"
        ) from error


def _require_clean_token() -> None:
    """Refuse a token that cannot be sent: the HTTP library's own error would show it."""
    token = get_token()
    if token is not None and not _TOKEN.fullmatch(token):
        raise DataError(
            f"HF_TOKEN (or the token of `hf auth login`), of {len(token)} characters, contains a blank or a character "
            "that no token has; set it again, without quotes or line breaks"
        )


def _explanation(error: Exception, question: Question) -> UserError:
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, question)
    if isinstance(error, OfflineModeIsEnabled):
        return DataError(f"{question.place} is needed, but HF_HUB_OFFLINE is set; unset it to download, {NO_HUB}")
    if isinstance(error, LocalEntryNotFoundError):  # what huggingface_hub raises when it could not reach the hub
        return _unreachable(error.__cause__ or error, question)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return DataError(
            f"{question.repository} cannot be written to the hub's cache ({error}); "
            f"free space, or move the cache with HF_HOME ({question.kept()})"
        )
    return _unreachable(error, question)


def _refusal(error: HfHubHTTPError, question: Question) -> UserError:
    status, place = error.response.status_code, question.place
    if isinstance(error, GatedRepoError):
        return DataError(f"{place} is gated: accept its conditions there and set HF_TOKEN, {NO_HUB}")
    if isinstance(error, RepositoryNotFoundError):
        return DataError(
            f"{place} does not exist or you may not read it (HTTP {status}); "
            f"correct data.source (a path of your own begins with ./ or ../), set HF_TOKEN if it is private, {NO_HUB}"
        )
    if isinstance(error, RevisionNotFoundError):
        return ConfigError("data.revision", found=question.revision, need=f"a commit, branch or tag of {place}")
    if status in (401, 403):
        return DataError(f"{place} refused the request (HTTP {status}); set HF_TOKEN to a valid token, {NO_HUB}")
    return DataError(f"{place} answered HTTP {status}{_tried(error)}; run again later ({question.kept()}), {NO_HUB}")


def _tried(error: Exception) -> str:
    if (asked := asked_wait(error)) is not None:
        return f" and asks to wait for {asked:.0f} s"
    return " at every attempt" if is_transient(error) else ""


def _unreachable(cause: BaseException, question: Question) -> UserError:
    said = (str(cause).splitlines() or [""])[0]
    broke_off = is_transient(cause) and not type(cause).__name__.startswith("Connect")
    what = (
        f"the connection to {question.place} broke off at every attempt"
        if broke_off
        else f"cannot reach {question.place}"
    )
    return DataError(
        f"{what} ({type(cause).__name__}: {said}); "
        f"check the network, the proxy and HF_ENDPOINT, and run again ({question.kept()}), {NO_HUB}"
    )
