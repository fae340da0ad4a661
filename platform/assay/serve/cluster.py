"""Ray Serve: one front for the contract, one application per task that has a champion.

    front      HTTP, the token, limits; hands images to the task's application, again if its
               replica dies; looks into the registry every few seconds and deploys what changed
    <task>     replicas that hold the task's bundles; own scaling, batches and queue

A promotion is deployed as another `user_config`: replicas open the new bundle beside the present
one, verify it, and swap. The only file that imports ray.serve.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private import replica
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema
from ray.util import get_node_ip_address

from assay.bundle.aliases import Alias
from assay.bundle.bundle import Provider
from assay.bundle.registry import Registry
from assay.config import from_dict
from assay.errors import ServeError
from assay.serve.config import ServeConfig, read_token
from assay.serve.contract import MaskFormat
from assay.serve.decoders import DecodeLimits, Decoders
from assay.serve.deployment import Refused, configuration
from assay.serve.http import Guard, make_app
from assay.serve.inspector import Inspector, Item, inspect
from assay.serve.meters import FrontMeters, ReplicaMeters
from assay.serve.page import UncertainRequests
from assay.session import ray_session

ATTEMPTS = 2
"""How often a request is handed on when replicas die under it; it may be what kills them."""


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
    """One process that answers for a task."""

    def __init__(
        self,
        registry: str,
        task: str,
        threads: int,
        provider: Provider,
        image_mp: float,
        decode_s: float,
    ) -> None:
        listen_on_node()
        self.inspector = Inspector(Registry(registry), task, threads, provider)
        # one more than graphs have threads: an image that hangs holds no other up
        self.decoders = Decoders(threads + 1, DecodeLimits(image_mp * 1e6, decode_s))
        self.meters = ReplicaMeters(task)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Open what the configuration names, then let it answer."""
        await asyncio.to_thread(self.inspector.configure, config)
        self._inspect.set_max_batch_size(config["batch"])  # type: ignore[attr-defined]

    async def answer(
        self, images: Sequence[bytes], alias: Alias, mask: MaskFormat, explain: bool
    ) -> dict[str, Any]:
        """Return a reply's parts, and count them."""
        read = self.decoders.read
        parts = await self.inspector.answer(images, alias, mask, explain, read, self._inspect)
        opened = self.inspector.opened.get(alias)
        self.meters.count(parts, opened.drift if opened else None)
        return parts

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.0)
    async def _inspect(self, items: list[Item]) -> list[Any]:
        self.meters.batch.observe(len(items), self.meters.tags)
        return await asyncio.to_thread(inspect, items)

    async def sample(self) -> bytes | None:
        """Return the champion's golden image."""
        return self.inspector.sample()

    async def describe(self) -> dict[str, Any]:
        """Describe the bundles by alias."""
        return self.inspector.describe()


class Front:
    """The contract, in front of the tasks' applications, which it keeps at what the registry says."""

    def __init__(self, values: dict[str, Any]) -> None:
        listen_on_node()
        self.config = from_dict(ServeConfig, values)
        self.names: list[str] = []
        self.following: asyncio.Task[None] | None = None
        self.handles: dict[str, DeploymentHandle[Any]] = {}
        self.meters = FrontMeters()
        self.recent = UncertainRequests() if self.config.keep_uncertain else None
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
        wanted = configuration(self.config, present, refused=self.refused)
        if _user_configs(wanted["applications"]) != _user_configs(present):
            deploy(wanted)

    def __serve_build_asgi_app__(self) -> Guard:
        """Build the application that Ray Serve runs."""
        return make_app(self, self.config.limits, read_token(self.config))

    def tasks(self) -> Sequence[str]:
        """See `http.Service`."""
        return self.names

    def _handle(self, task: str) -> DeploymentHandle[Any]:
        if task not in self.handles:
            self.handles[task] = serve.get_deployment_handle("replica", app_name=task)
        return self.handles[task]

    async def answer(
        self, task: str, images: list[bytes], alias: Alias, mask: MaskFormat, explain: bool
    ) -> dict[str, Any]:
        """See `http.Service`; judging an image twice harms nothing, so it is tried again."""
        for attempt in range(ATTEMPTS):
            try:
                replica = self._handle(task)
                parts: dict[str, Any] = await replica.answer.remote(images, alias, mask, explain)
                if self.recent is not None and parts.get("answer"):
                    self.recent.add(task, parts["answer"], parts["thumb"])
                return parts
            except BackPressureError:
                return {"status": 429, "error": "The queue is full; try again in a second."}
            except (ActorDiedError, ActorUnavailableError):
                logger.warning(f"{task}: a replica died under a request (attempt {attempt + 1})")
        return {"status": 503, "error": "No replica lived long enough to answer; try again."}

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
                description: dict[str, Any] = await self._handle(task).describe.remote()
                return description
        except Exception:
            logger.warning(f"{task} does not say what it holds", exc_info=True)
            return {}

    async def sample(self, task: str) -> bytes | None:
        """See `http.Service`."""
        content: bytes | None = await self._handle(task).sample.remote()
        return content

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
    return serve.deployment(name="replica")(Replica).bind(**args)


