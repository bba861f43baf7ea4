"""Large objects, sent in parts: those that a store has of an upload that was cut off are not sent again.

A part counts as there if the store tells the digest of its bytes, so nothing about an upload is kept on this machine,
and another process, or another machine that sends the same file under the same name, goes on with it. No store shows
the object before all of its parts are put together.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache, partial
from typing import Any, Protocol, TypeVar

UPLOAD_SECONDS = 600.0
"""For an upload of at most 16 MB, all tries together.

A limit on answers begins when all is written, so it does not end the wait for a store that takes no bytes.
"""

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_PARTS = ".parts"
_COMPOSED = 32  # objects that Google Cloud Storage puts together at once


class Parts(Protocol):
    """One object that is being sent. Its methods raise what the store's library raises.

    That is a TimeoutError where a part is not taken within `UPLOAD_SECONDS`.
    """

    def add(self, content: bytes) -> bool:
        """Have the next part in the store; return whether its bytes had to be sent."""
        ...

    def complete(self) -> None:
        """Make the object of the parts, in place of one that is there."""
        ...

    def give_up(self) -> None:
        """Have the store forget the parts, if whoever tries next could not find them."""
        ...


def open_parts(module: str, files: Any, root: str, name: str) -> Parts:
    """Return the upload of the object `name` in the folder `root` of a store, which `module` speaks to."""
    match module:
        case "s3fs":
            return _S3Parts(files, f"{root}/{name}")
        case "gcsfs":
            return _GoogleParts(files, f"{root}/{name}", folder=f"{root}/{_PARTS}/{name}")
        case "adlfs":
            return _AzureParts(files, f"{root}/{name}")
    raise ValueError(f"found {module!r}, need s3fs, gcsfs or adlfs")


def forget_parts(module: str, files: Any, root: str, prefix: str) -> None:
    """Remove the parts of unfinished uploads below `prefix`. Azure does it by itself, after a week."""
    match module:
        case "s3fs":
            for place in _if_allowed(lambda: _unfinished(files, f"{root}/{prefix}/")) or ():
                with suppress(FileNotFoundError):
                    _if_allowed(partial(files.call_s3, "abort_multipart_upload", **place))
        case "gcsfs":
            _remove_folder(files, f"{root}/{_PARTS}/{prefix}")


class _S3Parts:
    """By S3's multipart upload, whose parts bear their MD5 unless they are encrypted with a key of KMS."""

    def __init__(self, files: Any, path: str) -> None:
        self._files = files
        bucket, key, _ = files.split_path(path)
        listed = _if_allowed(lambda: _unfinished(files, path))
        found = [each for each in listed or () if each["Key"] == key]
        self._place = found[-1] if found else self._begun({"Bucket": bucket, "Key": key})
        there = _if_allowed(self._listed) if found else {}
        self._is_found_again = listed is not None and there is not None
        self._there = there or {}
        self._done: list[dict[str, Any]] = []

    def _begun(self, place: dict[str, str]) -> dict[str, str]:
        return {**place, "UploadId": self._files.call_s3("create_multipart_upload", **place)["UploadId"]}

    def _listed(self) -> dict[int, str]:
        tags: dict[int, str] = {}
        while True:
            page = self._files.call_s3("list_parts", **self._place, PartNumberMarker=max(tags, default=0))
            new = {each["PartNumber"]: each["ETag"] for each in page.get("Parts", ())}
            if not page["IsTruncated"] or new.keys() <= tags.keys():
                return tags | new
            tags |= new

    def add(self, content: bytes) -> bool:
        number = len(self._done) + 1
        tag = self._there.get(number)
        is_there = tag is not None and tag.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()
        if not is_there:
            part = {**self._place, "PartNumber": number, "Body": content}
            tag = self._files.call_s3("upload_part", **part, timeout=UPLOAD_SECONDS)["ETag"]
        self._done.append({"PartNumber": number, "ETag": tag})
        return not is_there

    def complete(self) -> None:
        self._files.call_s3("complete_multipart_upload", **self._place, MultipartUpload={"Parts": self._done})

    def give_up(self) -> None:
        if not self._is_found_again:
            _if_allowed(partial(self._files.call_s3, "abort_multipart_upload", **self._place))


