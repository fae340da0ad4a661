"""What answers for a task, or for several that share it: one process, from a request to its reply."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import cv2
import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica as ray_replica
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from assay.bundle.aliases import Alias
from assay.bundle.promotion import promote_again
from assay.bundle.providers import Provider, provider_with
from assay.bundle.registry import Registry
from assay.cluster.heap import keep_freed_memory
from assay.config import from_dict
from assay.metrics.alarm import Alarm
from assay.serve.config import ServeConfig
from assay.serve.contract import MaskFormat
from assay.serve.decode_process import DecodeLimits
from assay.serve.decoders import Decoders
from assay.serve.frames import Frame
from assay.serve.gate import REASONS
from assay.serve.guard import Guard
from assay.serve.http import make_app
from assay.serve.inspector import Inspector, Item, inspect
from assay.serve.limits import RefusedError
from assay.serve.looker import Looker
from assay.serve.meters import Meters
from assay.serve.shelf import Shelf
from assay.serve.tokens import open_tokens

STARTS = "This task starts; try again in a second."


def listen_on_node() -> None:
    """Let this replica's own port listen on its node's address alone.

    Ray 2.60 opens it on all addresses once the replica is made, and has no setting for that.
    """
    host = get_node_ip_address()  # type: ignore[no-untyped-call]
    address = f"[{host}]:0" if ":" in host else f"{host}:0"

    def add_port(server: Any, _: str) -> Any:
        return add_port_to_grpc_server(server, address)  # type: ignore[no-untyped-call]

    ray_replica.add_port_to_grpc_server = add_port  # type: ignore[attr-defined]


class Replica:
    """One process that answers for a task, from a request to its reply."""

    def __init__(self, config: dict[str, Any], task: str, threads: int, provider: Provider) -> None:
        # each node has an onnxruntime of its own, so the one that holds the GPU is asked
        provider = provider_with(len(ray.get_gpu_ids()), provider)
        listen_on_node()
        cv2.setNumThreads(threads)
        keep_freed_memory()
        self.config = from_dict(ServeConfig, config)
        self.task = task
        self.inspector = Inspector(Registry(self.config.registry), task, threads, provider)
        limits = self.config.limits
        # one runs graphs, and one more than these have threads decodes: an image that hangs holds no other up
        decoders = Decoders(threads + 2, DecodeLimits(limits.image_mp * 1e6, limits.decode_s))
        self.looker = Looker(decoders, self._inspect)
        self.meters = Meters()
        self.waiting: Counter[str] = Counter()
        self.most_requests = 0

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Open what the configuration names, then let it answer."""
        await asyncio.to_thread(self.inspector.configure, config)
        self._bound(config)

    def _bound(self, config: Mapping[str, Any]) -> None:
        self.most_requests = config["queue"] + config["batch"]
        self.looker.batcher.most = config["batch"]

    def __serve_build_asgi_app__(self) -> Guard:
        """Build the application that Ray Serve runs."""
        return make_app(self, self.config.limits, open_tokens(self.config))

    def tasks(self) -> Sequence[str]:
        """See `http.Service`."""
        return [self.task]

    def admit(self, task: str) -> None:
        """See `http.Service`."""
        if self.waiting.total() >= self.most_requests:
            raise RefusedError(429, "The queue is full; try again in a second.", 1)

    async def answer(
        self,
        task: str,
        images: list[bytes],
        alias: Alias,
        mask: MaskFormat,
        explain: bool,
        frame: Frame | None = None,
    ) -> dict[str, Any]:
        """See `http.Service`."""
        self.admit(task)
        self._count_waiting(task, 1)
        watch = None if frame is None else partial(self._watch, frame)
        try:
            inspector = await self.inspector_of(task)
            parts = await inspector.answer(images, alias, mask, explain, self.looker.look, watch)
        finally:
            self._count_waiting(task, -1)
        opened = inspector.opened.get(alias)
        self.meters.count_answer(task, parts, opened.drift if opened else None)
        if inspector.keep and parts.get("answer"):  # the page shows it; nobody waits for that
            self.front.note.remote(task, parts["answer"], parts["thumb"])
        return parts

    async def inspector_of(self, task: str) -> Inspector:
        """Return what holds a task's bundles, opened."""
        return self.inspector

    def _count_waiting(self, task: str, more: int) -> None:
        self.waiting[task] += more
        self.meters.set_waiting(task, self.waiting[task])

    async def _watch(
        self, frame: Frame, model: Sequence[str], alarms: Sequence[Alarm], logit: float
    ) -> dict[str, Any]:
        """See `inspector.Watch`; the front holds the states."""
        told: dict[str, Any] = await self.front.advance.remote(model, frame, alarms, logit)
        return told

    @cached_property
    def front(self) -> DeploymentHandle[Any]:
        """What answers beside the tasks' replicas."""
        return serve.get_deployment_handle("front", app_name="front")

    def _inspect(self, items: Sequence[Item]) -> list[Any]:
        for task, num in Counter(opened.model.task for opened, _ in items).items():
            self.meters.batch.observe(num, {"task": task})
        return inspect(items)

    async def models(self) -> dict[str, dict[str, Any]]:
        """See `http.Service`."""
        return await self.describe()

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Tell what answers here, by task and alias."""
        return {self.task: self.inspector.describe()}

    async def sample(self, task: str) -> bytes | None:
        """See `http.Service`."""
        return (await self.inspector_of(task)).sample()

    async def promote(self, task: str, version: str, alias: Alias) -> str:
        """See `http.Service`; what is routed past the front comes here."""
        raise RefusedError(404, REASONS[404])

    def uncertain(self) -> None:
        """See `http.Service`; the front keeps them."""

    def count(self, task: str, status: int, seconds: float) -> None:
        """See `http.Service`."""
        self.meters.count(task, status, seconds)


class SharedReplica(Replica):
    """One process that answers for the tasks that share it, whose bundles are opened as they are asked for.

    Its prefix is /v1, where the front's models are too; what it is asked of them the front answers.
    """

    def __init__(self, config: dict[str, Any], threads: int, provider: Provider) -> None:
        super().__init__(config, "", threads, provider)
        self.shelf = Shelf(self.inspector.registry, threads, self.inspector.provider)
        self.others: Sequence[str] = ()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take note of what the configuration names; what is open is brought to it."""
        await self.shelf.configure(config)
        self.others = config["others"]
        self._bound(config)

    def tasks(self) -> Sequence[str]:
        """See `http.Service`; also those that have replicas of their own, which are on their way."""
        return [*self.shelf.slots, *self.others]

    def admit(self, task: str) -> None:
        """See `http.Service`."""
        if task not in self.shelf.slots:
            raise RefusedError(503, STARTS, 1)
        super().admit(task)

    async def inspector_of(self, task: str) -> Inspector:
        """Return what holds a task's bundles, opened."""
        return await self.shelf.take(task)

    async def models(self) -> dict[str, dict[str, Any]]:
        """See `http.Service`."""
        models: dict[str, dict[str, Any]] = await self.front.models.remote()
        return models

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Tell what answers here, or will, by task and alias."""
        return await self.shelf.describe()

    async def promote(self, task: str, version: str, alias: Alias) -> str:
        """See `http.Service`."""
        registry = self.shelf.registry
        return (await asyncio.to_thread(promote_again, registry, task, version, alias)).id
