"""One file of the hub over HTTP: as a stream from some byte on, or as a file that fetches only what is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from gpt_pipeline.data.sources.hub.explain import Question, explained
from gpt_pipeline.data.sources.hub.patience import CutShortError, Patience, persist
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say


@dataclass(frozen=True, kw_only=True)
class Hub:
    """How to reach the hub; huggingface_hub's own settings (HF_ENDPOINT, HF_HOME, HF_TOKEN) where null."""

    endpoint: str | None = None
    cache_folder: Path | None = None
    patience: Patience = field(default_factory=Patience)

    @property
    def address(self) -> str:
        return self.endpoint or str(constants.ENDPOINT)

    @property
    def cache(self) -> Path:
        return self.cache_folder or Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file at one commit."""

    hub: Hub
    repository: str
    revision: str
    name: str

    size: int
    """Bytes."""

    @property
    def url(self) -> str:
        url = hf_hub_url(
            self.repository, self.name, repo_type="dataset", revision=self.revision, endpoint=self.hub.endpoint
        )
        return str(url)

    @contextmanager
    def stream(self, first: int, last: int | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield the position of the answer's first byte and its pieces, from byte `first` to and with `last` if given.

        The position is `first`, or 0 where the answer is the whole file all the same. The token goes to the hub only:
        the HTTP library takes it out when the hub sends the request on to another host.

        Raises:
            HfHubHTTPError: the hub refuses.
            TransportError: the hub cannot be reached, or no byte came for its patience's `silence`.
        """
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if first or last is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        request = partial(get_session().stream, "GET", self.url, headers=headers, timeout=self.hub.patience.silence)
        with request(follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield _first_byte(response, self.name), response.iter_bytes()


def _first_byte(response: Any, name: str) -> int:
    """Return where an answer begins in its file: at 100 for `Content-Range: bytes 100-199/470`."""
    if response.status_code != 206:
        return 0
    said = response.headers.get("Content-Range", "")
    unit, _, span = said.partition(" ")
    start = span.split("-")[0]
    if unit != "bytes" or not start.isdigit():
        raise DataError(
            f"{name}: the hub answered with Content-Range {said!r}, need bytes; does a proxy change ranges?"
        )
    return int(start)


class RangeReader(io.RawIOBase):
    """A file of the hub for a library that reads files: requests only the ranges that are read, and each once."""

    def __init__(self, file: RemoteFile, *, question: Question, say: Say, still_wanted: Callable[[], None]) -> None:
        self._file = file
        self._question = question
        self._say = say
        self._still_wanted = still_wanted
        self._position = 0
        self._ranges: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._file.size if size < 0 else min(self._position + size, self._file.size)
        if self._position >= end:
            return b""
        content = self._known(self._position, end) or self._fetched(self._position, end)
        self._position = end
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _known(self, start: int, end: int) -> bytes | None:
        for first, content in self._ranges:
            if first <= start and end <= first + len(content):
                return content[start - first : end - first]
        return None

    def _fetched(self, start: int, end: int) -> bytes:
        attempt = partial(self._request, start, end)
        with explained(self._question):  # here, before a library that reads the file can turn the error into its own
            content = persist(
                attempt,
                what=self._file.name,
                patience=self._file.hub.patience,
                say=self._say,
                still_wanted=self._still_wanted,
            )
        self._ranges.append((start, content))
        return content

    def _request(self, start: int, end: int) -> bytes:
        name = self._file.name
        with self._file.stream(start, end - 1) as (first, pieces):
            if first != start:
                raise DataError(
                    f"{name}: asked for bytes from {start}, found bytes from {first}; does a proxy change ranges?"
                )
            content = bytearray()
            for piece in pieces:
                content += piece
                if len(content) >= end - start:
                    return bytes(content[: end - start])
        raise CutShortError(f"{len(content)} of {end - start} bytes")
