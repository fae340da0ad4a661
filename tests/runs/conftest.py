"""Machines that share a storage on S3, each with a cache of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from assay.runs.remote import folder_of


@pytest.fixture
def machine(
    s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """A function that changes to a machine with a cache of its own; gives its folder of the run."""

    def change(name: str) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        folder = folder_of(s3("runs")) / "toy-1"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return change
