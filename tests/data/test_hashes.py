import os
import sqlite3
from pathlib import Path

import pytest

from assay.data.hashes import content_hashes
from assay.errors import ManifestError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "hashes.sqlite"


def put(root, *names):
    """Write files of different contents."""
    for name in names:
        (root / name).write_bytes(f"bytes of {name}".encode())


def test_equal_bytes_have_equal_hashes_under_any_name(tmp_path, cache):
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.png")]
    for path, content in zip(paths, (b"same", b"same", b"other"), strict=True):
        path.write_bytes(content)
    png, jpg, other = content_hashes(paths, cache)
    assert png == jpg != other
    assert len(png) == 32
    assert int(png, 16) >= 0


def test_unchanged_files_are_not_read_again(tmp_path, cache):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    put(tmp_path, "a.png", "b.png")
    true = content_hashes(paths, cache)
    planted = "0" * 32
    with sqlite3.connect(cache) as database:
        database.execute("UPDATE files SET content = ?", (planted,))
    database.close()
    assert content_hashes(paths, cache) == [planted, planted]
    # of the same size, but written later
    paths[0].write_bytes(paths[1].read_bytes())
    os.utime(paths[0], ns=(0, 1_000_000_000))
    assert content_hashes(paths, cache) == [true[1], planted]
    # of the same time, but longer
    stat = paths[1].stat()
    paths[1].write_bytes(b"longer than it was before")
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = content_hashes(paths, cache)
    assert changed[0] == true[1]
    assert changed[1] not in (*true, planted)


def test_a_later_run_adds_only_what_is_new(tmp_path, cache):
    put(tmp_path, "a.png", "b.png")
    first = content_hashes([tmp_path / "a.png"], cache)
    both = content_hashes([tmp_path / "b.png", tmp_path / "a.png"], cache)
    assert both[1:] == first
    assert both[0] != first[0]
    with sqlite3.connect(cache) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (2,)
    database.close()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails to read")
def test_a_file_that_fails_to_read_is_named(tmp_path, cache):
    (tmp_path / "a.png").symlink_to("/proc/self/mem")
    with pytest.raises(ManifestError, match=r"a\.png cannot be read"):
        content_hashes([tmp_path / "a.png"], cache)
