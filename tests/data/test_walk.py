import errno
import os
import socket
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.walk import find_files, walk_folder, why_unreadable
from assay.errors import ManifestError

IMAGES = (".png", ".jpg")


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def names(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.fixture
def refusal(sentence_of):
    """The one sentence by which a folder is refused."""
    return lambda root: sentence_of(ManifestError, find_files, root, IMAGES)


LEFTOVERS = (
    ".ipynb_checkpoints/a-checkpoint.png",
    ".thumbnails/deep/b.png",
    ".Trash-1000/files/c.png",
    "__MACOSX/good/._a.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
    "lost+found/1.png",
    "$RECYCLE.BIN/2.png",
    "System Volume Information/3.png",
    "good/._a.png",
    "good/.hidden.png",
    "good/.DS_Store",
    "good/Thumbs.db",
    "good/desktop.ini",
)


def test_what_systems_leave_behind_is_left_out_and_counted_once(tmp_path, capsys):
    root = put(tmp_path, "good/a.PNG", "good/b.jpg", *LEFTOVERS)
    for _ in range(2):
        assert names(root, find_files(root, IMAGES)) == ["good/a.PNG", "good/b.jpg"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{len(LEFTOVERS)} hidden or system entries are left out below {root}" in said
    assert "$RECYCLE.BIN" in said  # the first by name


def test_images_that_are_not_read_are_counted_once_and_said(tmp_path, capsys):
    root = put(tmp_path, "good/a.png", "good/b.txt", "good/c.MPO", "bad/d.gif", "bad/e.png")
    put(root, "bad/.f.gif")
    for _ in range(2):
        assert names(root, find_files(root, IMAGES)) == ["bad/e.png", "good/a.png"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" below ")[0] for line in said] == [
        "1 hidden or system entry is left out",
        "1 other file is left out",
        "2 images are left out",
    ]
    assert "good/b.txt" in said[1]
    assert "bad/d.gif" in said[2]
    assert len(find_files(root)) == 5
    assert capsys.readouterr().err == ""


def test_only_names_below_the_root_are_looked_at(tmp_path, capsys):
    root = put(tmp_path / ".cache" / "lost+found", "a.png")
    assert names(root, find_files(root, IMAGES)) == ["a.png"]
    assert capsys.readouterr().err == ""


def test_all_files_count_where_no_suffix_is_asked_for(tmp_path):
    root = put(tmp_path, "b/x.txt", "a.png", "B/y", ".z")
    assert names(root, find_files(root)) == ["B/y", "a.png", "b/x.txt"]


@pytest.mark.parametrize("where", ["", "deep/er"])
def test_a_folder_that_cannot_be_read_is_named(refusal, tmp_path, monkeypatch, where):
    root = put(tmp_path, "good/a.png", f"scratch/{where}/b.png")
    locked = os.path.normpath(tmp_path / "scratch" / where)
    scandir = os.scandir

    def refuse(folder):
        if os.fspath(folder) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    text = refusal(root)
    assert locked in text
    assert "Permission denied" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody without rights")
def test_a_folder_without_rights_is_refused(refusal):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = put(Path(folder), "good/a.png", "scratch/b.png")
        root.chmod(0o755)
        (root / "scratch").chmod(0)
        os.seteuid(65534)
        try:
            assert str(root / "scratch") in refusal(root)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_a_link_to_a_folder_above_is_refused_at_once(refusal, tmp_path, target):
    root = put(tmp_path / "x", "a/1.png", "b/1.png")
    for number in range(2):
        (root / "a" / f"l{number}").symlink_to(target)
    text = refusal(root)
    assert str(root / "a" / "l0") in text
    assert "remove the link" in text


def test_links_back_by_way_of_other_folders_end_too(refusal, tmp_path):
    root = put(tmp_path / "x", "a/1.png")
    put(tmp_path / "other", "b/2.png")
    (root / "a" / "over").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root / "a")
    assert "remove the link" in refusal(root)


def test_folders_that_link_to_each_other_twice_are_no_exponential_walk(refusal, tmp_path):
    floors = [tmp_path / f"{i:02}" for i in range(40)]
    for floor in floors:
        put(floor, "x.png")
    for floor, below in pairwise(floors):
        (floor / "l1").symlink_to(below)
        (floor / "l2").symlink_to(below)
    text = refusal(floors[0])
    assert "one folder" in text
    assert "l1" in text
    assert "l2" in text


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path):
    put(tmp_path / "far", "c/2.png", "single.png")
    root = put(tmp_path / "x", "a/1.png")
    (root / "b").symlink_to(tmp_path / "far" / "c")
    (root / "s.png").symlink_to(tmp_path / "far" / "single.png")
    assert names(root, find_files(root, IMAGES)) == ["a/1.png", "b/2.png", "s.png"]


