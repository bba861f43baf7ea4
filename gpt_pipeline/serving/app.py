"""The addresses of the server: OpenAI's interface and the page, behind the guard and, where there is one, a key."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_pipeline.data.formats.conversation import Role
from gpt_pipeline.data.formats.forms import without_marks
from gpt_pipeline.evaluation.answers import encode_prompt
from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.guard import Guard
from gpt_pipeline.serving import bodies, errors
from gpt_pipeline.serving.chat import Turn
from gpt_pipeline.serving.engine import Engine, QueueFullError
from gpt_pipeline.serving.errors import ApiError
from gpt_pipeline.serving.jobs import Job, Order, TimeOverError, Update, WriteError
from gpt_pipeline.serving.models import Served
from gpt_pipeline.serving.requests import ChatMessage, ChatRequest, CompletionRequest
from gpt_pipeline.serving.talk import talk_routes

COMMAND = "gpt-pipeline serve"
_MAX_BODY_BYTES = 8 << 20  # some two million tokens, far more than a context holds
_USUAL_NEW_TOKENS = 16  # of a completion that names no number, as OpenAI's
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one may ask for."""

    batch_size: int = 16
    """Texts of a model that are written at a time."""

    queue_size: int = 256
    """Texts that may wait."""

    seconds: float = 300.0
    """That a request may take, waiting included."""

    max_tokens: int | None = None
    """New tokens of a text; None: what the context holds."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes share."""

    models: Mapping[str, Served]
    engine: Engine
    limits: Limits

    def served(self, name: str) -> Served:
        """Return the model of this name.

        Raises:
            ApiError: there is none.
        """
        if name not in self.models:
            raise errors.unknown_model(name, list(self.models))
        return self.models[name]

    def start(self, served: Served, order: Order) -> Job:
        """Put an order into the queue.

        Raises:
            ApiError: it is too long for the model, or there is no room for it.
        """
        count = len(order.prompts) * order.choices
        if count > self.limits.queue_size:
            need = f"need at most {self.limits.queue_size} texts in a request"
            raise ApiError(f"found {count} texts ({len(order.prompts)} prompts, n={order.choices}), {need}", param="n")
        try:
            return Job.start(self.engine, served, order, seconds=self.limits.seconds)
        except QueueFullError:
            raise errors.queue_is_full(self.limits.queue_size) from None

    def new_tokens(
        self,
        served: Served,
        prompt: int,
        wanted: int | None,
        *,
        usual: int | None,
        param: str,
        name: str = "max_tokens",
    ) -> int:
        """Return how many new tokens may follow a prompt of so many; `param` gave it, and `name` what is wanted.

        Raises:
            ApiError: as many as are wanted do not fit, or are more than the server allows.
        """
        context, most = served.writer.context_length, self.limits.max_tokens
        if wanted is not None and most is not None and wanted > most:
            raise ApiError(f"{name}: found {wanted}, need at most {most}, the limit of this server", param=name)
        if prompt + (1 if wanted is None else wanted) > context:
            raise errors.too_long(prompt=prompt, new=1 if wanted is None else wanted, context=context, param=param)
        if wanted is not None:
            return wanted
        return min(each for each in (context - prompt, usual, most) if each is not None)


def make_app(
    models: Sequence[Served], engine: Engine, *, limits: Limits, key: str | None = None, names: Sequence[str] = ()
) -> FastAPI:
    """Return the server of `models`, whose texts `engine` writes.

    With a `key`, requests for anything but the page need it as a bearer token. `names` are those under which the server
    is reached besides the names of this machine.
    """
    app = FastAPI(title="gpt_pipeline", docs_url=None, redoc_url=None, openapi_url=None)
    service = Service(models={each.name: each for each in models}, engine=engine, limits=limits)
    app.include_router(_openai_routes(service), prefix="/v1")
    open_routes, own_routes = talk_routes(models)
    app.include_router(open_routes)
    app.include_router(own_routes)
    app.add_middleware(_BoundedBody)
    app.add_middleware(_Heads)
    if key is not None:
        is_open = {route.path for route in open_routes.routes if isinstance(route, APIRoute)}
        app.add_middleware(_Keyed, key=key, is_open=is_open)
    app.add_middleware(Guard, names=names, command=COMMAND)
    for kind, answer in _answers_to_errors().items():
        app.add_exception_handler(kind, answer)
    return app


