"""Ray Serve: one application per task that has a champion, and a front beside them.

    <task>     /v1/<task>: replicas that hold the task's bundles, each its own server; own scaling,
               batches and queue. A request goes from HAProxy (see `serve.haproxy`) straight to one
    front      all else: the page, which models there are, the alarms of prints between two frames;
               looks into the registry every few seconds and deploys what changed

A promotion is deployed as another `user_config`: replicas open the new bundle beside the present
one, verify it, and swap. `control` begins and ends all this.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import cv2
import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from assay.bundle.aliases import Alias
from assay.bundle.promotion import promote_again
from assay.bundle.providers import Provider, provider_with
from assay.bundle.registry import Registry
from assay.config import from_dict
from assay.metrics.alarm import Alarm
from assay.serve.config import ServeConfig
from assay.serve.contract import MaskFormat
from assay.serve.control import applications, deploy
from assay.serve.decoders import DecodeLimits, Decoders
from assay.serve.deployment import Refused, configuration
from assay.serve.frames import Frame, PrintStates
from assay.serve.gate import REASONS
from assay.serve.guard import Guard
from assay.serve.http import make_app
from assay.serve.inspector import Inspector, Item, inspect
from assay.serve.limits import RefusedError
from assay.serve.meters import Meters
from assay.serve.page import UncertainRequests
from assay.serve.tokens import open_tokens

logger = logging.getLogger("ray.serve")


def listen_on_node() -> None:
    """Let this replica's own port listen on its node's address alone.

    Ray 2.60 opens it on all addresses once the replica is made, and has no setting for that.
    """
    host = get_node_ip_address()  # type: ignore[no-untyped-call]
    address = f"[{host}]:0" if ":" in host else f"{host}:0"

    def add_port(server: Any, _: str) -> Any:
        return add_port_to_grpc_server(server, address)  # type: ignore[no-untyped-call]

    replica.add_port_to_grpc_server = add_port  # type: ignore[attr-defined]


class Replica:
    """One process that answers for a task, from a request to its reply."""

    def __init__(self, config: dict[str, Any], task: str, threads: int, provider: Provider) -> None:
        # each node has an onnxruntime of its own, so the one that holds the GPU is asked
        provider = provider_with(len(ray.get_gpu_ids()), provider)
        listen_on_node()
        cv2.setNumThreads(threads)
        self.config = from_dict(ServeConfig, config)
        self.task = task
        self.inspector = Inspector(Registry(self.config.registry), task, threads, provider)
        limits = self.config.limits
        # one more than graphs have threads: an image that hangs holds no other up
        self.decoders = Decoders(threads + 1, DecodeLimits(limits.image_mp * 1e6, limits.decode_s))
        self.meters = Meters()
        self.num_requests = self.most_requests = 0

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Open what the configuration names, then let it answer."""
        await asyncio.to_thread(self.inspector.configure, config)
        self.most_requests = config["queue"] + config["batch"]
        self._inspect.set_max_batch_size(config["batch"])  # type: ignore[attr-defined]

    def __serve_build_asgi_app__(self) -> Guard:
        """Build the application that Ray Serve runs."""
        return make_app(self, self.config.limits, open_tokens(self.config))

    def tasks(self) -> Sequence[str]:
        """See `http.Service`."""
        return [self.task]

    def admit(self, task: str) -> None:
        """See `http.Service`."""
        if self.num_requests >= self.most_requests:
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
        self._count_waiting(1)
        watch = None if frame is None else partial(self._watch, frame)
        ways = self.decoders.read, self._inspect, watch
        try:
            parts = await self.inspector.answer(images, alias, mask, explain, *ways)
        finally:
            self._count_waiting(-1)
        opened = self.inspector.opened.get(alias)
        self.meters.count_answer(task, parts, opened.drift if opened else None)
        if self.inspector.keep and parts.get("answer"):
            self._note(parts["answer"], parts["thumb"])
        return parts

    def _count_waiting(self, more: int) -> None:
        self.num_requests += more
        self.meters.waiting.set(self.num_requests, {"task": self.task})

    def _note(self, answer: dict[str, Any], thumb: str) -> None:
        """Show an answer to the page; nobody waits for that."""
        self.front.note.remote(self.task, answer, thumb)

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

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.0)
    async def _inspect(self, items: list[Item]) -> list[Any]:
        self.meters.batch.observe(len(items), {"task": self.task})
        return await asyncio.to_thread(inspect, items)

    async def models(self) -> dict[str, dict[str, Any]]:
        """See `http.Service`."""
        return {self.task: self.inspector.describe()}

    async def sample(self, task: str) -> bytes | None:
        """See `http.Service`."""
        return self.inspector.sample()

    async def promote(self, task: str, version: str, alias: Alias) -> str:
        """See `http.Service`; what is routed past the front comes here."""
        raise RefusedError(404, REASONS[404])

    def uncertain(self) -> None:
        """See `http.Service`; the front keeps them."""

    def count(self, task: str, status: int, seconds: float) -> None:
        """See `http.Service`."""
        self.meters.count(task, status, seconds)


