"""The server as a process: its port, who may reach it, and its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import uvicorn

from gpt_pipeline.errors import UserError
from gpt_pipeline.guard import LOOPBACK
from gpt_pipeline.serving.app import Limits, make_app
from gpt_pipeline.serving.engine import Engine
from gpt_pipeline.serving.models import Served
from gpt_pipeline.storage.ports import choose_port
from gpt_pipeline.training.stopping import StopFlag, stop_on_signals

USUAL_PORT = 8000
_GRACE_SECONDS = 30  # in which answers under way are finished once the server is asked to stop
_LEAST_KEY = 16  # characters


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the server listens, and to whom it answers."""

    host: str
    port: int
    key: str | None
    names: Sequence[str]

    @property
    def address(self) -> str:
        """Under which this machine reaches it: what stands for all of its addresses is no name that is answered to."""
        host = ("::1" if ":" in self.host else "127.0.0.1") if _is_any(self.host) else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def place_of(*, host: str, port: int | None, key_variable: str | None, names: Sequence[str]) -> Place:
    """Return where to listen: at `port`, or the usual one, or the next that is free.

    Raises:
        UserError: the port is taken; or `host` can be reached from other machines and no key is given.
    """
    key = _key(key_variable)
    if not _is_loopback(host) and key is None:
        raise UserError(
            f"--host: found {host}, which other machines can reach, need a key that clients must send; put one into a "
            "variable of the environment and name it: --api-key-env NAME"
        )
    own = [] if _is_any(host) else [f"[{host}]" if ":" in host else host]
    free = choose_port(port, usual=USUAL_PORT, option="--port", host=host)
    return Place(host=host, port=free, key=key, names=[*own, *names])


def serve(
    models: Sequence[Served], place: Place, *, limits: Limits, opened: Callable[[], None], stopping: Callable[[], None]
) -> None:
    """Serve `models` until a signal: call `opened` once requests are answered, `stopping` when no more are taken.

    Answers under way get half a minute to finish; a second signal ends them at once.
    """
    written_by = {each.name: each.writer.model for each in models}
    engine = Engine(written_by, batch_size=limits.batch_size, queue_size=limits.queue_size)
    app = make_app(models, engine, limits=limits, key=place.key, names=place.names)
    config = uvicorn.Config(
        app,
        host=place.host,
        port=place.port,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    # uvicorn hands the signal that ended it on to whoever had it before.
    with engine, stop_on_signals(StopFlag()):
        _Server(config, opened=opened, stopping=stopping).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, opened: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._opened = opened
        self._stopping = stopping

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        if self.started:
            self._opened()

    async def shutdown(self, sockets: object = None) -> None:
        self._stopping()
        await super().shutdown()


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # clients and servers do not agree on others in a header
        raise UserError(
            f"--api-key-env: found a character in {variable} that is not printable ASCII, which no client could send; "
            f"make a key: {_make_key(variable)}"
        )
    if len(key) < _LEAST_KEY:
        found = f"{len(key)} characters" if key else "nothing"
        raise UserError(
            f"--api-key-env: found {found} in {variable}, need a key of at least {_LEAST_KEY} characters; make one: "
            f"{_make_key(variable)}"
        )
    return key


def _make_key(variable: str) -> str:
    return f'export {variable}="$(openssl rand -hex 32)"'


def _is_loopback(host: str) -> bool:
    if host.lower() in LOOPBACK:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
