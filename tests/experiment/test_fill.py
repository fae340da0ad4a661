"""Images that change or vanish between the scan and the read: none is stored under the name of another."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.errors import ImageError, StoreError
from assay.experiment.fill import fill


def painted(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 50, 3), level, np.uint8))


@pytest.fixture
def scan(tmp_path: Path) -> Callable[[], Manifest]:
    """A function that finds three grey images of levels 10, 20 and 30."""
    for number in (1, 2, 3):
        painted(tmp_path / "images" / f"{number}.png", 10 * number)
    data = DataConfig(
        root=tmp_path / "images", patterns=("{name}",), label="", group=(), domains=()
    )
    return lambda: read_manifest(data, tmp_path / "hashes.sqlite")


def test_an_image_that_changed_since_it_was_found_is_not_stored(tmp_path, scan) -> None:
    manifest, store = scan(), Store(str(tmp_path / "store"))
    painted(tmp_path / "images/2.png", 99)
    (tmp_path / "images/3.png").unlink()
    with pytest.raises(ImageError, match=r"2\.png changed after it was found.*\(2 of 3"):
        fill(manifest, store, "stop", parallel=False)
    changed, gone = fill(manifest, store, "skip", parallel=False)
    assert (changed.row, gone.row) == (1, 2)
    assert "changed after it was found" in changed.reason
    assert "No such file" in gone.reason
    painted(tmp_path / "images/3.png", 30)
    again = scan()
    assert fill(again, store, "stop", parallel=False) == []
    pixels = Pixels(store, again.column("content"))
    assert [int(pixels[row].pixels[0, 0, 0]) for row in range(3)] == [10, 99, 30]


def test_an_image_that_cannot_be_read_is_named_by_its_path(tmp_path, scan) -> None:
    (tmp_path / "images/2.png").write_bytes(b"no image")
    (bad,) = fill(scan(), Store(str(tmp_path / "store")), "skip", parallel=False)
    assert f"Image {tmp_path / 'images/2.png'} cannot be read" in bad.reason


def test_a_store_that_the_nodes_do_not_share_is_said_and_no_image_called_damaged(
    tmp_path, scan, monkeypatch
) -> None:
    def elsewhere(work, store, pieces, name):  # on a node that has a folder of its own there
        own = Store(str(tmp_path / "own"))
        yield from (work(own if number else store, piece) for number, piece in enumerate(pieces))

    monkeypatch.setattr("assay.experiment.fill.over_cluster", elsewhere)
    monkeypatch.setattr("assay.experiment.fill._images_per_task", lambda num: 1)
    with pytest.raises(StoreError, match=r"2 of 3 images .* not all nodes share this folder"):
        fill(scan(), Store(str(tmp_path / "store")), "stop", parallel=True)