class Front:
    """The page and the models there are; keeps the tasks' applications at what the registry says."""

    def __init__(self, values: dict[str, Any]) -> None:
        listen_on_node()
        self.config = from_dict(ServeConfig, values)
        self.names: list[str] = []
        self.following: asyncio.Task[None] | None = None
        self.handles: dict[str, DeploymentHandle[Any]] = {}
        self.meters = Meters()
        self.recent = UncertainRequests() if self.config.keep_uncertain else None
        limits = self.config.limits
        self.prints = PrintStates(limits.prints, limits.print_s)
        self.refused: Refused = {}

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take note of the tasks, and begin to follow the registry."""
        self.names, self.every_s = config["tasks"], config["every_s"]
        if self.following is None:
            self.following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            try:
                await asyncio.to_thread(self._deploy_changes)
            except Exception:  # a registry or controller out of reach is no reason to give up
                logger.exception("The registry cannot be followed for now")

    def _deploy_changes(self) -> None:
        present = applications()
        if all(app["name"] != "front" for app in present):
            return  # it is ended, and so are they all
        wanted = configuration(self.config, present, refused=self.refused)
        if _user_configs(wanted["applications"]) != _user_configs(present):
            deploy(wanted)

    def __serve_build_asgi_app__(self) -> Guard:
        """Build the application that Ray Serve runs."""
        return make_app(self, self.config.limits, open_tokens(self.config))

    def tasks(self) -> Sequence[str]:
        """See `http.Service`."""
        return self.names

    def _handle(self, task: str) -> DeploymentHandle[Any]:
        if task not in self.handles:
            self.handles[task] = serve.get_deployment_handle("replica", app_name=task)
        return self.handles[task]

    def admit(self, task: str) -> None:
        """See `http.Service`; what is routed past its own application comes here."""
        raise RefusedError(503, "This task starts; try again in a second.", 1)

    async def answer(self, task: str, *_: Any) -> dict[str, Any]:
        """See `http.Service`."""
        self.admit(task)
        return {}

    async def note(self, task: str, answer: dict[str, Any], thumb: str) -> None:
        """Take note of an answer by a replica."""
        if self.recent is not None:
            self.recent.add(task, answer, thumb)

    async def advance(
        self, model: Sequence[str], frame: Frame, alarms: Sequence[Alarm], logit: float
    ) -> dict[str, Any]:
        """Take a frame that a replica looked at into its print; see `serve.frames`."""
        return self.prints.advance(model, frame, alarms, logit)

    async def models(self) -> dict[str, dict[str, Any]]:
        """See `http.Service`."""
        descriptions = await asyncio.gather(*[self._describe(task) for task in self.names])
        models = dict(zip(self.names, descriptions, strict=True))
        for (task, alias), refusal in list(self.refused.items()):
            for description in models.get(task, {}).values():
                description.setdefault("refused", {})[alias] = refusal.record
        return models

    async def _describe(self, task: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(5):
                models: dict[str, Any] = await self._handle(task).models.remote()
                return dict(models[task])
        except Exception:
            logger.warning(f"{task} does not say what it holds", exc_info=True)
            return {}

    async def sample(self, task: str) -> bytes | None:
        """See `http.Service`."""
        content: bytes | None = await self._handle(task).sample.remote(task)
        return content

    async def promote(self, task: str, version: str, alias: Alias) -> str:
        """See `http.Service`."""
        registry = Registry(self.config.registry)
        return (await asyncio.to_thread(promote_again, registry, task, version, alias)).id

    def uncertain(self) -> list[dict[str, Any]] | None:
        """See `http.Service`."""
        return None if self.recent is None else self.recent.rank()

    def count(self, task: str, status: int, seconds: float) -> None:
        """See `http.Service`."""
        self.meters.count(task, status, seconds)


def _user_configs(apps: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return what a promotion may change: which tasks there are, and what their replicas are told."""
    return {
        (app["name"], deployment["name"]): deployment["user_config"]
        for app in apps
        for deployment in app["deployments"]
    }


def front(args: dict[str, Any]) -> serve.Application:
    """Build the application of the front."""
    return serve.deployment(name="front")(serve.ingress()(Front)).bind(args["config"])


def task(args: dict[str, Any]) -> serve.Application:
    """Build the application of a task."""
    return serve.deployment(name="replica")(serve.ingress()(Replica)).bind(**args)
