"""The inspection page: files of the package, and a cookie that stands for a token.

The page loads nothing from elsewhere.
"""

from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from assay.serve.gate import REASONS
from assay.serve.limits import RefusedError, read_body
from assay.serve.tokens import COOKIE, Tokens

PAGES = Path(__file__).parents[1] / "pages"


ASSETS = {
    "report.css": "text/css",
    "inspect.css": "text/css",
    "inspect.js": "text/javascript",
}


NUM_KEPT, NUM_RECENT = 12, 500
"""Least certain requests on the page, and of how many recent ones."""


POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


MAX_FORM = 4096
"""Longest body of the login form (bytes)."""


LOGIN_S = 5.0
"""Longest time that it may take to arrive: whoever sends it has shown no token yet."""


def add_to(app: FastAPI, service: Any, tokens: Tokens | None) -> None:
    """Add the page's paths; they are no part of the contract."""

    @app.get("/", include_in_schema=False)
    async def inspect() -> Response:
        return _page("inspect.html")

    @app.get("/login", include_in_schema=False)
    async def login() -> Response:
        return _page("login.html")

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        return await _enter(request, tokens)

    @app.get("/page/sample/{task}", include_in_schema=False)
    async def sample(task: str) -> Response:
        content = await service.sample(task) if task in service.tasks() else None
        if content is None:
            raise RefusedError(404, "There is no sample of this task.")
        return Response(content, media_type="application/octet-stream")

    @app.get("/page/uncertain", include_in_schema=False)
    async def uncertain() -> dict[str, Any]:
        requests = service.uncertain()
        return {"on": requests is not None, "requests": requests or []}

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise RefusedError(404, REASONS[404])
        return FileResponse(PAGES / name, media_type=ASSETS[name])


async def _enter(request: Request, tokens: Tokens | None) -> Response:
    """Exchange a token that may look for a cookie.

    Raises:
        RefusedError: the form is too long or too slow.
    """
    body = await read_body(request.receive, None, MAX_FORM, LOGIN_S)
    entered = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
    if tokens is None:
        return _page("login.html")
    for token in tokens.present():
        if token.is_secret(entered) and "look" in token.scopes:
            reply = RedirectResponse("/", 303)
            is_secure = request.url.scheme == "https"
            reply.set_cookie(
                COOKIE, token.cookie, httponly=True, samesite="strict", secure=is_secure
            )
            return reply
    return _page("login.html", 401)


def _page(name: str, status: int = 200) -> Response:
    return Response(
        (PAGES / name).read_text(),
        status,
        {"content-security-policy": POLICY, "referrer-policy": "no-referrer"},
        "text/html",
    )


class UncertainRequests:
    """The least certain of the recent requests, in memory."""

    def __init__(self) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=NUM_RECENT)

    def add(self, task: str, answer: dict[str, Any], thumb: str) -> None:
        """Take note of a class that was answered."""
        prob = answer["probs"][answer["label"]]
        self.recent.append({"task": task, "label": answer["label"], "prob": prob, "thumb": thumb})

    def rank(self) -> list[dict[str, Any]]:
        """Return those for the page, the least certain first."""
        return sorted(self.recent, key=lambda request: request["prob"])[:NUM_KEPT]
