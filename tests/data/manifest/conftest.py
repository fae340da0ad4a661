"""Folders and tables of images whose bytes mean nothing."""

import pytest

from assay.data.manifest import read_manifest
from assay.errors import ManifestError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "hashes.sqlite"


@pytest.fixture(scope="session")
def put():
    """Writes files of different contents; the manifest hashes bytes and decodes nothing."""

    def write(root, *names):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"bytes of {name}".encode())
        return root

    return write


@pytest.fixture(scope="session")
def table_of():
    """Writes a table into a folder."""

    def write(folder, header, *lines):
        path = folder / "images.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def layout():
    """How the names of printed parts are read."""
    return {
        "patterns": (
            "{label}/{design}/Device_{device}_Print_{print}_{view}",
            "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}",
        ),
        "group": ("label", "design", "print"),
        "domains": ("design",),
    }


@pytest.fixture(scope="session")
def parts():
    """Lists names of printed parts, below each of some levels."""
    return lambda levels=("",): [
        f"{level}Stratasys-{device}/{design}/Device_{device}_Print_{print_}_{view}.jpg"
        for level in levels
        for device in (1, 6)
        for design in ("Clip", "Plug")
        for print_ in (("001", "002") if level != "val/" else ("003",))
        for view in ("001", "002")
    ]


@pytest.fixture(scope="session")
def refusal(sentence_of):
    """The one sentence by which data are refused."""
    return lambda config, cache: sentence_of(ManifestError, read_manifest, config, cache)
