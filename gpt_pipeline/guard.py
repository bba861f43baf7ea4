"""Which requests the web pages answer: those of their own pages and of programs, never those of other websites.

Any website that a user visits can make their browser send requests to this machine. What gives them away are headers
that no website can forge: Host (also where its name was rebound to 127.0.0.1), Origin and Sec-Fetch-*.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The names of this machine, as they stand in Host and Origin."""

_ADDRESS = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:[0-9]{1,5})?")
_READING = ("GET", "HEAD")
_OWN_SITE = ("same-origin", "none")  # "none" is the user's own doing: the address bar, a bookmark
_SINGLE = ("host", "origin", "content-type", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")
_POLICY = (
    "frame-ancestors 'none'; frame-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),  # a second one only ever narrows an application's own
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_REPLACED = {name for name, _ in _HEADERS} - {b"content-security-policy"}


class Guard:
    """ASGI middleware that refuses what another website may have sent, and forbids others to frame the pages."""

    def __init__(self, app: Application, *, names: Collection[str] = (), command: str = "gpt-pipeline ui") -> None:
        """Guard `app`, which answers to the names of this machine and to `names`, those of proxies before it.

        `command` starts the pages; a refused name is told the option of it that allows names.
        """
        self._app = app
        self._command = command
        self._proxies = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection: hand it on, or refuse it with the reason."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif (problem := refusal(scope, proxies=self._proxies, command=self._command)) is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})
        else:
            await _refuse(send, problem)


def refusal(scope: Scope, *, proxies: Collection[str], command: str) -> str | None:
    """Return why a request is refused; None for one that is answered."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in _SINGLE and name in headers:
            return f"{name}: found it twice, need it once"
        headers.setdefault(name, raw_value.decode("latin-1").strip())
    if _name(headers.get("host", "")) not in LOOPBACK | frozenset(proxies):
        return (
            f"Host: found {headers.get('host', '')!r}, need a name of this machine ({', '.join(sorted(LOOPBACK))}); "
            f"for a proxy start the pages by: {command} --allow-host NAME"
        )
    is_http = scope["type"] == "http"
    if is_http and scope["method"] in _READING and _is_page_load(headers):
        return _graphql_by_reading(scope, headers)
    return _foreign(headers, proxies) or (_method(scope, headers) if is_http else None)


def _is_page_load(headers: Mapping[str, str]) -> bool:
    """Whether a browser opens the address in a tab, as after a click on a link; what it gets, no website can read."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _foreign(headers: Mapping[str, str], proxies: Collection[str]) -> str | None:
    """Return what shows that a page of another origin asks. Programs that are no browsers send none of it."""
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in _OWN_SITE:
        return f"Sec-Fetch-Site: found {site!r}: another website asks"
    origin = headers.get("origin")
    if origin is None:
        return None
    scheme, _, address = origin.partition("://")
    if scheme in ("http", "https") and (address.lower() == headers["host"].lower() or _name(address) in proxies):
        return None
    return f"Origin: found {origin!r}, need that of the page itself: another website asks"


def _method(scope: Scope, headers: Mapping[str, str]) -> str | None:
    """Return what is wrong with how it is asked.

    A website can make a browser POST a form or plain text anywhere, but JSON only after asking leave, which is never
    given.
    """
    if scope["method"] in _READING:
        return _graphql_by_reading(scope, headers)
    if scope["method"] != "POST":
        return f"found {scope['method']}, need GET, HEAD or POST"
    content_type = headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return f"Content-Type: found {content_type!r}, need application/json"
    return None


def _graphql_by_reading(scope: Scope, headers: Mapping[str, str]) -> str | None:
    """Return why GraphQL is not executed: by GET, an address alone could change something."""
    is_graphql = scope["path"].rstrip("/").endswith("/graphql")
    if is_graphql and "text/html" not in headers.get("accept", ""):  # with it, only the page to type queries in comes
        return "GraphQL: found GET, need POST with Content-Type application/json"
    return None


def _name(address: str) -> str:
    """Return the name in `name:port`, lower case, an IPv6 address in its brackets; empty for anything else."""
    found = _ADDRESS.fullmatch(address.lower())
    return found["name"] if found else ""


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [header for header in message.get("headers", ()) if header[0].lower() not in _REPLACED]
            message = {**message, "headers": [*own, *_HEADERS]}
        await send(message)

    return send_with_headers


async def _refuse(send: Send, problem: str) -> None:
    body = f"Refused. {problem}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
