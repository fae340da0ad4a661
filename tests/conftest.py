"""For every test: shape annotations are checked, and hypothesis draws the same examples each time.

Two processes share the files, a file's tests staying together (its fixtures are made once); those
that wait for Ray come first, so that the others fill the time.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

LONGEST = ("test_ray", "test_readme", "test_jobs", "test_main", "test_distributed", "test_segment")

install_import_hook("assay", "beartype.beartype")
# no deadline: how long an example takes says nothing on a machine that others use too
settings.register_profile("assay", deadline=None, derandomize=True)
settings.load_profile("assay")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests by file, the longest files first."""

    def place(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=place)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
