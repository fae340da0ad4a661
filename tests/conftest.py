"""For every test: shape annotations are checked, and hypothesis draws the same examples each time.

Two processes share the files, a file's tests staying together (its fixtures are made once). One takes
those that wait for Ray, one after the other; the other does the rest meanwhile.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

RAY = ("test_ray", "test_readme", "test_jobs")

install_import_hook("assay", "beartype.beartype")
# no deadline: how long an example takes says nothing on a machine that others use too
settings.register_profile("assay", deadline=None, derandomize=True)
settings.load_profile("assay")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests by file, and those that start Ray in one group, begun first."""
    items.sort(key=lambda item: item.path.stem not in RAY)
    for item in items:
        name = "ray" if item.path.stem in RAY else item.path.stem
        item.add_marker(pytest.mark.xdist_group(name))