@pytest.mark.parametrize("name", ["a/broken.png", "scratch"])
def test_a_link_to_nothing_is_named(refusal, tmp_path, name):
    root = put(tmp_path, "a/1.png")
    (root / name).symlink_to(tmp_path / "unmounted")
    assert f"{root / name} is a link to nothing" in refusal(root)
    (root / name).unlink()
    (root / name).symlink_to(name.split("/")[-1])  # to itself
    assert str(root / name) in refusal(root)


def test_pipes_and_sockets_are_named_and_never_opened(refusal, tmp_path, monkeypatch):
    root = put(tmp_path, "a/1.png")
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "a" / "control")  # no image, and nobody's business
    assert "pipe.png is no regular file" in refusal(root)
    (root / "a" / "pipe.png").unlink()
    assert names(root, find_files(root, IMAGES)) == ["a/1.png"]
    monkeypatch.chdir(root)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert "s.png is no regular file" in refusal(root)


def test_names_that_are_no_utf8_are_named_in_letters_that_print(refusal, tmp_path):
    root = put(tmp_path, "good/a.png", "good/caf\udce9.txt")
    assert names(root, find_files(root, IMAGES)) == [
        "good/a.png"
    ]  # what is no image may be named so
    for name in ("good/caf\udce9.png", "Pr\udcfcf/a.png"):
        put(root, name)
        text = refusal(root)
        assert "no UTF-8" in text
        assert "\\udc" in text
        os.unlink(root / name)
        if name.startswith("Pr"):
            os.rmdir((root / name).parent)


def test_a_folder_named_as_an_image_is_entered_and_named_where_it_holds_none(refusal, tmp_path):
    root = put(tmp_path, "stack.png/0.png")
    assert names(root, find_files(root, IMAGES)) == ["stack.png/0.png"]
    (root / "empty.png").mkdir()
    assert "empty.png is a folder" in refusal(root)
    walk = walk_folder(root, IMAGES)
    assert names(root, walk.files) == ["stack.png/0.png"]
    assert names(root, [stranger.path for stranger in walk.strangers]) == ["empty.png"]


def test_deep_folders_are_walked(tmp_path):
    folder = tmp_path / "/".join("d" * 400)
    put(folder, "x.png")
    assert find_files(tmp_path, IMAGES) == [folder / "x.png"]


def test_why_a_path_cannot_be_read(tmp_path):
    put(tmp_path, "a.png")
    assert why_unreadable(tmp_path / "a.png") == ""
    assert why_unreadable(tmp_path) == "is a folder"
    assert why_unreadable(tmp_path / "b.png") == "does not exist"
    assert "cannot be looked at" in why_unreadable(tmp_path / ("x" * 300))
    for odd in ("a\0b", "a.png/b"):
        assert why_unreadable(tmp_path / odd)


parts = st.sampled_from(
    [
        "a",
        "B",
        "b.png",
        "c.JPG",
        ".h",
        ".h.png",
        "Thumbs.db",
        "x.txt",
        "ü.png",
        "u\u0308",
        "__MACOSX",
    ]
)


@settings(max_examples=40)
@given(st.lists(st.lists(parts, min_size=1, max_size=4), max_size=12))
def test_any_tree_is_what_another_walker_finds(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("tree")
    for names_ in tree:
        path = root.joinpath(*names_)
        if not path.exists() and not any(p.is_file() for p in path.parents):
            put(root, "/".join(names_))

    def counts(path):
        inner = path.relative_to(root).parts
        left_out = any(p.startswith(".") or p in ("Thumbs.db", "__MACOSX") for p in inner)
        return path.is_file() and path.suffix.lower() in IMAGES and not left_out

    walk = walk_folder(root, IMAGES)
    assert walk.files == sorted(filter(counts, root.rglob("*")))
    for stranger in walk.strangers:  # a folder named as an image, without one
        assert not any(map(counts, stranger.path.rglob("*")))
        assert stranger.path.is_dir()


def test_files_that_are_no_images_by_their_names_are_counted(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    others = ("a/IMG_0001", "a/0.png.bak", "a/scan.img", "a/print.mp4", "a/old.gif")
    for name in ("a/0.png", "a/0.json", *others):
        (tmp_path / name).write_bytes(b"x")
    assert find_files(tmp_path, (".png",)) == [tmp_path / "a/0.png"]
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(f" left out below {tmp_path}, first ") for line in said) == [
        (
            "1 image is",
            f" left out below {tmp_path}, first ",
            f"{tmp_path}/a/old.gif; files of this name are not read: convert or rename them if they count.",
        ),
        (
            "4 other files are",
            f" left out below {tmp_path}, first ",
            f"{tmp_path}/a/0.png.bak; by their names they are no images: rename them if they count.",
        ),
    ]
    find_files(tmp_path / "a")
    assert not capsys.readouterr().err
