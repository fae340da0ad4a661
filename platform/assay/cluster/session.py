"""A Ray to work on: for training, sweeps, serving, and answers without a server."""

import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import assay
from assay.errors import ResourceError

STARTS = 2
"""Times that a Ray is started before it is given up."""

LOOK_S, LOOKS = 5.0, 8
"""Seconds between looks whether the cluster's head is there, and failed ones until it is given up; Ray itself ends the process after 60 s."""

PATIENT = {"RAY_raylet_start_wait_time_s": "180"}
"""Set where this starts Ray, unless the user says otherwise: on a loaded machine a node takes long to start."""

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""Set where this trains: Ray trains in a thread, which keeps what it frees in the first arena alone (see `heap.keep_freed_memory`)."""

GATE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

FAST = {
    "RAY_max_direct_call_object_size": "16000000",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # each has a log of its own, and wrote every line twice
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # on a loaded machine a proxy takes longer to start than Ray Serve waits before it kills it
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    # what bounds the heads and the time of requests; see `serve.gate`
    GATE: "assay.serve.gate:middlewares",
    # at rest the looks of Ray Serve after itself are most of what it does
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # a proxy that is gone is noticed after three of these
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # a replica that ends is reached so long, until every proxy knows
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "3",
}
"""Where this starts Ray, unless the user says otherwise: what handles a request waits for no other thread; where
Ray's own proxy takes it to a replica, an image travels inside the call and not by way of the object store."""


@contextmanager
def ray_session(serves: bool = False) -> Iterator[bool]:
    """Enter the Ray that runs here already, else that of RAY_ADDRESS, else one that ends with this block.

    Yields True for the last of these alone. Its token is readable by its owner alone. The nodes of
    another cluster work with the very package that runs here.

    Args:
        serves: images travel inside calls (`FAST`), and proxies bound what they take (`GATE`).

    Raises:
        ResourceError: Ray did not start, nor when it was tried again.
    """
    import ray  # takes a second, and many commands need none

    if ray.is_initialized():
        yield False
        return
    package = Path(assay.__file__).parent
    is_local = not os.environ.get("RAY_ADDRESS")
    if is_local:
        write_secret(Path.home() / ".ray" / "auth_token")  # Ray's own is readable by everyone
        paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        wanted = PATIENT | (FAST if serves else ONE_ARENA)
        os.environ |= {name: value for name, value in wanted.items() if name not in os.environ}
        _start(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        sent = {GATE: FAST[GATE]} if serves else ONE_ARENA
        _start(runtime_env={"py_modules": [str(package)], "env_vars": sent}, log_to_driver=False)
    ended = threading.Event()
    if not is_local:
        address = ray.get_runtime_context().gcs_address
        threading.Thread(target=_watch, args=(address, ended), daemon=True).start()
    try:
        with _losses():
            yield is_local
    finally:
        ended.set()
        ray.shutdown()


def _watch(address: str, ended: threading.Event) -> None:
    """End this process with a sentence once the cluster's head is gone, or another one in its place that knows nothing of it.

    Ray itself would wait without end, or end it after a minute without saying what to do.
    """
    from ray.exceptions import RayError

    first, failures = None, 0
    while failures < LOOKS and not ended.wait(LOOK_S):
        try:
            now = _cluster_at(address)
            first, failures = first or now, 0
            if now != first:
                break
        except (OSError, RayError):
            failures += 1
    if not ended.is_set():
        print(
            f"ResourceError: The head of the cluster at {address} is gone, or was begun again; begin it where it is gone, "
            "and give the same command again, which goes on from what was written.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # whatever waits for Ray now, waits in vain


def _cluster_at(address: str) -> Any:
    """Return what names a cluster, which another head at the same address does not have."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), LOOK_S).close()  # for which Ray would wait long
    return GcsClient(address=address).cluster_id


@contextmanager
def _losses() -> Iterator[None]:
    """Say in a sentence that the Ray worked on is gone, in part or as a whole.

    Raises:
        ResourceError: in the place of what Ray raises of its own processes, not of what a task raised.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(
            f"Ray lost what this command runs on ({type(error).__name__}: {reason}); see that its head and nodes run, "
            "and give the same command again, which goes on from what was written."
        ) from error


def _start(**options: Any) -> None:
    """Start a Ray, or join one; tried again where it does not answer in time."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    for left in reversed(range(STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # of a node that is late Ray raises just that
            ray.shutdown()
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not left:
                remedy = (
                    "see that the cluster of RAY_ADDRESS runs and can be reached"
                    if address
                    else "end other programs, or wait until this machine has less to do"
                )
                raise ResourceError(
                    f"Ray did not start in {STARTS} tries ({reason}); {remedy}, and give the same command again."
                ) from error
            print(f"Ray did not start ({reason}); trying again.", file=sys.stderr)


def write_secret(path: Path) -> None:
    """Write a new secret that its owner alone may read; one that is there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(file, "w") as opened:
        opened.write(secrets.token_hex(32))