class _Heads:
    """ASGI middleware that has HEAD answered as GET is; uvicorn sends the head of it alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        await self._app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class _Keyed:
    """ASGI middleware that refuses who lacks the key before the body is read, by which many could fill the memory."""

    def __init__(self, app: ASGIApp, *, key: str, is_open: Collection[str]) -> None:
        self._app = app
        self._key = key.encode()
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on if it has the key, or is for a path that is open."""
        if scope["type"] != "http" or scope["path"] in self._is_open or self._is_given(scope):
            await self._app(scope, receive, send)
            return
        await _answer(errors.no_key())(scope, receive, send)

    def _is_given(self, scope: Scope) -> bool:
        scheme, _, given = dict(reversed(scope["headers"])).get(b"authorization", b"").partition(b" ")  # the first
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key)


class _BoundedBody:
    """ASGI middleware that refuses a body above `_MAX_BODY_BYTES`, told or sent, before memory holds it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, its body counted."""
        told = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if told.isdigit() and int(told) > _MAX_BODY_BYTES:
            await _answer(errors.too_large(_MAX_BODY_BYTES))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MAX_BODY_BYTES:
                raise HTTPException(errors.too_large(_MAX_BODY_BYTES).status)
            return message

        await self._app(scope, counted, send)


def _answer(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=dict(error.headers or {}))


def _answers_to_errors() -> Mapping[type[Exception], Callable[[Request, Any], Awaitable[Response]]]:
    async def refused(_: Request, error: ApiError) -> Response:
        return _answer(error)

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _answer(errors.invalid(error))

    async def elsewhere(request: Request, error: HTTPException) -> Response:
        if error.status_code == errors.too_large(_MAX_BODY_BYTES).status:
            return _answer(errors.too_large(_MAX_BODY_BYTES))
        if error.status_code == errors.UNREADABLE:
            return _answer(errors.unreadable())
        message = f"{request.method} {request.url.path}: {error.detail}; the interface is at /v1, the page at /"
        return _answer(ApiError(message, status=error.status_code))

    return {ApiError: refused, RequestValidationError: invalid, HTTPException: elsewhere}


