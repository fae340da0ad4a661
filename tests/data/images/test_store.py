"""Entries in a folder, on a file system reached by URI, and in a node's copies of them."""

import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from assay.data.images import store as module
from assay.data.images.entry import entry_key, open_entry, page_of
from assay.data.images.store import Store
from assay.errors import ConfigError, ImageError, StoreError

CONTENT = "ab12" * 8
NOISE = np.random.default_rng(5).integers(0, 256, (150, 210, 3), dtype=np.uint8)


def written(folder: Path) -> Path:
    path = folder / "image.png"
    cv2.imwrite(str(path), NOISE[..., ::-1])
    return path


def built(folder: Path, content: str = CONTENT) -> Path:
    store = Store(str(folder / "store"))
    store.build(content, written(folder))
    return store.path(content)


def test_an_entry_that_exists_is_left_as_it_is(tmp_path):
    path = built(tmp_path)
    assert path == tmp_path / "store" / "ab" / f"{CONTENT}.pixels"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert Store(str(tmp_path / "store")).build(CONTENT, tmp_path / "no such file.png") == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_pages_of_a_file_are_entries_of_their_own(tmp_path):
    source, store = tmp_path / "stack.tif", Store(str(tmp_path / "store"))
    pages = [NOISE, NOISE[::-1]]
    with tifffile.TiffWriter(source) as out:
        for page in pages:
            out.write(page, photometric="rgb", metadata=None)
    with pytest.raises(ImageError, match="it holds 2 pages"):
        store.build(entry_key(CONTENT, None), source)
    for number, page in enumerate(pages):
        key = entry_key(CONTENT, number)
        assert page_of(key) == number
        store.build(key, source)
        np.testing.assert_array_equal(store.open(key).pixels, page)
    assert store.missing([CONTENT]) == [CONTENT]


def test_added_images_leave_entries_untouched(tmp_path):
    paths = [built(tmp_path, content=f"{i:02}" * 16) for i in range(3)]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]
    for i in range(6):
        built(tmp_path, content=f"{i:02}" * 16)
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths] == before
    assert len(list((tmp_path / "store").rglob("*.pixels"))) == 6


def test_an_image_that_cannot_be_read_leaves_nothing(tmp_path):
    source = written(tmp_path)
    source.write_bytes(source.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"image\.png"):
        Store(str(tmp_path / "store")).build(CONTENT, source)
    assert list(tmp_path.rglob("*.pixels*")) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    source = written(tmp_path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        Store(str(tmp_path / "store")).build(CONTENT, source)
    assert Store(str(tmp_path / "store")).missing([CONTENT, CONTENT]) == [CONTENT]
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="--store"):
        built(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from assay.data.images.entry import entry_key, open_entry, page_of
from assay.data.images.store import Store
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).build(sys.argv[2], Path(sys.argv[3]))
"""


def test_a_killed_writer_leaves_no_entry(tmp_path):
    source, store = written(tmp_path), tmp_path / "store"
    child = subprocess.run([sys.executable, "-c", KILLED, store, CONTENT, source], check=False)
    assert child.returncode == -signal.SIGKILL
    leftover = [p for p in store.rglob("*") if p.is_file()]
    assert leftover  # it was killed with all written but the name
    assert not list(store.rglob("*.pixels"))
    assert Store(str(store)).build(CONTENT, source) == NOISE[..., 0].size
    np.testing.assert_array_equal(Store(str(store)).open(CONTENT).levels[0], NOISE)


@pytest.fixture(params=["uri", "folder"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Make a store that is copied from: by its URI, or a folder (of a slow disk) with a cache."""
    folder = tmp_path / "far away"
    address = folder.as_uri() if request.param == "uri" else str(folder)
    return Store(address, str(tmp_path / "node"))


