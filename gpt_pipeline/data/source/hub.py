"""Raw files of a dataset on the hub, at one commit, in the hub's own cache."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from gpt_pipeline.data.source.local import parquet_names
from gpt_pipeline.data.source.record import HubFile, SourceRecord
from gpt_pipeline.errors import ConfigError, DataError, UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_NO_HUB = "or download the dataset elsewhere and set data.local_dataset_path to its folder"
# httpx or httpx2, whichever this release of huggingface_hub is built on
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """How to reach the hub; huggingface_hub's own settings (HF_ENDPOINT, HF_HOME, HF_TOKEN) where null."""

    endpoint: str | None = None
    cache_folder: Path | None = None

    @property
    def address(self) -> str:
        return self.endpoint or str(constants.ENDPOINT)


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset of the hub at one commit."""

    hub: Hub
    repository: str
    revision: str
    """Commit, 40 hex digits."""

    files: dict[str, HubFile]
    """By name, in order."""

    @property
    def description(self) -> str:
        return f"{self.repository} at {self.revision[:12]}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def record_key(self, name: str) -> str:
        return f"{self.revision}/{name}"

    def sha256(self, name: str) -> str | None:
        """Return the checksum that the hub gives, if it gives one."""
        return self.files[name].sha256

    def find(self, name: str) -> Path | None:
        """Return the file's path in the cache if it is there in its full size; no network."""
        path = try_to_load_from_cache(
            self.repository, name, cache_dir=self.hub.cache_folder, revision=self.revision, repo_type="dataset"
        )
        if not isinstance(path, str) or not Path(path).is_file():
            return None
        return Path(path) if Path(path).stat().st_size == self.files[name].size else None

    def fetch(self, name: str, *, again: bool = False) -> Path:
        """Return the file's path in the cache, downloading it if it is not there; `again` downloads it anyway.

        Raises:
            UserError: the hub cannot be reached or refuses.
        """
        with _explained(self.hub, self.repository, self.revision):
            path = hf_hub_download(
                self.repository,
                name,
                repo_type="dataset",
                revision=self.revision,
                cache_dir=self.hub.cache_folder,
                endpoint=self.hub.endpoint,
                force_download=again,
            )
        return Path(path)


def open_dataset(
    hub: Hub, repository: str, revision: str | None, record: SourceRecord, *, say: Callable[[str], None]
) -> HubDataset:
    """Return the dataset at `revision`, asking the hub only for what `record` does not know, which it then learns.

    With `revision` null, the newest commit is asked for once and pinned in the record.

    Raises:
        UserError: the hub cannot be reached, refuses, or has no such dataset, revision or parquet file.
    """
    if (known := recorded_dataset(hub, repository, revision, record)) is not None:
        return known
    api = HfApi(endpoint=hub.endpoint)
    with _explained(hub, repository, revision):
        commit = record.commits.get(revision or "") or api.dataset_info(repository, revision=revision).sha
        tree = list(api.list_repo_tree(repository, repo_type="dataset", revision=commit, recursive=True))
    files = {entry.path: _hub_file(entry) for entry in tree if isinstance(entry, RepoFile)}
    names = parquet_names(files)
    if not names:
        raise DataError(f"{repository} at {commit} has no parquet file; correct data.source, {_NO_HUB}")
    record.commits[revision or ""] = commit
    record.listings[commit] = [files[name] for name in names]
    record.save()
    say(f"{repository}: using commit {commit} from now on ({len(names)} files)")
    return HubDataset(hub=hub, repository=repository, revision=commit, files={name: files[name] for name in names})


def recorded_dataset(hub: Hub, repository: str, revision: str | None, record: SourceRecord) -> HubDataset | None:
    """Return the dataset at `revision` as the record knows it, or None; no network."""
    is_commit = revision is not None and _COMMIT.fullmatch(revision)
    commit = revision if is_commit else record.commits.get(revision or "")
    if commit is None or commit not in record.listings:
        return None
    files = {file.name: file for file in record.listings[commit]}
    return HubDataset(hub=hub, repository=repository, revision=commit, files=files)


def _hub_file(entry: RepoFile) -> HubFile:
    return HubFile(name=entry.path, size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None)


@contextmanager
def _explained(hub: Hub, repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into one line with the remedy."""
    try:
        yield
    except (HfHubHTTPError, _TransportError, EntryNotFoundError, OSError) as error:
        raise _explanation(error, hub, repository, revision) from error


def _explanation(error: Exception, hub: Hub, repository: str, revision: str | None) -> UserError:
    place = f"{repository} on {hub.address}"
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, place, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return DataError(f"{place} is needed, but HF_HUB_OFFLINE is set; unset it for the download, {_NO_HUB}")
    if isinstance(error, LocalEntryNotFoundError):  # huggingface_hub's word for a file it could not ask the hub about
        return _unreachable(place, error.__cause__ or error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return DataError(f"{repository} cannot be kept in the hub's cache ({error}); free space, or move it by HF_HOME")
    return _unreachable(place, error)


def _refusal(error: HfHubHTTPError, place: str, revision: str | None) -> UserError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return DataError(f"{place} is gated: accept its conditions there and set HF_TOKEN, {_NO_HUB}")
    if isinstance(error, RepositoryNotFoundError):
        return DataError(
            f"{place} does not exist or is not for you (HTTP {status}); "
            f"correct data.source, set HF_TOKEN if it is private, {_NO_HUB}"
        )
    if isinstance(error, RevisionNotFoundError):
        return ConfigError("data.revision", found=revision, need=f"a commit, branch or tag of {place}")
    if status in (401, 403):
        return DataError(f"{place} refused the request (HTTP {status}); set HF_TOKEN to a valid token, {_NO_HUB}")
    return DataError(f"{place} answered HTTP {status}; run again later (finished files are kept), {_NO_HUB}")


def _unreachable(place: str, cause: BaseException) -> UserError:
    said = (str(cause).splitlines() or [""])[0]
    return DataError(
        f"cannot reach {place} ({type(cause).__name__}: {said}); "
        f"check the network, the proxy and HF_ENDPOINT, and run again, {_NO_HUB}"
    )
