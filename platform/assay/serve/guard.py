"""In front of the contract: ids, tokens, HEAD, and no trace of what went wrong; knows nothing of tasks."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response

from assay.serve.gate import Message, Receive, Send, name_request
from assay.serve.tokens import Rates, Tokens

OPEN = ("/health", "/ready", "/login")
"""Paths that ask for no token; they tell nothing of models or images."""


logger = logging.getLogger("ray.serve")


class Guard:
    """In front of the application: ids, tokens, HEAD, and no trace of what went wrong.

    Args:
        app: the application.
        tokens: what a request must bear one of; None lets everyone in.
        rates: how often each may ask.
    """

    def __init__(self, app: FastAPI, tokens: Tokens | None, rates: Rates) -> None:
        self.app, self.tokens, self.rates = app, tokens, rates

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
            refusal = self._refuse(scope, headers, name)
            await (refusal or self.app)(scope, receive, send_with_id)
        except Exception:  # the sender has its answer by `http`; here is the trace of it
            logger.exception(f"request {name}")

    def _refuse(
        self, scope: Mapping[str, Any], headers: dict[bytes, str], name: str
    ) -> Response | None:
        """Return why a request does not come through."""
        method, path = scope["method"], scope["path"]
        if b"%" in (
            scope.get("raw_path") or b""
        ):  # HAProxy, which does not decode it, has sent it elsewhere
            return error_reply(
                404, "No path here has a sign that is encoded by %; write it plainly.", name
            )
        if self.tokens is None or path in OPEN:
            return None
        if [key.lower() for key, _ in scope["headers"]].count(b"authorization") > 1:
            return error_reply(400, "The header Authorization stands twice; send one.", name)
        token = self.tokens.find(headers)
        if token is None and (method, path) == ("GET", "/"):
            return RedirectResponse("/login", 303)
        if token is None:
            text = "This needs the header 'Authorization: Bearer <token>'."
            reply = error_reply(401, text, name)
            reply.headers["www-authenticate"] = "Bearer"
            return reply
        needed = "look" if method == "GET" else "ask"
        if method == "POST" and path.startswith("/v1/models/"):
            needed = "promote"
        if needed not in token.scopes:
            return error_reply(403, f"This token has not the scope {needed!r}.", name)
        if needed == "ask" and not self.rates.take(token.name):
            text = f"This token asks more than {self.rates.most:g} times a second; come again."
            reply = error_reply(429, text, name)
            reply.headers["retry-after"] = "1"
            return reply
        return None


def error_reply(status: int, error: str, name: str) -> JSONResponse:
    """Refuse a request in one sentence."""
    return JSONResponse({"error": error, "request": name}, status)
