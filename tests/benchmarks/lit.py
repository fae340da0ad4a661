"""LitServe with a bundle, for serve.py to be set beside: a form in, JSON out.

python tests/benchmarks/lit.py BUNDLE PORT (needs litserve and python-multipart)
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve
from starlette.requests import Request

from assay.bundle.bundle import Bundle
from assay.data.images.decode import probe
from assay.serve.contract import View


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.bundle = Bundle(Path(os.environ["BUNDLE"]), threads=1)

    def decode_request(self, request: Request) -> bytes:
        return bytes(request["image"].file.read())

    def predict(self, image: bytes) -> Any:
        height, width = probe(image)
        form = self.bundle.predict(image).form("none")
        return View(height=height, width=width, **form).model_dump()

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    os.environ["BUNDLE"] = sys.argv[1]
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=2)
    server.run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
