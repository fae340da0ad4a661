"""Ray Serve as a command steers it: begin, deploy, wait, end; with `cluster` and `replica` the only file that imports ray.serve."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from assay.cluster.session import ray_session
from assay.errors import ServeError
from assay.serve.config import ServeConfig
from assay.serve.deployment import tasks_of
from assay.serve.ingress import http_proxy, nothing_listens, wait_for_routes
from assay.serve.tokens import open_tokens

logger = logging.getLogger("ray.serve")


def applications() -> list[dict[str, Any]]:
    """Return what the cluster was last told to run."""
    details = _client().get_serve_details()
    return [app["deployed_app_config"] for app in details["applications"].values()]


def deploy(wanted: Mapping[str, Any]) -> None:
    """Bring the cluster to a configuration, as `serve deploy` does, with the package that was sent with this process.

    Raises:
        ServeError: it is none that Ray Serve takes, since it was changed by hand.
    """
    sent = {"py_modules": ray.get_runtime_context().runtime_env.get("py_modules", [])}
    if sent["py_modules"]:
        apps = [app | {"runtime_env": sent} for app in wanted["applications"]]
        wanted = {**wanted, "applications": apps}
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
        ServeError: there is no token, or the port is taken.
    """
    tokens = open_tokens(config, create=True)
    starts = not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))
    with http_proxy(config, tokens, starts) as options, ray_session(serves=True) as is_local:
        logger.setLevel(logging.WARNING)
        _start(config, options)
        try:
            yield config.address
        finally:
            if is_local:
                with suppress(TimeoutError):  # proxies stay until requests under way are answered
                    _client().delete_all_apps()
                serve.shutdown()  # type: ignore[no-untyped-call]


def _start(config: ServeConfig, options: Mapping[str, Any]) -> None:
    """Let the proxies listen.

    Raises:
        ServeError: one cannot.
    """
    try:
        with suppress(TimeoutError):  # of what is late, which `wait` waits for
            serve.start(proxy_location="EveryNode", http_options=dict(options))
    except RayError as error:
        reason = " ".join(str(error).splitlines()[-1].split())[:200]
        raise nothing_listens(config, reason) from None


def wait(
    config: ServeConfig, timeout_s: float = 300.0, look: Callable[[], None] = lambda: None
) -> list[str]:
    """Wait until every application runs that can, and is asked at its address; return the tasks.

    Args:
        config: where they are asked.
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
        if proxies and not late and "front" in running and len(running) > 1:
            for name in failed:  # what is wrong with one keeps no other from answering
                logger.error(f"{name} does not run; {_reason(status, name)}")
            apps = [app for app in applications() if app["name"] in running]
            tasks = [task for app in apps for task in tasks_of(app)]
            wait_for_routes(config, tasks)
            return tasks
        if "front" in failed or (failed and not late) or time.monotonic() > end:
            named = [f"{name} ({(states | proxies)[name]})" for name in failed or late]
            raise ServeError(f"Not running: {', '.join(named)}; {_reason(status)}")
        look()
        time.sleep(0.2)


def _reason(status: Any, name: str = "") -> str:
    """Return the sentence that ended a replica (of one application), out of the traceback that Ray keeps."""
    apps = [status.applications[name]] if name else status.applications.values()
    for app in apps:
        for message in (app.message, *(each.message for each in app.deployments.values())):
            told = re.findall(r"^assay\.errors\.\w+: (.+)$", message, re.MULTILINE)
            if told:
                return str(told[-1])
    return "the logs of Ray Serve say why."
