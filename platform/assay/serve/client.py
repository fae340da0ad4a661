"""A client: images in, typed answers out; asks again while a server is full or starting over.

client = Client("http://line-7:8000", token)
reply = client.judge("fingerprint", Path("part.jpg"))
print(reply.answer.label, reply.model.version)
"""

import http.client
import json
import random
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from assay.bundle.registry import Alias
from assay.errors import ServeError
from assay.serve.contract import MaskFormat, Reply

AGAIN = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed; judging an image twice harms nothing."""


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
    ) -> Reply:
        """Judge an image, or several views of one part together.

        Raises:
            ServeError: the server refuses it, or cannot be reached.
        """
        contents = [one if isinstance(one, bytes) else one.read_bytes() for one in images]
        body, kind = _form(contents) if len(contents) != 1 else (contents[0], "image/*")
        path = f"/v1/{task}?model={alias}&mask={mask}"
        return Reply.model_validate_json(self._send("POST", path, body, kind))

    def models(self) -> dict[str, dict[str, Any]]:
        """Which bundles answer, by task and alias.

        Raises:
            ServeError: as `judge`.
        """
        found: dict[str, dict[str, Any]] = json.loads(self._send("GET", "/v1/models", None, ""))
        return found

    def _send(self, method: str, path: str, body: bytes | None, kind: str) -> bytes:
        headers = {"authorization": f"Bearer {self.token}"} | (
            {"content-type": kind} if kind else {}
        )
        pause, said = 0.1, ""
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(
                self.address + path, body, headers | {"x-request-id": uuid4().hex}, method=method
            )
            wait = pause * (1 + random.random())  # so that clients do not come back together
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    content: bytes = reply.read()
                    return content
            except urllib.error.HTTPError as error:
                said = _sentence(error)
                if error.code not in AGAIN:
                    raise ServeError(f"{self.address} answers {error.code}: {said}") from None
                wait = max(wait, float(error.headers.get("retry-after") or 0))
            except (OSError, http.client.HTTPException) as error:
                said = f"it cannot be reached ({error})"
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_PAUSE_S))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise ServeError(
            f"{self.address} has no answer after {self.retries + 1} attempts: {said}; see whether it runs, or allow more retries."
        )


def _form(contents: list[bytes]) -> tuple[bytes, str]:
    mark = uuid4().hex
    head = 'Content-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    parts = [f"--{mark}\r\n{head}".encode() + content + b"\r\n" for content in contents]
    return b"".join([*parts, f"--{mark}--\r\n".encode()]), f"multipart/form-data; boundary={mark}"


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)
