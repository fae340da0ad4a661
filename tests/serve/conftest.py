"""A registry with two tasks, and the HTTP application on it in this process, without Ray."""

import asyncio
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.serve.http import make_app
from assay.serve.inspector import Inspector, inspect
from assay.serve.limits import Limits

TOKEN = "a-long-secret"


def _draw(path: Path, seed: int, height: int = 60, width: int = 80) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    cv2.circle(pixels, (20 + 10 * seed, 30), 12, (30, 60, 250), -1)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [_draw(folder / f"{seed}.png", seed) for seed in range(4)]


@pytest.fixture(scope="session")
def registry(tmp_path_factory, make_bundle, judged_rows) -> Registry:
    """parts has a champion (bias 0) and a challenger (bias 2), layers a champion."""
    folder = tmp_path_factory.mktemp("serving")
    found = Registry(str(folder / "registry"))
    promote(found, make_bundle(folder / "first"), judged_rows(0.9), "champion")
    promote(found, make_bundle(folder / "second", bias=2.0), judged_rows(0.9), "challenger")
    promote(found, make_bundle(folder / "mask", "layers"), judged_rows(0.9), "champion")
    return found


class Here:
    """Answers in this process, each image alone."""

    def __init__(self, registry: Registry) -> None:
        self.inspectors = {}
        self.counted: list[tuple[str, int]] = []
        self.kept: Any = None
        for task in registry.tasks():
            inspector = Inspector(registry, task, threads=1)
            inspector.configure(ids(registry, task))
            self.inspectors[task] = inspector

    def tasks(self) -> list[str]:
        return list(self.inspectors)

    async def answer(self, task: str, images: Any, alias: Any, mask: Any) -> dict[str, Any]:
        async def alone(item: Any) -> Any:
            return (await asyncio.to_thread(inspect, [item]))[0]

        found = await self.inspectors[task].answer(images, alias, mask, alone)
        if self.kept and found.get("answer"):
            self.kept.add(task, found["answer"], found["thumb"])
        return found

    async def models(self) -> dict[str, Any]:
        return {task: own.describe() for task, own in self.inspectors.items()}

    async def sample(self, task: str) -> bytes | None:
        return self.inspectors[task].sample()

    def uncertain(self) -> list[dict[str, Any]] | None:
        return self.kept.shown() if self.kept else None

    def count(self, task: str, status: int, seconds: float) -> None:
        self.counted.append((task, status))


def ids(registry: Registry, task: str, variant: str = "fp32") -> dict[str, str]:
    held = {alias: registry.holder(task, alias) for alias in ("champion", "challenger")}
    return {alias: one.id if one else "" for alias, one in held.items()} | {"variant": variant}


@pytest.fixture
def here(registry) -> Here:
    return Here(registry)


@pytest.fixture
def ask(here):
    """Sends requests to the application as a bearer of the token."""

    def send(
        method: str, path: str, service: Any = here, limits: Limits | None = None, **fields: Any
    ) -> httpx.Response:
        app = make_app(service, limits or Limits(), TOKEN)
        fields.setdefault("headers", {})
        fields["headers"] = {"authorization": f"Bearer {TOKEN}"} | fields["headers"]

        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **fields)

        return asyncio.run(one())

    return send