def test_an_entry_travels_to_the_store_and_back(remote: Store, tmp_path: Path) -> None:
    other = Store(remote.address, str(tmp_path / "other node"))
    assert remote.missing([CONTENT]) == [CONTENT]
    remote.build(CONTENT, written(tmp_path))
    assert other.missing([CONTENT, "f" * 32]) == ["f" * 32]
    far = [p for p in (tmp_path / "far away").rglob("*") if p.is_file()]
    assert [p.relative_to(tmp_path / "far away").as_posix() for p in far] == [
        f"ab/{CONTENT}.pixels"
    ]
    assert not other.path(CONTENT).exists()
    np.testing.assert_array_equal(other.open(CONTENT).levels[0], NOISE)
    assert other.path(CONTENT).read_bytes() == far[0].read_bytes()
    far[0].unlink()  # a node's own copy needs the store no more
    received = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(received.open(CONTENT).levels[1], other.open(CONTENT).levels[1])
    with pytest.raises(StoreError, match=r"no entry abab.*run the task again"):
        other.open("ab" * 16)


OPEN = """
import sys
from assay.data.images.entry import entry_key, open_entry, page_of
from assay.data.images.store import Store
address, cache, content = sys.argv[1:]
sys.stdin.readline()  # all at once
print(Store(address, cache).open(content).pixels.sum())
"""


def test_workers_of_a_node_fetch_the_same_entry_at_once(remote: Store, tmp_path: Path) -> None:
    remote.build(CONTENT, written(tmp_path))
    shutil.rmtree(remote.here)
    command = [sys.executable, "-c", OPEN, remote.address, remote.cache, CONTENT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert outputs == [f"{NOISE.sum()}\n"] * 4
    assert [p.name for p in remote.here.rglob("*") if p.is_file()] == [f"{CONTENT}.pixels"]


def test_copies_not_used_for_longest_make_room(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shrink the disk to three entries; the store itself loses nothing."""
    contents = [f"{i:02}" * 16 for i in range(5)]
    for content in contents:
        remote.build(content, written(tmp_path))
    shutil.rmtree(remote.here)
    size = next((tmp_path / "far away").rglob("*.pixels")).stat().st_size
    real, spare = shutil.disk_usage, module.SPARE_DISK

    def usage(folder: Path) -> object:
        used = sum(p.stat().st_size for p in remote.here.rglob("*.pixels"))
        return real(folder)._replace(free=spare + 3 * size + size // 2 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    mapped = []
    for content in (*contents[:3], contents[0], *contents[3:]):  # the first is used again
        mapped.append(remote.open(content))
        time.sleep(0.02)  # file systems count time in ticks
    copies = {p.stem for p in remote.here.rglob("*.pixels")}
    assert copies == {contents[0], *contents[3:]}
    np.testing.assert_array_equal(mapped[1].levels[0], NOISE)  # held open, though deleted
    assert remote.missing(contents) == []
    monkeypatch.setattr(module, "SPARE_DISK", spare + 4 * size)
    with pytest.raises(StoreError, match="--cache"):
        remote.open(contents[1])


def test_a_copy_cut_short_in_the_store_is_refused(remote: Store, tmp_path: Path) -> None:
    remote.build(CONTENT, written(tmp_path))
    shutil.rmtree(remote.here)
    far = next((tmp_path / "far away").rglob("*.pixels"))
    far.write_bytes(far.read_bytes()[:-5])
    with pytest.raises(StoreError, match="delete it and run again"):
        remote.open(CONTENT)


@pytest.mark.parametrize("address", ["ftp://host/x", "s3:/bucket://", "://"])
def test_an_address_that_cannot_be_used_is_named(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{address} is no address")):
        Store(address, str(tmp_path)).missing([CONTENT])


def test_an_entry_of_another_image_is_refused(tmp_path):
    store, contents = Store(str(tmp_path / "store")), [f"{i:032x}" for i in range(2)]
    for content, grey in zip(contents, (50, 200), strict=True):
        image = tmp_path / f"{grey}.png"
        cv2.imwrite(str(image), np.full((20, 30), grey, np.uint8))
        store.build(content, image)
    first, second = map(store.path, contents)
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    for content, other in (contents, contents[::-1]):
        with pytest.raises(StoreError, match=f"it is the entry of {other}"):
            store.open(content)
    # a file that a person names may bear any name
    assert open_entry(first).levels[0][:1, :1].max() == 200
