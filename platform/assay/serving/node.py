"""A Ray to serve or to judge on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import assay
from assay.serving.config import write_secret


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
        # on a loaded machine a proxy takes longer to start than Ray Serve waits before it kills it
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
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
