"""A server on this machine that speaks the part of the hub's interface that is used for a dataset, or a model.

A model can also be uploaded to it, by the interface for git and LFS.

It can send readers on to a second host, as the hub does for large files, and misbehave as networks do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

REPOSITORY = "PleIAs/SYNTH"
_LARGE = (
    ".safetensors",
    ".gguf",
    ".parquet",
    ".arrow",
    ".tar",
    ".gz",
    ".xz",
    ".zst",
    ".bz2",
)  # kept in LFS, whose names are by sha256


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request for a file's content."""

    name: str | None = None
    """Only to a request for this file."""

    status: int | None = None
    """Answer with this status instead."""

    headers: Mapping[str, str] = field(default_factory=dict)

    cut_after: int | None = None
    """Close the connection after so many bytes."""

    stall_after: int | None = None
    """Send no more after so many bytes, and keep the connection open."""

    ignores_range: bool = False
    """Answer with the whole file."""


class Sent(NamedTuple):
    """Bytes of a file's content that were sent in one answer."""

    name: str
    first: int
    count: int


@dataclass
class FakeHub:
    """The hub's state; tests change it while the server runs."""

    repository: str = REPOSITORY
    """The dataset or model that it has; without a commit, a model that does not exist yet."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of each file by name, for each commit; the last is the newest."""

    token: str | None = None
    """What a request has to bear; null: nothing."""

    gated: bool = False
    read_only: bool = False
    """The token has no right to write."""

    created: dict[str, object] | None = None
    """What the request to create the repository said."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """Content of uploaded large files, by sha256."""

    failing: int | None = None
    """A status with which every request is answered."""

    corrupt: bool = False
    """Send files whose bytes are not those of their checksum."""

    listed_size: Callable[[int], object] = int
    """What the listing of files gives as a file's size."""

    has_cdn: bool = False
    """Send readers of a file's content on to another host."""

    faults: list[Fault] = field(default_factory=list)
    """What happens to the next requests for content: each takes the first that is for it."""

    requests: list[str] = field(default_factory=list)
    """Method and path of each request, in order; for a part of a file that was asked for, also which."""

    sent: list[Sent] = field(default_factory=list)
    """Of files' content, in the order of the answers."""

    authorizations: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "cdn": set()})
    """The Authorization headers that each host was shown."""

    endpoint: str = ""
    cdn_endpoint: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    """Set when stalled answers may end."""

    def publish(self, folder: Path) -> str:
        """Make the files below `folder` the newest commit, and return it."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Make these files the newest commit, and return it."""
        commit = hashlib.sha1(repr([len(self.commits), *files.items()]).encode()).hexdigest()
        self.commits[commit] = {**files}
        return commit

    def uploads(self) -> list[str]:
        """Return the requests that change something, without their bodies."""
        return [line for line in self.requests if line.startswith(("POST", "PUT")) and "validate-yaml" not in line]

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was asked for, from some byte to the end."""
        paths = [line.split(" ") for line in self.requests if line.startswith("GET /datasets/")]
        return [words[1].split("/", 6)[6] for words in paths if len(words) == 2]

    def bytes_sent(self, name: str) -> int:
        return sum(sent.count for sent in self.sent if sent.name == name)

    def take_fault(self, name: str) -> Fault:
        fault = next((fault for fault in self.faults if fault.name in (None, name)), None)
        if fault is None:
            return Fault()
        self.faults.remove(fault)
        return fault


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with ExitStack() as stack:
        hub.endpoint = stack.enter_context(_serving("hub", hub))
        hub.cdn_endpoint = stack.enter_context(_serving("cdn", hub))
        stack.callback(hub.released.set)
        yield hub


@contextmanager
def _serving(role: str, hub: FakeHub) -> Iterator[str]:
    class Handler(_Handler):
        state = hub
        host = role

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a reader that hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    host: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        asked = self.headers.get("Range", "")
        self.state.requests.append(f"{self.command} {path}{'' if asked.endswith('-') or not asked else f' {asked}'}")
        self.state.authorizations[self.host].add(self.headers.get("Authorization"))
        if self.host == "cdn":
            return self._send_content(*path.removeprefix("/cdn/").split("/", 1))
        if self.state.failing is not None:
            return self._send(self.state.failing, b"{}")
        self._answer_as_hub(path, has_blobs="blobs=" in url.query)

    def _answer_as_hub(self, path: str, *, has_blobs: bool) -> None:
        kind = "datasets" if path.startswith("/api/datasets/") else "models"
        api = f"/api/{kind}/{self.state.repository}"
        resolve = f"/datasets/{self.state.repository}/resolve/"
        model = f"/{self.state.repository}/resolve/"
        if path.startswith(model):  # of a model, whose files have no `datasets` in their addresses
            path = path.replace(model, resolve, 1)
        if not path.startswith((api, resolve)):
            return self._refuse(404, "RepoNotFound")
        if self.state.gated:
            return self._refuse(403, "GatedRepo")
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self._refuse(401, "RepoNotFound")
        if not self.state.commits:
            return self._refuse(404, "RepoNotFound")
        if path.startswith(resolve):
            revision, name = path.removeprefix(resolve).split("/", 1)
            return self._send_file(revision, name)
        parts = path.removeprefix(api).strip("/").split("/")
        return self._send_json(parts[0], parts[1] if len(parts) > 1 else None, has_blobs=has_blobs)

    def _take(self) -> None:
        """Answer a request that changes something, or prepares it."""
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.state.requests.append(f"{self.command} {path}")
        self.state.authorizations[self.host].add(self.headers.get("Authorization"))
        repository = self.state.repository
        if path.startswith("/lfs/"):  # signed addresses, which bear no token
            return self._take_object(path.removeprefix("/lfs/"), body)
        if self.state.failing is not None:
            return self._send(self.state.failing, b"{}")
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self._send(401, b'{"error": "Invalid username or password."}')
        if path == "/api/validate-yaml":
            return self._send(200, b"{}")
        if self.state.read_only:
            return self._send(403, b'{"error": "You have no right to write"}')
        answers: dict[str, Callable[[bytes], None]] = {
            "/api/repos/create": self._create,
            f"/api/models/{repository}/preupload/main": self._say_how_to_upload,
            f"/{repository}.git/info/lfs/objects/batch": self._say_where_to_upload,
            f"/api/models/{repository}/commit/main": self._take_commit,
        }
        return answers.get(path, lambda _: self._refuse(404, "RepoNotFound"))(body)

    def _create(self, body: bytes) -> None:
        self.state.created = json.loads(body)
        self.state.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, json.dumps({"url": f"{self.state.endpoint}/{self.state.repository}"}).encode())

    def _say_how_to_upload(self, body: bytes) -> None:
        there = self.state.commits[str(self._commit("main"))]
        files = []
        for file in json.loads(body)["files"]:
            name = file["path"]
            mode = "lfs" if name.endswith(_LARGE) else "regular"
            oid = _etag(name, there[name]) if name in there else None
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, json.dumps({"files": files}).encode())

    def _say_where_to_upload(self, body: bytes) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            place = {"upload": {"href": f"{self.state.endpoint}/lfs/{each['oid']}"}}
            objects.append({**each, **({} if each["oid"] in self.state.objects else {"actions": place})})
        self._send(200, json.dumps({"transfer": "basic", "objects": objects}).encode())

    def _take_object(self, oid: str, body: bytes) -> None:
        if _digest(body) != oid:
            return self._send(400, b'{"error": "wrong checksum"}')
        self.state.objects[oid] = body
        return self._send(200, b"")

    def _take_commit(self, body: bytes) -> None:
        """Apply the lines of a commit to the newest one, if that is the one they are meant for."""
        newest = str(self._commit("main"))
        files = dict(self.state.commits[newest])
        for line in map(json.loads, body.splitlines()):
            match line:
                case {"key": "header", "value": {"parentCommit": str(parent)}} if parent != newest:
                    return self._send(412, b'{"error": "A commit has happened since"}')
                case {"key": "file", "value": {"path": str(name), "content": str(content)}}:
                    files[name] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": str(name), "oid": str(oid)}}:
                    files[name] = self.state.objects[oid]
                case {"key": "deletedFile", "value": {"path": str(name)}}:
                    del files[name]
        commit = self.state.commit(files)
        address = f"{self.state.endpoint}/{self.state.repository}/commit/{commit}"
        return self._send(200, json.dumps({"commitUrl": address, "commitOid": commit}).encode())

    def _commit(self, revision: str | None) -> str | None:
        if revision in (None, "main"):
            return list(self.state.commits)[-1]
        return revision if revision in self.state.commits else None

    def _send_json(self, what: str, revision: str | None, *, has_blobs: bool) -> None:
        commit = self._commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = self.state.commits[commit]
        if what == "tree":
            return self._send(200, json.dumps([self._entry(*file) for file in files.items()]).encode())
        siblings = [self._sibling(*file) if has_blobs else {"rfilename": file[0]} for file in files.items()]
        return self._send(200, json.dumps({"id": self.state.repository, "sha": commit, "siblings": siblings}).encode())

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
        if name.endswith(_LARGE):
            entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 130}
        return entry

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        size = self.state.listed_size(len(content))
        entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git_hash(content)}
        if name.endswith(_LARGE):
            entry["lfs"] = {"sha256": _digest(content), "size": len(content), "pointerSize": 130}
        return entry

    def _send_file(self, revision: str, name: str) -> None:
        commit = self._commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        content = self.state.commits[commit].get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{_etag(name, content)}"'}
        headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        if self.state.has_cdn:
            place = f"{self.state.cdn_endpoint}/cdn/{commit}/{name}?X-Signature=signed"
            return self._send(302, b"", {**headers, "Location": place})
        return self._send_content(commit, name, headers)

    def _send_content(self, commit: str, name: str, headers: Mapping[str, str] | None = None) -> None:
        content = self.state.commits[commit][name]
        all_headers = {"ETag": f'"{_etag(name, content)}"', **(headers or {})}
        fault = self.state.take_fault(name) if self.command == "GET" else Fault()
        if fault.status is not None:
            return self._send(fault.status, b'{"error": "busy"}', fault.headers)
        if self.state.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, first, last = 200, 0, len(content) - 1
        asked = self.headers.get("Range", "")
        if self.command == "GET" and asked.startswith("bytes=") and not fault.ignores_range:
            start, end = asked.removeprefix("bytes=").split("-")
            status, first, last = 206, int(start), min(int(end), last) if end else last
            all_headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(status, content[first : last + 1], all_headers, fault=fault, sent=Sent(name, first, 0))

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        fault: Fault | None = None,
        sent: Sent | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = fault or Fault()
        stop = fault.cut_after if fault.cut_after is not None else fault.stall_after
        if sent is not None:  # before the bytes: whoever has read them finds this
            self.state.sent.append(sent._replace(count=len(content[:stop])))
        self.wfile.write(content[:stop])
        if fault.stall_after is not None:
            self.state.released.wait()
        if stop is not None:
            self.close_connection = True


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(name: str, content: bytes) -> str:
    return _digest(content) if name.endswith(_LARGE) else _git_hash(content)
