"""The HTTP contract, for every task alike; knows nothing of what answers behind it.

    POST /v1/<task>      an image as the body, or several views of one part as a multipart form
    GET  /v1/models      which bundles answer
    GET  /health         the process lives; GET /ready: every task has a verified bundle
    GET  /openapi.json   this contract
    GET  /               the inspection page

Whatever happens, the sender gets an id and one sentence: no trace, no path.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol, runtime_checkable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

import assay
from assay.bundle.aliases import Alias
from assay.errors import ServeError
from assay.serve import page
from assay.serve.contract import MaskFormat, Refusal, Reply
from assay.serve.gate import name_request
from assay.serve.limits import Limits, RefusedError, Room, read_body, read_images, refuse_encoding

OPEN = ("/health", "/ready", "/login")
"""Paths that ask for no token; they tell nothing of models or images."""


logger = logging.getLogger("ray.serve")


Message = MutableMapping[str, Any]


Receive = Callable[[], Awaitable[Message]]


Send = Callable[[Message], Awaitable[None]]


_REASONS = {
    400: "The body was cut off",
    401: "No token, or a wrong one",
    404: "No such task or alias",
    408: "The body took too long",
    413: "The body is too large",
    415: "No format that is read, or encoded on its way",
    422: "An image, or a parameter, cannot be used",
    429: "The queue or the memory is full; see Retry-After",
    431: "The head of the request is too large",
    503: "No model is ready; see Retry-After",
    504: "No answer in time",
}


_IMAGE = {"schema": {"type": "string", "format": "binary"}}


_BODY = {
    "required": True,
    "content": {
        "image/*": _IMAGE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": _IMAGE["schema"]}},
            }
        },
    },
}


@runtime_checkable
class Service(Protocol):
    """What answers."""

    def tasks(self) -> Sequence[str]:
        """List the tasks that have a champion."""

    def admit(self, task: str) -> None:
        """Refuse a request before its body is read, if it would be refused in any case.

        Raises:
            RefusedError: the queue is full, say.
        """

    async def answer(
        self, task: str, images: list[bytes], alias: Alias, mask: MaskFormat, explain: bool
    ) -> dict[str, Any]:
        """Return a reply's parts, or `status` and `error`."""

    async def models(self) -> dict[str, dict[str, Any]]:
        """Describe the bundles by task and alias; a task that is not ready is empty."""

    def count(self, task: str, status: int, seconds: float) -> None:
        """Take note of a request."""

    async def sample(self, task: str) -> bytes | None:
        """Return an image to try a task with."""

    def uncertain(self) -> list[dict[str, Any]] | None:
        """Return recent requests, the least certain first; None where they are not kept."""


def make_app(service: Service, limits: Limits, token: str | None) -> "Guard":
    """Build the application; without a token everyone is let in."""
    room = Room(limits.held_mb * 1e6)
    app = FastAPI(title="Assay", version=assay.__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(Exception, _broke)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": reason} for status, reason in _REASONS.items()
    }

    @app.post("/v1/{task}", responses=responses, openapi_extra={"requestBody": _BODY})
    async def judge(
        request: Request,
        task: str,
        model: Alias = "champion",
        mask: MaskFormat = "png",
        explain: bool = False,
    ) -> Reply:
        """Judge an image, or several views of one part together; with explain=1 say where the evidence for a class lies."""
        began = time.perf_counter()
        status = 500
        try:
            _refuse_unknown(request, "model", "mask", "explain")
            with room.share() as take:
                reply = await _judge(service, limits, request, take, task, model, mask, explain)
            status = 200
            return reply
        except RefusedError as refused:
            status = refused.status
            raise
        finally:
            counted = task if task in service.tasks() else ""
            service.count(counted, status, time.perf_counter() - began)

    @app.get("/v1/models", responses={401: responses[401]})
    async def models(request: Request) -> dict[str, dict[str, Any]]:
        """List which bundles answer, by task and alias, with their numbers."""
        _refuse_unknown(request)
        return await service.models()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: responses[503]})
    async def ready() -> dict[str, str]:
        """Tell whether every task has a verified champion."""
        models = await service.models()
        if not models or not all("champion" in aliases for aliases in models.values()):
            raise RefusedError(503, "Not every task has a model yet.", retry_after_s=2)
        return {"status": "ready"}

    page.add_to(app, service, token)
    return Guard(app, token)


