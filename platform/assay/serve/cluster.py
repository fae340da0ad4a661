"""Ray Serve: one application per task that has a champion, and a front beside them.

    <task>     /v1/<task>: replicas that hold the task's bundles, each its own server; own scaling,
               batches and queue. A request goes from HAProxy (see `serve.haproxy`) straight to one
    shared     /v1: the same for all tasks that share replicas (see `serve.shelf`), where there are any; what
               it is asked of models goes on to the front
    front      all else: the page, which models there are, the alarms of prints between two frames;
               looks into the registry every few seconds and deploys what changed

A promotion is deployed as another `user_config`: replicas open the new bundle beside the present
one, verify it, and swap. `control` begins and ends all this.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from assay.bundle.aliases import Alias
from assay.bundle.promotion import promote_again
from assay.bundle.registry import Registry
from assay.config import from_dict
from assay.metrics.alarm import Alarm
from assay.serve.config import ServeConfig
from assay.serve.control import applications, deploy
from assay.serve.deployment import SHARED, Refused, configuration
from assay.serve.frames import Frame, PrintStates
from assay.serve.guard import Guard
from assay.serve.http import make_app
from assay.serve.limits import RefusedError
from assay.serve.meters import Meters
from assay.serve.page import UncertainRequests
from assay.serve.replica import STARTS, Replica, SharedReplica, listen_on_node
from assay.serve.tokens import open_tokens

logger = logging.getLogger("ray.serve")


class Front:
    """The page and the models there are; keeps the tasks' applications at what the registry says."""

    def __init__(self, values: dict[str, Any]) -> None:
        listen_on_node()
        self.config = from_dict(ServeConfig, values)
        self.names: list[str] = []
        self.shared: Mapping[str, Any] = {}
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
        self.shared = config["shared"]
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

    def _app_of(self, task: str) -> str:
        return SHARED if task in self.shared else task

    def _handle(self, app: str) -> DeploymentHandle[Any]:
        if app not in self.handles:
            self.handles[app] = serve.get_deployment_handle("replica", app_name=app)
        return self.handles[app]

    def admit(self, task: str) -> None:
        """See `http.Service`; what is routed past its own application comes here."""
        raise RefusedError(503, STARTS, 1)

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
        apps = dict.fromkeys(map(self._app_of, self.names))
        answers = await asyncio.gather(*map(self._describe, apps))
        told = {task: models for answer in answers for task, models in answer.items()}
        models = {task: told.get(task, {}) for task in self.names}
        for (task, alias), refusal in list(self.refused.items()):
            for description in models.get(task, {}).values():
                description.setdefault("refused", {})[alias] = refusal.record
        return models

    async def _describe(self, app: str) -> dict[str, dict[str, Any]]:
        try:
            async with asyncio.timeout(5):
                models: dict[str, Any] = await self._handle(app).describe.remote()
                return models
        except Exception:
            logger.warning(f"{app} does not say what it holds", exc_info=True)
            return {}

    async def sample(self, task: str) -> bytes | None:
        """See `http.Service`."""
        content: bytes | None = await self._handle(self._app_of(task)).sample.remote(task)
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


def shared(args: dict[str, Any]) -> serve.Application:
    """Build the application of the tasks that share replicas."""
    return serve.deployment(name="replica")(serve.ingress()(SharedReplica)).bind(**args)