def _unfinished(files: Any, path: str) -> list[dict[str, str]]:
    """Return the multipart uploads of objects whose path begins with `path`, the newest last."""
    bucket, key, _ = files.split_path(path)
    found: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key, **after)
        found += page.get("Uploads", ())
        before, markers = after, {name: page.get(f"Next{name}") for name in ("KeyMarker", "UploadIdMarker")}
        after = {name: marker for name, marker in markers.items() if marker}
        if not page["IsTruncated"] or after == before:
            break
    found = sorted((each for each in found if each["Key"].startswith(key)), key=lambda each: each["Initiated"])
    return [{"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]} for each in found]


def _if_allowed(ask: Callable[[], _T]) -> _T | None:
    """Return what `ask` gives of unfinished uploads; None where S3 refuses it, or does not know it."""
    try:
        return ask()
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.ENOSYS:
            raise
        _warn_once(str(error))
        return None


@cache
def _warn_once(why: str) -> None:
    _logger.warning(
        "uploads that are cut off begin again, and their parts may stay until a rule of the bucket removes them (%s); "
        "to go on with them takes s3:ListBucketMultipartUploads, s3:ListMultipartUploadParts, s3:AbortMultipartUpload",
        why,
    )


class _AzureParts:
    """By blocks, which Azure keeps apart from the blob, for a week, until they are committed."""

    def __init__(self, files: Any, path: str) -> None:
        self._files = files
        self._container, self._blob, _ = files.split_path(path)
        self._there = frozenset(self._asked(self._uncommitted))
        self._done: list[str] = []

    def _asked(self, ask: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        from fsspec.asyn import sync

        async def asked() -> Any:
            async with self._files.service_client.get_blob_client(self._container, self._blob) as client:
                return await ask(client, *arguments)

        return sync(self._files.loop, asked, timeout=UPLOAD_SECONDS)

    @staticmethod
    async def _uncommitted(client: Any) -> list[str]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            _, blocks = await client.get_block_list("uncommitted")
        except ResourceNotFoundError:
            return []
        return [block.id for block in blocks]

    def add(self, content: bytes) -> bool:
        name = _part_name(len(self._done) + 1, content)
        self._done.append(name)
        if name in self._there:
            return False
        self._asked(lambda client: client.stage_block(name, content, length=len(content)))
        return True

    def complete(self) -> None:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(name) for name in self._done]
        self._asked(lambda client: client.commit_block_list(blocks))

    def give_up(self) -> None:
        """Do nothing: the next one finds the blocks."""


class _GoogleParts:
    """By objects of their own, which Google Cloud Storage puts together without their bytes passing through here.

    Its resumable uploads need an address to be kept that whoever reads it can write to.
    """

    def __init__(self, files: Any, path: str, *, folder: str) -> None:
        self._files = files
        self._path = path
        self._folder = folder
        self._there = frozenset(files.find(folder))
        self._done: list[str] = []

    def add(self, content: bytes) -> bool:
        path = f"{self._folder}/{_part_name(len(self._done) + 1, content)}"
        self._done.append(path)
        if path in self._there:
            return False
        self._files.pipe_file(path, content, timeout=UPLOAD_SECONDS)
        return True

    def complete(self) -> None:
        # Of its own, since somebody else may put the same parts together at the same time.
        paths, together = self._done, f"{self._folder}/together-{uuid.uuid4().hex}"
        while len(paths) > _COMPOSED:
            self._files.merge(together, paths[:_COMPOSED])
            paths = [together, *paths[_COMPOSED:]]
        self._files.merge(self._path, paths)
        _remove_folder(self._files, self._folder)

    def give_up(self) -> None:
        """Do nothing: the next one finds the parts."""


def _remove_folder(files: Any, folder: str) -> None:
    for path in files.find(folder):
        with suppress(FileNotFoundError):  # somebody else removes them, too
            files.rm_file(path)


def _part_name(number: int, content: bytes) -> str:
    """Return a name that is the same for the same bytes at the same place; all names are of one length."""
    return f"{number:05d}-{hashlib.blake2b(content, digest_size=16).hexdigest()}"
