import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data import hashes
from assay.data.hashes import EMPTY, content_hashes
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


def truth(path):
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_the_hash_of_an_empty_file(tmp_path, cache):
    (tmp_path / "a.png").touch()
    assert content_hashes([tmp_path / "a.png"], cache) == [EMPTY]


def test_what_is_no_file_is_named_and_not_opened(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nothing")
    reasons = {"pipe": "no regular file", "folder": "is a folder", "link": "link to nothing"}
    for name, reason in (reasons | {"none": "does not exist"}).items():
        with pytest.raises(ManifestError, match=rf"{name}\.png.*{reason}"):
            content_hashes([tmp_path / f"{name}.png"], cache)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Two files and the bytes of a cache that knows them."""
    folder = tmp_path_factory.mktemp("kept")
    put(folder, "a.png", "b.png")
    paths = [folder / "a.png", folder / "b.png"]
    content_hashes(paths, folder / "hashes.sqlite")
    return paths, (folder / "hashes.sqlite").read_bytes()


DAMAGE = {
    "cut short": lambda content: content[: len(content) // 2],
    "another file": lambda content: b"a text of somebody else's, longer than a header" * 100,
    "empty": lambda content: b"",
    "zeros": lambda content: content[:100] + bytes(len(content) - 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_set_aside_and_begun_anew(kept, tmp_path, capsys, damage):
    paths, content = kept
    cache = tmp_path / "hashes.sqlite"
    cache.write_bytes(DAMAGE[damage](content))
    assert content_hashes(paths, cache) == [truth(path) for path in paths]
    said = capsys.readouterr().err
    if damage == "empty":
        assert said == ""
    else:
        assert f"{cache} is damaged" in said
        assert (tmp_path / "hashes.sqlite.damaged").read_bytes() == DAMAGE[damage](content)
    with closing(sqlite3.connect(cache)) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (2,)


@settings(max_examples=60)
@given(st.data())
def test_no_damage_of_a_cache_is_a_traceback_or_lost_data(kept, tmp_path_factory, data):
    paths, content = kept
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        # not in a hash itself: one digit for another looks like a hash of another file
        if not any(truth(path).encode() in content[place - 40 : place + 80] for path in paths):
            damaged[place] ^= data.draw(st.integers(1, 255))
    cache = tmp_path_factory.mktemp("damaged") / "hashes.sqlite"
    cache.write_bytes(damaged)
    assert content_hashes(paths, cache) == [truth(path) for path in paths]


def test_a_database_of_somebody_elses_is_left_as_it_is(tmp_path, cache, capsys):
    put(tmp_path, "a.png")
    cache.parent.mkdir()
    with closing(sqlite3.connect(cache)) as database:
        database.execute("CREATE TABLE files (name TEXT)")
        database.commit()
    before = cache.read_bytes()
    assert content_hashes([tmp_path / "a.png"], cache) == [truth(tmp_path / "a.png")]
    assert cache.read_bytes() == before
    assert "no such column" in capsys.readouterr().err


def test_what_is_no_hash_is_not_believed(tmp_path, cache):
    put(tmp_path, "a.png")
    content_hashes([tmp_path / "a.png"], cache)
    for wrong in ("", "x" * 32, "ab", None, 7, b"0" * 32):
        with closing(sqlite3.connect(cache)) as database:
            database.execute("UPDATE files SET content = ?", (wrong,))
            database.commit()
        assert content_hashes([tmp_path / "a.png"], cache) == [truth(tmp_path / "a.png")]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, cache, capsys):
    put(tmp_path, "a.png")
    cache.mkdir(parents=True)  # a folder, where even root can write no file
    for _ in range(2):
        assert content_hashes([tmp_path / "a.png"], cache) == [truth(tmp_path / "a.png")]
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert said.count("\n") == 1
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "hashes.sqlite"
    assert content_hashes([tmp_path / "a.png"], below) == [truth(tmp_path / "a.png")]


def test_processes_may_begin_one_cache_at_once(tmp_path, cache):
    put(tmp_path, *(f"{i}.png" for i in range(200)))
    script = (
        "import sys; from pathlib import Path; from assay.data.hashes import content_hashes;"
        "print(*content_hashes(sorted(Path(sys.argv[1]).glob('*.png')), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(cache)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    expected = [truth(path) for path in sorted(tmp_path.glob("*.png"))]
    for process in started:
        printed, _ = process.communicate(timeout=120)
        assert (process.returncode, printed.split()) == (0, expected)


@pytest.mark.parametrize("begin", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])
def test_a_cache_that_another_process_keeps_is_done_without(
    tmp_path, cache, capsys, monkeypatch, begin
):
    """An exclusive lock keeps readers off, an immediate one writers alone; either is waited for once."""
    monkeypatch.setattr(hashes, "BUSY_S", 0.5)
    put(tmp_path, "a.png", "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    content_hashes(paths[:1], cache)
    with closing(sqlite3.connect(cache)) as other:
        other.execute(begin)
        assert content_hashes(paths, cache) == [truth(path) for path in paths]
    said = capsys.readouterr().err
    assert said.count("(database is locked)") == said.count("\n") == 1
    assert f"{cache} cannot be" in said
