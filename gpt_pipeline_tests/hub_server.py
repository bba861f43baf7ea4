"""A server on this machine that speaks the part of the hub's interface that huggingface_hub uses for a dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "PleIAs/SYNTH"


@dataclass
class FakeHub:
    """The hub's state; tests change it while the server runs."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of each file by name, for each commit; the last is the newest."""

    token: str | None = None
    """What a request has to bear; null: nothing."""

    gated: bool = False
    failing: int | None = None
    """A status with which every request is answered."""

    corrupt: bool = False
    """Send files whose bytes are not those of their checksum."""

    requests: list[str] = field(default_factory=list)
    """Method and path of each request, in order."""

    endpoint: str = ""

    def publish(self, folder: Path) -> str:
        """Make the files of `folder` the newest commit, and return it."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        commit = hashlib.sha1(repr([len(self.commits), *files.items()]).encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was asked for."""
        return [line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET /datasets/")]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        if self.state.failing is not None:
            return self._send(self.state.failing, b"{}")
        api, resolve = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/"
        if not path.startswith((api, resolve)):
            return self._refuse(404, "RepoNotFound")
        if self.state.gated:
            return self._refuse(403, "GatedRepo")
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self._refuse(401, "RepoNotFound")
        if path.startswith(resolve):
            revision, name = path.removeprefix(resolve).split("/", 1)
            return self._send_file(revision, name)
        parts = path.removeprefix(api).strip("/").split("/")
        return self._send_json(parts[0], parts[1] if len(parts) > 1 else None)

    def _commit(self, revision: str | None) -> str | None:
        if revision in (None, "main"):
            return list(self.state.commits)[-1]
        return revision if revision in self.state.commits else None

    def _send_json(self, what: str, revision: str | None) -> None:
        commit = self._commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if what == "tree":
            return self._send(
                200, json.dumps([self._entry(*file) for file in self.state.commits[commit].items()]).encode()
            )
        siblings = [{"rfilename": name} for name in self.state.commits[commit]]
        return self._send(200, json.dumps({"id": REPOSITORY, "sha": commit, "siblings": siblings}).encode())

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        if name.endswith(".parquet"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _send_file(self, revision: str, name: str) -> None:
        commit = self._commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        content = self.state.commits[commit].get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        if self.state.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range", "")
        if self.command == "GET" and asked.startswith("bytes="):
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) if last else len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(206, content[start : end + 1], headers)
        return self._send(200, content, headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