def _openai_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/models")
    async def list_models() -> Part:
        return {"object": "list", "data": [bodies.model_body(each) for each in service.models.values()]}

    @routes.get("/models/{name}")
    async def one_model(name: str) -> Part:
        return bodies.model_body(service.served(name))

    @routes.post("/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        served = service.served(asked.model)
        job = service.start(served, _completion_order(service, served, asked))
        head = bodies.Head.of(served, "text_completion", "cmpl")
        parts = _completion_parts(job, served, asked)
        if asked.stream:
            return _stream(job, parts, head, service, with_usage=asked.stream_options)
        body = head.body(bodies.joined_completions(await _collected(job, parts, request, service)))
        return JSONResponse({**body, "usage": bodies.usage_of(job)})

    @routes.post("/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        served = service.served(asked.model)
        job = service.start(served, _chat_order(service, served, asked))
        head = bodies.Head.of(served, "chat.completion", "chatcmpl")
        parts = _chat_parts(job, served, asked)
        if asked.stream:
            kind = "chat.completion.chunk"
            return _stream(job, parts, head, service, with_usage=asked.stream_options, kind=kind)
        body = head.body(bodies.joined_deltas(await _collected(job, parts, request, service)))
        return JSONResponse({**body, "usage": bodies.usage_of(job)})

    return routes


def _completion_order(service: Service, served: Served, asked: CompletionRequest) -> Order:
    prompts = [_prompt_ids(prompt, served) for prompt in asked.prompt]
    limits = [
        service.new_tokens(served, len(prompt), asked.max_tokens, usual=_USUAL_NEW_TOKENS, param="prompt")
        for prompt in prompts
    ]
    return Order(
        prompts=prompts,
        choices=asked.n,
        limits=limits,
        ends=frozenset(served.writer.tokenizer.ends),
        sampling=_sampling(asked),
        seed=asked.seed,
        stops=asked.stop,
        top=asked.logprobs,
        scores_prompt=asked.echo and asked.logprobs is not None,
    )


def _prompt_ids(prompt: str | tuple[int, ...], served: Served) -> tuple[int, ...]:
    """Return the tokens of a prompt: of a text, those of the beginning of a document; ids as they are."""
    tokenizer = served.writer.tokenizer
    if isinstance(prompt, str):
        # What someone typed gives none of ChatML's tokens.
        return tuple(encode_prompt(without_marks(prompt) if tokenizer.marks else prompt, tokenizer))
    odd = next((each for each in prompt if not 0 <= each < tokenizer.vocab_size), None)
    if odd is not None:
        need = f"need token ids from 0 to {tokenizer.vocab_size - 1}"
        raise ApiError(f"prompt: found {odd}, {need}", param="prompt", code="invalid_value")
    return prompt


def _chat_order(service: Service, served: Served, asked: ChatRequest) -> Order:
    form = served.chat
    if form is None:
        raise ApiError(
            f"{served.name} was trained on texts without questions, so it cannot chat; ask /v1/completions to continue "
            "a text",
            param="model",
        )
    reasoning = form.reasons and asked.reasoning_effort != "none"
    prompt = tuple(form.prompt([_turn(message) for message in asked.messages], reasoning=reasoning))
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    wanted = getattr(asked, name)
    return Order(
        prompts=[prompt],
        choices=asked.n,
        limits=[service.new_tokens(served, len(prompt), wanted, usual=None, param="messages", name=name)],
        ends=form.ends,
        sampling=_sampling(asked),
        seed=asked.seed,
        stops=asked.stop,
        top=(asked.top_logprobs or 0) if asked.logprobs else None,
        parts=lambda: form.parts(reasoning=reasoning),
    )


def _turn(message: ChatMessage) -> Turn:
    return Turn(role=_ROLES[message.role], content=message.content, reasoning=message.reasoning_content)


def _sampling(asked: CompletionRequest | ChatRequest) -> Sampling | None:
    if asked.temperature == 0:
        return None
    return Sampling(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p)


async def _completion_parts(job: Job, served: Served, asked: CompletionRequest) -> AsyncIterator[Part]:
    form = _form_of_completion(job, served, asked)
    if asked.echo and not job.order.scores_prompt:
        for number in range(len(job.choices)):
            yield form.echo(number, None)
    async for update in job.updates():
        if update.prompt is not None:
            yield form.echo(update.number, update.prompt.tokens)
        elif update.content or update.piece.tokens or update.finish:
            yield form.choice(update)


def _form_of_completion(job: Job, served: Served, asked: CompletionRequest) -> bodies.Completion:
    # The `<|endoftext|>` before a text was not the asker's.
    shown = [
        tuple(ids[1:]) if isinstance(prompt, str) else tuple(ids)
        for prompt, ids in zip(asked.prompt, job.order.prompts, strict=True)
    ]
    return bodies.Completion(
        tokenizer=served.writer.tokenizer,
        with_logprobs=asked.logprobs is not None,
        echoed=shown if asked.echo else (),
        choices=asked.n,
    )


async def _chat_parts(job: Job, served: Served, asked: ChatRequest) -> AsyncIterator[Part]:
    form = bodies.Chat(tokenizer=served.writer.tokenizer, with_logprobs=asked.logprobs)
    for number in range(len(job.choices)):
        yield bodies.opening_delta(number)
    async for update in job.updates():
        if _is_news(update, with_logprobs=asked.logprobs):
            yield form.delta(update)


def _is_news(update: Update, *, with_logprobs: bool) -> bool:
    return bool(update.reasoning or update.content or update.finish or (with_logprobs and update.piece.tokens))


async def _collected(job: Job, parts: AsyncIterator[Part], request: Request, service: Service) -> list[Part]:
    """Return all parts of an answer; once its client has left, its texts give up their places.

    Raises:
        ApiError: there is no whole answer.
    """

    async def collect() -> list[Part]:
        return [part async for part in parts]

    async def wait_for_leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collecting, leaving = asyncio.create_task(collect()), asyncio.create_task(wait_for_leaving())
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ApiError("the client left", status=499)  # which nobody reads
        return collecting.result()
    except (TimeOverError, WriteError) as error:
        raise _as_api_error(error, service) from error
    finally:
        job.cancel()
        for task in (collecting, leaving):
            task.cancel()


def _as_api_error(error: Exception, service: Service) -> ApiError:
    if isinstance(error, TimeOverError):
        return errors.time_is_over(service.limits.seconds)
    return ApiError(str(error), status=500, kind=errors.SERVER)


class _Events(StreamingResponse):
    """A stream that gives up its job's places however it ends, also before its first part."""

    def __init__(self, job: Job, lines: AsyncIterator[str]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


def _stream(
    job: Job,
    parts: AsyncIterator[Part],
    head: bodies.Head,
    service: Service,
    *,
    with_usage: Any,
    kind: str | None = None,
) -> Response:
    """Return an answer as server-sent events, a part each, as they come."""
    wants_usage = with_usage is not None and with_usage.include_usage
    nothing_yet = {"usage": None} if wants_usage else {}

    async def lines() -> AsyncIterator[str]:
        try:
            async for part in parts:
                yield _line({**head.body([part], kind), **nothing_yet})
            if wants_usage:
                yield _line({**head.body([], kind), "usage": bodies.usage_of(job)})
            yield "data: [DONE]\n\n"
        except (TimeOverError, WriteError) as error:
            yield _line(_as_api_error(error, service).body)

    return _Events(job, lines())


def _line(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
