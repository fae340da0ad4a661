"""A Ray to serve or to judge on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import assay
from assay.serving.config import write_secret

FAST = {
    "RAY_max_direct_call_object_size": "16000000",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # on a loaded machine a proxy takes longer to start than Ray Serve waits before it kills it
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""Where this starts Ray, unless the user says otherwise: an image travels inside the call, not by way of
the object store, and what handles a request waits for no other thread."""


@contextmanager
def on_ray() -> Iterator[bool]:
    """The Ray that runs here already, else that of RAY_ADDRESS, else one that ends with this block.

    Yields whether it is the last. Its token is readable by its owner alone.
    """
    if ray.is_initialized():
        yield False
        return
    own = not os.environ.get("RAY_ADDRESS")
    if own:
        write_secret(Path.home() / ".ray" / "auth_token")
        package = Path(assay.__file__).parents[1]
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ |= {name: value for name, value in FAST.items() if name not in os.environ}
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        ray.init(log_to_driver=False)
    try:
        yield own
    finally:
        ray.shutdown()
