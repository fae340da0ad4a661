"""A client: images in, typed answers out; asks again while a server is full or starting over.

client = Client("http://line-7:8000", token)
reply = client.judge("fingerprint", Path("part.jpg"))
print(reply.answer.label, reply.model.version)

Needs httpx and pydantic alone, so that a line's own computer may ask.
"""

import json
import random
import ssl
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from assay.bundle.aliases import Alias
from assay.errors import ServeError
from assay.files import read_bytes
from assay.serve.contract import MaskFormat, Reply

AGAIN = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed; judging an image twice harms nothing, and a frame counts once by its request's id."""


LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True)
class Client:
    """A server's client.

    Args:
        address: such as http://line-7:8000.
        token: the server's token; "" for an open one.
        timeout_s: longest time that one attempt may take.
        retries: attempts after the first.
    """

    address: str
    token: str = ""
    timeout_s: float = 60.0
    retries: int = 5

    def judge(
        self,
        task: str,
        *images: Path | bytes,
        alias: Alias = "champion",
        mask: MaskFormat = "png",
        explain: bool = False,
        print_id: str = "",
        seconds: float | None = None,
    ) -> Reply:
        """Judge an image, or several views of one part together; or the next frame of a print, by its id.

        A frame's `seconds` say when it was taken; of one that is sent again the server knows that it is the same.

        Raises:
            ServeError: the server refuses it, or cannot be reached.
        """
        contents = [image if isinstance(image, bytes) else read_bytes(image) for image in images]
        path = f"/v1/{task}?model={alias}&mask={mask}{'&explain=1' * explain}"
        path += f"&print={quote(print_id, safe='')}" if print_id else ""
        path += "" if seconds is None else f"&time={seconds!r}"
        if len(contents) == 1:
            return Reply.model_validate_json(self._send("POST", path, content=contents[0]))
        form = [("image", ("image", content)) for content in contents]
        return Reply.model_validate_json(self._send("POST", path, files=form))

    def models(self) -> dict[str, dict[str, Any]]:
        """Fetch which bundles answer, by task and alias.

        Raises:
            ServeError: as `judge`.
        """
        models: dict[str, dict[str, Any]] = json.loads(self._send("GET", "/v1/models"))
        return models

    def _send(self, method: str, path: str, **body: Any) -> bytes:
        pause, why, name = 0.1, "", uuid4().hex
        for attempt in range(self.retries + 1):
            wait = pause * (1 + random.random())  # so that clients do not come back together
            try:
                reply = self._attempt(method, path, name, body)
                if reply.is_success:
                    return reply.content
                why = _reason(reply)
                if reply.status_code not in AGAIN:
                    raise ServeError(f"{self.address} answers {reply.status_code}: {why}")
                wait = max(wait, float(reply.headers.get("retry-after") or 0))
            except (httpx.RequestError, httpx.InvalidURL) as error:
                why = f"it cannot be reached ({str(error).rstrip('.')})"
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_PAUSE_S))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise ServeError(
            f"{self.address} has no answer after {self.retries + 1} attempts: {why}; see whether it runs, or allow more retries."
        )

    def _attempt(self, method: str, path: str, name: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"x-request-id": name}
        if self.token:
            headers["authorization"] = f"Bearer {self.token.strip()}"
        if "content" in body:
            headers["content-type"] = "image/*"
        return httpx.request(
            method,
            self.address + path,
            headers=headers,
            timeout=self.timeout_s,
            follow_redirects=True,
            verify=_certificates(),
            **body,
        )


@cache
def _certificates() -> ssl.SSLContext:
    """Load what this machine trusts, its factory's own authority too, in place of httpx's list."""
    return ssl.create_default_context()


def _reason(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase
