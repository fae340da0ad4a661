"""For every test: shape annotations are checked, and hypothesis draws the same examples each time.

Two processes share the files, a file's tests staying together (its fixtures are made once). One takes
those that wait for Ray, one after the other; the other does the rest meanwhile.
"""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RAY = ("test_ray", "test_readme", "test_jobs")

install_import_hook("assay", "beartype.beartype")
# no deadline: how long an example takes says nothing on a machine that others use too
settings.register_profile("assay", deadline=None, derandomize=True)
settings.load_profile("assay")


class ByFile(LoadScopeScheduling):
    """Shares out whole files, and those that start Ray as one."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.split("::")[0]).stem
        return "ray" if stem in RAY else stem


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How tests are shared out."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those that start Ray."""
    items.sort(key=lambda item: item.path.stem not in RAY)