def applications() -> list[dict[str, Any]]:
    """Return what the cluster was last told to run."""
    details = _client().get_serve_details()
    return [app["deployed_app_config"] for app in details["applications"].values()]


def deploy(wanted: Mapping[str, Any]) -> None:
    """Bring the cluster to a configuration, as `serve deploy` does.

    Raises:
        ServeError: it is none that Ray Serve takes, since it was changed by hand.
    """
    try:
        schema = ServeDeploySchema.model_validate(wanted)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ServeError(
            f"Ray Serve does not take {where} = {str(first['input'])[:80]} ({first['msg']}); correct it in the file, or by its flag."
        ) from None
    _client().deploy_apps(schema)


def _client() -> Any:
    return _get_global_client()


@contextmanager
def cluster(config: ServeConfig) -> Iterator[str]:
    """Let a Ray of this machine, or that of RAY_ADDRESS, listen; ends what it began.

    Raises:
        ServeError: there is no token.
    """
    read_token(config, create=True)
    with ray_session(serves=True) as is_local:
        logger.setLevel(logging.WARNING)
        options = {"host": config.host, "port": config.port}
        with suppress(TimeoutError):  # of the proxies, which `wait` waits for
            serve.start(proxy_location="EveryNode", http_options=options)
        try:
            yield f"http://{config.host}:{config.port}"
        finally:
            if is_local:
                serve.shutdown()  # type: ignore[no-untyped-call]


def wait(timeout_s: float = 300.0, look: Callable[[], None] = lambda: None) -> list[str]:
    """Wait until every application runs that can; return the tasks.

    Args:
        timeout_s: seconds until it is given up.
        look: called again and again while something is not there yet.

    Raises:
        ServeError: the front or every task fails, or the time is over.
    """
    end = time.monotonic() + timeout_s
    while True:
        status = serve.status()
        states = {name: app.status.value for name, app in status.applications.items()}
        proxies = {f"proxy {node[:6]}": proxy.value for node, proxy in status.proxies.items()}
        running = [name for name, state in states.items() if state == "RUNNING"]
        failed = [name for name, state in states.items() if state == "DEPLOY_FAILED"]
        late = [name for name in states if name not in (*running, *failed)]
        late += [name for name, state in proxies.items() if state != "HEALTHY"]
        tasks = [name for name in running if name != "front"]
        if proxies and not late and "front" in running and tasks:
            for name in failed:  # what is wrong with one keeps no other from answering
                logger.error(f"{name} does not run; the logs of Ray Serve say why.")
            return tasks
        if "front" in failed or (failed and not late) or time.monotonic() > end:
            named = [f"{name} ({(states | proxies)[name]})" for name in failed or late]
            raise ServeError(f"Not running: {', '.join(named)}; the logs of Ray Serve say why.")
        look()
        time.sleep(0.2)
