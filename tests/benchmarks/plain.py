"""Plain uvicorn with a bundle, for serve.py to be set beside: the body in, JSON out.

python tests/benchmarks/plain.py BUNDLE PORT
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from assay.bundle.bundle import Bundle
from assay.data.images.decode import probe
from assay.serve.contract import View


def make() -> FastAPI:
    """Build the application of one worker, which looks at one image at a time."""
    app, bundle, free = (
        FastAPI(),
        Bundle(Path(os.environ["BUNDLE"]), threads=1),
        asyncio.Semaphore(),
    )

    def judge(image: bytes) -> dict[str, Any]:
        height, width = probe(image)
        return View(height=height, width=width, **bundle.predict(image).form("none")).model_dump()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        image = await request.body()
        async with free:
            return await asyncio.to_thread(judge, image)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


if __name__ == "__main__":
    os.environ["BUNDLE"] = sys.argv[1]
    uvicorn.run(
        "plain:make",
        factory=True,
        port=int(sys.argv[2]),
        workers=2,
        log_level="error",
        app_dir=str(Path(__file__).parent),
    )
