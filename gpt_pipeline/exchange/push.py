"""Upload an export to a model's repository on the hub, in one commit, and only what differs from what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.folder import RECORD_NAME
from gpt_pipeline.storage.atomic import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_OF_THE_HUB = (".gitattributes",)  # in every repository from its first commit
_TOKEN_PAGE = "huggingface.co/settings/tokens"
_CHANGED_MEANWHILE = 412


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """An export on the hub."""

    address: str
    """Of the commit, for a browser."""

    commit: str
    new: bool
    """False if the hub had this export already."""


@dataclass(frozen=True, kw_only=True)
class _There:
    """What a repository holds."""

    commit: str
    sha256: Mapping[str, str | None]
    """Of each file, by its name; None where the hub does not tell, as of small ones."""

    record: Mapping[str, Any] | None
    """Its `export.json`, if it has one."""

    def is_complete(self, record: Mapping[str, Any]) -> bool:
        """Whether it has the export with this `export.json`, its large files byte by byte.

        A small one, such as the card, may have been edited there.
        """
        return self.record == record and all(
            name in self.sha256 and self.sha256[name] in (None, sha256) for name, sha256 in record["files"].items()
        )


def require_pushable(repository: str) -> None:
    """Check what can be checked before anything is exported: the name, the proxy, and that there is a token.

    Raises:
        UserError: the name is none of `owner/name`, no token is set, or nothing can be asked of the hub.
    """
    from huggingface_hub import get_token

    from gpt_pipeline.data.sources.hub.explain import require_usable_settings

    if not _NAME.fullmatch(repository):
        raise UserError(f"--push: found {repository!r}, need owner/name, of letters, digits, '-', '_' and '.'")
    require_usable_settings()
    if get_token() is None:
        raise UserError(
            "--push needs a token, and neither HF_TOKEN nor `hf auth login` has one; make one that may write at "
            f"{_TOKEN_PAGE} and set HF_TOKEN to it"
        )


def push_folder(folder: Path, repository: str, *, private: bool) -> Pushed:
    """Upload the export in `folder` to `repository`, which is created if it does not exist.

    Files of an earlier export there that this one does not have are deleted; they stay in the repository's history.
    `private` is for a repository that is created. The token is that of HF_TOKEN or of the login.

    Raises:
        UserError: as `require_pushable`; the repository holds something other than an export of this kind; the hub
            refuses or cannot be reached.
    """
    require_pushable(repository)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, record = HfApi(), read_json(folder / RECORD_NAME)
    with _explained(repository):
        there = _there(api, repository)
        if there is None:
            api.create_repo(repository, private=private, exist_ok=True)
            there = _there(api, repository)
        _require_ours(repository, there, record)
        if there is not None and there.is_complete(record):
            return Pushed(address=f"{api.endpoint}/{repository}/commit/{there.commit}", commit=there.commit, new=False)
        names = sorted(path.name for path in folder.iterdir())
        stale = sorted(set(_files(there)) - {*names})
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            commit_message=f"Export step {record['step']} of {record['experiment']}",
            parent_commit=None if there is None else there.commit,
        )
    return Pushed(address=commit.commit_url, commit=commit.oid, new=True)


def _there(api: HfApi, repository: str) -> _There | None:
    """Return what the repository holds; None if it does not exist, or has no commit."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.repo_info(repository, files_metadata=True)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:  # the hub's answer for another's private one, too: creating it is refused then
        return None
    if info.sha is None:
        return None
    sha256 = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
    record = _read_record(api, repository, info.sha) if RECORD_NAME in sha256 else None
    return _There(commit=info.sha, sha256=sha256, record=record)


def _read_record(api: HfApi, repository: str, commit: str) -> Mapping[str, Any] | None:
    path = api.hf_hub_download(repository, RECORD_NAME, revision=commit)
    try:
        record = json.loads(Path(path).read_bytes())
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def _files(there: _There | None) -> list[str]:
    """Return the files of the export that is there."""
    if there is None or there.record is None:
        return []
    return [name for name in there.record["files"] if name in there.sha256]


def _require_ours(repository: str, there: _There | None, record: Mapping[str, Any]) -> None:
    if there is None:
        return
    if there.record is None and (strange := sorted({*there.sha256} - {*_OF_THE_HUB})):
        raise UserError(
            f"--push {repository}: found a repository with {strange[0]} and without a readable {RECORD_NAME}, so not "
            "an export; nothing was uploaded; name another repository, or a new one, which is created"
        )
    kinds = [(each or record).get("format", "hf") for each in (there.record, record)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"--push {repository}: found an export with --format {kinds[0]}, need one with --format {kinds[1]}; "
            f"nothing was uploaded; name another repository, such as {repository}-{kinds[1].upper()}"
        )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the hub's errors into errors that say what to do; none of them shows the token."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from gpt_pipeline.data.sources.hub.patience import TransportError

    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it to upload") from None
    except (TransportError, LocalEntryNotFoundError, RuntimeError) as error:  # RuntimeError: of a file's upload
        cause = error if isinstance(error, HfHubHTTPError) or error.__cause__ is None else error.__cause__
        raise _explanation(repository, cause) from error


def _explanation(repository: str, cause: BaseException) -> UserError:
    from huggingface_hub.errors import HfHubHTTPError

    begun = f"--push {repository}"
    if not isinstance(cause, HfHubHTTPError):
        said = (str(cause).splitlines() or [""])[0]
        return UserError(
            f"{begun}: the hub cannot be reached ({type(cause).__name__}: {said}); check the network, the proxy and "
            "HF_ENDPOINT, and run again: what was uploaded is not sent twice"
        )
    return UserError(f"{begun}: {_refusal(repository, cause)}")


def _refusal(repository: str, error: HfHubHTTPError) -> str:
    status, owner = error.response.status_code, repository.partition("/")[0]
    if status == 401:
        return f"the hub does not know the token (HTTP 401); make one that may write at {_TOKEN_PAGE} and set HF_TOKEN"
    if status == 403:
        return (
            f"the token has no right to write there (HTTP 403); name a repository of yours or of an organisation that "
            f"you may write to, not of {owner}, or make a token that may write at {_TOKEN_PAGE}"
        )
    if status == _CHANGED_MEANWHILE:
        return "the repository was changed meanwhile (HTTP 412); nothing was uploaded; run again"
    said = (error.server_message or "").strip().splitlines()
    return f"the hub refused (HTTP {status}{': ' + said[0] if said else ''}); run again later, or correct what it names"