def _refuse_unknown(request: Request, *names: str) -> None:
    """Refuse a parameter of another name, or one that is given twice.

    Raises:
        RefusedError: there is one.
    """
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in names or name in seen:
            why = "is given twice" if name in names else "is unknown"
            raise RefusedError(
                422, f"The parameter {name[:40]!r} {why}; there are: {', '.join(names) or 'none'}."
            )
        seen.add(name)


async def _judge(
    service: Service,
    limits: Limits,
    request: Request,
    take: Callable[[int], None],
    task: str,
    alias: Alias,
    mask: MaskFormat,
    explain: bool,
) -> Reply:
    if task not in service.tasks():
        raise RefusedError(404, "There is no such task; GET /v1/models lists them.")
    service.admit(task)
    refuse_encoding(",".join(request.headers.getlist("content-encoding")))
    declared, most = request.headers.get("content-length"), int(limits.body_mb * 1e6)
    body = await read_body(request.receive, declared, most, limits.body_s, take)
    began = time.perf_counter()
    images = read_images(body, request.headers.get("content-type", ""), limits)
    try:
        async with asyncio.timeout(limits.answer_s):
            parts = await service.answer(task, images, alias, mask, explain)
    except TimeoutError:
        raise RefusedError(504, f"There was no answer within {limits.answer_s:g} s.") from None
    if "status" in parts:
        again = 1 if parts["status"] in (429, 503) else None
        raise RefusedError(parts["status"], parts["error"], again)
    parts.pop("thumb", None)
    spent = (time.perf_counter() - began) * 1000
    return Reply(request=request.scope["state"]["id"], milliseconds=round(spent, 2), **parts)


class Guard:
    """In front of the application: ids, the token, HEAD, and no trace of what went wrong.

    Args:
        app: the application.
        token: what a request must bear; None lets everyone in.

    Raises:
        ServeError: the token is blank.
    """

    def __init__(self, app: FastAPI, token: str | None) -> None:
        if token is not None and not token.strip():
            raise ServeError("The token is blank; give one of letters and digits.")
        self.app = app
        self.expected = None if token is None else _digest(token)
        self.cookie = None if token is None else page.sign_cookie(token)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        name = name_request(dict(scope["headers"]))
        is_head = scope["method"] == "HEAD"
        scope = dict(scope) | {
            "root_path": "",  # paths are whole, whatever prefix of them was routed by
            "state": dict(scope.get("state") or {}) | {"id": name},
            "method": "GET" if is_head else scope["method"],  # where GET is, HEAD is
        }

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", name.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif is_head and message["type"] == "http.response.body":
                message = dict(message) | {"body": b""}
            await send(message)

        try:
            if scope["path"] in OPEN or self._is_trusted(headers):
                await self.app(scope, receive, send_with_id)
                return
            if scope["path"] == "/" and scope["method"] == "GET":
                await RedirectResponse("/login", 303)(scope, receive, send_with_id)
                return
            reply = _error_reply(
                401, "This needs the header 'Authorization: Bearer <token>'.", name
            )
            reply.headers["www-authenticate"] = "Bearer"
            await reply(scope, receive, send_with_id)
        except Exception:  # the sender has its answer by `_broke`; here is the trace of it
            logger.exception(f"request {name}")

    def _is_trusted(self, headers: dict[bytes, str]) -> bool:
        if self.expected is None or self.cookie is None:
            return True
        for part in headers.get(b"cookie", "").split(";"):
            key, _, value = part.strip().partition("=")
            if key == page.COOKIE and hmac.compare_digest(value.encode(), self.cookie.encode()):
                return True
        kind, _, token = headers.get(b"authorization", "").partition(" ")
        # equal lengths, so that the time of comparing says nothing
        return kind.lower() == "bearer" and hmac.compare_digest(_digest(token), self.expected)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.strip().encode()).digest()


def _error_reply(status: int, error: str, name: str) -> JSONResponse:
    return JSONResponse({"error": error, "request": name}, status)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    reply = _error_reply(error.status, error.reason, request.scope["state"]["id"])
    if error.retry_after_s is not None:
        reply.headers["retry-after"] = str(error.retry_after_s)
    return reply


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    text = f"The parameter {first['loc'][-1]} cannot be used: {first['msg']}."
    return _error_reply(422, text, request.scope["state"]["id"])


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reply = _error_reply(error.status_code, str(error.detail), request.scope["state"]["id"])
    reply.headers.update(error.headers or {})
    return reply


async def _broke(request: Request, error: Exception) -> JSONResponse:
    text = "The server failed; its log has more under this request's id."
    return _error_reply(500, text, request.scope["state"]["id"])
