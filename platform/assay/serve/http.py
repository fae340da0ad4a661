"""The HTTP contract, for every task alike; knows nothing of what answers behind it.

    POST /v1/<task>          an image as the body, or several views of one part as a multipart form;
                             with print=ID the next frame of a print, whose alarms answer too
    GET  /v1/models          which bundles answer
    POST /v1/models/<task>   put another version of the registry behind an alias
    GET  /health             the process lives; GET /ready: every task has a verified bundle
    GET  /openapi.json       this contract
    GET  /                   the inspection page

Whatever happens, the sender gets an id and one sentence: no trace, no path.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import assay
from assay.bundle.aliases import Alias
from assay.errors import AssayError
from assay.serve import page
from assay.serve.contract import MaskFormat, Refusal, Reply, for_sender
from assay.serve.frames import Frame
from assay.serve.gate import PLAIN_ID, REASONS
from assay.serve.guard import Guard, error_reply
from assay.serve.limits import (
    PARAMETERS,
    Limits,
    RefusedError,
    Room,
    read_body,
    read_images,
    refuse_encoding,
)
from assay.serve.tokens import Rates, Tokens

logger = logging.getLogger("ray.serve")


PrintId = Annotated[str | None, Query(alias="print", pattern=f"^{PLAIN_ID}$")]


Version = Annotated[str, Query(pattern=f"^{PLAIN_ID}$")]


Seconds = Annotated[float | None, Query(alias="time", allow_inf_nan=False)]


Responses = dict[int | str, dict[str, Any]]
"""What is told of answers other than 200, by status."""


_REASONS = {
    400: "The body was cut off",
    401: "No token, or a wrong one",
    403: "The token has not the scope",
    404: "No such task or alias",
    408: "The body took too long",
    409: "The version does not verify, or something stands against it",
    413: "The body is too large",
    415: "No format that is read, or encoded on its way",
    422: "An image, or a parameter, cannot be used",
    429: "The queue or the memory is full, or the token asks too often; see Retry-After",
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
        self,
        task: str,
        images: list[bytes],
        alias: Alias,
        mask: MaskFormat,
        explain: bool,
        frame: Frame | None,
    ) -> dict[str, Any]:
        """Return a reply's parts, or `status` and `error`; of a frame with what its print's alarms say."""

    async def models(self) -> dict[str, dict[str, Any]]:
        """Describe the bundles by task and alias; a task that is not ready is empty."""

    async def promote(self, task: str, version: str, alias: Alias) -> str:
        """Put a version of the registry behind an alias; return the record's id.

        Raises:
            AssayError: something stands against it.
        """

    def count(self, task: str, status: int, seconds: float) -> None:
        """Take note of a request."""

    async def sample(self, task: str) -> bytes | None:
        """Return an image to try a task with."""

    def uncertain(self) -> list[dict[str, Any]] | None:
        """Return recent requests, the least certain first; None where they are not kept."""


def make_app(service: Service, limits: Limits, tokens: Tokens | None) -> Guard:
    """Build the application; without tokens everyone is let in."""
    app = FastAPI(
        title="Assay",
        version=assay.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a client that posts does not follow, and has no sentence
    )
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(Exception, _broke)
    responses: Responses = {
        status: {"model": Refusal, "description": reason} for status, reason in _REASONS.items()
    }
    _add_models(app, service, responses)  # before tasks, of which `models` is none
    _add_judging(app, service, limits, responses)
    _add_health(app, service, responses)
    page.add_to(app, service, tokens)
    return Guard(app, tokens, Rates(limits.rate))


def _add_judging(app: FastAPI, service: Service, limits: Limits, responses: Responses) -> None:
    room = Room(limits.held_mb * 1e6)
    judged = _only(responses, *(status for status in _REASONS if status != 409))

    @app.post(
        "/v1/{task}", response_model=Reply, responses=judged, openapi_extra={"requestBody": _BODY}
    )
    async def judge(
        request: Request,
        task: str,
        model: Alias = "champion",
        mask: MaskFormat = "png",
        explain: bool = False,
        print_id: PrintId = None,
        seconds: Seconds = None,
    ) -> Response:
        """Judge an image, or several views of one part together; with explain=1 say where the evidence for a class lies.

        With print=ID the image is the next frame of that print (taken at time=SECONDS), and the print's alarms answer too.
        """
        began = time.perf_counter()
        status = 500
        try:
            _refuse_unknown(request, *PARAMETERS)
            _refuse_unknown_task(service, task)
            frame = _frame_of(request, print_id, seconds)
            asked = model, mask, explain, frame
            with room.share() as take:
                reply = await _judge(service, limits, request, take, task, *asked)
            status = 200
            # as it is: FastAPI would check once more what was just checked
            return Response(reply.model_dump_json(), media_type="application/json")
        except RefusedError as refused:
            status = refused.status
            raise
        finally:
            counted = task if task in service.tasks() else ""
            service.count(counted, status, time.perf_counter() - began)


def _add_models(app: FastAPI, service: Service, responses: Responses) -> None:
    @app.get("/v1/models", responses=_only(responses, 401, 403))
    async def models(request: Request) -> dict[str, dict[str, Any]]:
        """List which bundles answer, by task and alias, with their numbers."""
        _refuse_unknown(request)
        return await service.models()

    @app.post("/v1/models", include_in_schema=False)
    async def no_task() -> None:
        """Refuse what the path of tasks would take for one."""
        raise HTTPException(405, headers={"Allow": "GET"})

    @app.post("/v1/models/{task}", responses=_only(responses, 401, 403, 404, 409, 422))
    async def promote(
        request: Request, task: str, version: Version, model: Alias = "champion"
    ) -> dict[str, str]:
        """Put a version that the registry has behind an alias, by the same rules as `assay promote`; it answers in a few seconds."""
        _refuse_unknown(request, "version", "model")
        _refuse_unknown_task(service, task)
        try:
            return {"record": await service.promote(task, version, model)}
        except RefusedError:
            raise
        except AssayError as error:
            name = request.scope["state"]["id"]
            logger.warning(f"request {name}: {error}")
            why = for_sender(str(error))
            why = why if "/" not in why else "It cannot; the server's log says why."
            raise RefusedError(409, why) from None


def _add_health(app: FastAPI, service: Service, responses: Responses) -> None:
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


def _frame_of(request: Request, print_id: str | None, seconds: float | None) -> Frame | None:
    """Return what a request says of the frame that it brings; None where it names no print.

    Raises:
        RefusedError: it has a time and no print.
    """
    if print_id is not None:
        return Frame(print_id, request.scope["state"]["id"], seconds)
    if seconds is not None:
        raise RefusedError(422, "The parameter time is of a frame of a print; give print too.")
    return None


def _refuse_unknown_task(service: Service, task: str) -> None:
    """Refuse a task that has no champion.

    Raises:
        RefusedError: it is one.
    """
    if task not in service.tasks():
        raise RefusedError(404, "There is no such task; GET /v1/models lists them.")


def _only(responses: Responses, *statuses: int) -> Responses:
    return {status: responses[status] for status in statuses}


async def _judge(
    service: Service,
    limits: Limits,
    request: Request,
    take: Callable[[int], None],
    task: str,
    alias: Alias,
    mask: MaskFormat,
    explain: bool,
    frame: Frame | None,
) -> Reply:
    service.admit(task)
    refuse_encoding(",".join(request.headers.getlist("content-encoding")))
    declared, most = request.headers.get("content-length"), int(limits.body_mb * 1e6)
    body = await read_body(request.receive, declared, most, limits.body_s, take)
    began = time.perf_counter()
    images = read_images(body, request.headers.get("content-type", ""), limits)
    try:
        async with asyncio.timeout(limits.answer_s):
            parts = await service.answer(task, images, alias, mask, explain, frame)
    except TimeoutError:
        raise RefusedError(504, f"There was no answer within {limits.answer_s:g} s.") from None
    if "status" in parts:
        again = 1 if parts["status"] in (429, 503) else None
        raise RefusedError(parts["status"], parts["error"], again)
    parts.pop("thumb", None)
    spent = (time.perf_counter() - began) * 1000
    return Reply(request=request.scope["state"]["id"], milliseconds=round(spent, 2), **parts)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    reply = error_reply(error.status, error.reason, request.scope["state"]["id"])
    if error.retry_after_s is not None:
        reply.headers["retry-after"] = str(error.retry_after_s)
    return reply


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    text = f"The parameter {first['loc'][-1]} cannot be used: {first['msg']}."
    return error_reply(422, text, request.scope["state"]["id"])


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    if error.status_code == 404:
        text = REASONS[404]
    if error.status_code == 405:
        text = f"This path takes {(error.headers or {})['Allow']}, not {request.method}."
    reply = error_reply(error.status_code, text, request.scope["state"]["id"])
    reply.headers.update(error.headers or {})
    return reply


async def _broke(request: Request, error: Exception) -> JSONResponse:
    text = "The server failed; its log has more under this request's id."
    return error_reply(500, text, request.scope["state"]["id"])
