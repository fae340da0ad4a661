"""Files of others: copied once, known by their SHA-256, or refused."""

import hashlib

import pytest

from assay import fetch as module
from assay.errors import ConfigError
from assay.fetch import fetch

CONTENT = b"weights" * 999
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch, serve_folder):
    """Serve a folder by HTTP; return the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.pth").write_bytes(CONTENT)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return folder, serve_folder(folder)


def copies(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_of_the_web_is_copied_once(server, tmp_path):
    folder, address = server
    path = fetch(f"{address}/a.pth", SHA256)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache" / SHA256 / "a.pth"
    (folder / "a.pth").unlink()
    assert fetch(f"{address}/a.pth", SHA256) == path
    path.write_bytes(b"changed")
    with pytest.raises(ConfigError, match=f"asks for {SHA256}"):
        fetch(f"{address}/a.pth", SHA256)


def test_another_file_than_was_meant_is_refused_and_not_kept(server, tmp_path):
    _, address = server
    with pytest.raises(ConfigError, match=rf"a.pth has the SHA-256 {SHA256} and --x asks for 0000"):
        fetch(f"{address}/a.pth", "0" * 64, "--x")
    with pytest.raises(ConfigError, match=r"by its SHA-256 only.*; give --x\."):
        fetch(f"{address}/a.pth", "", "--x")
    with pytest.raises(ConfigError, match="by its SHA-256 only"):
        fetch(address.replace("http", "HTTP"), "")
    assert copies(tmp_path / "cache") == []


def test_a_file_of_a_store_needs_no_sha256(server, tmp_path):
    folder, _ = server
    (folder / "a.gz").write_bytes(CONTENT)  # not taken apart for its name
    path = fetch((folder / "a.gz").as_uri(), "")
    assert path == tmp_path / "cache" / SHA256 / "a.gz"
    assert path.read_bytes() == CONTENT
    assert copies(tmp_path / "cache") == ["a.gz"]


def test_what_cannot_be_had_is_said(server, tmp_path, monkeypatch):
    folder, address = server
    for uri in (
        f"{address}/b.pth",
        "http://127.0.0.1:9/a.pth",
        "http://[",
        (folder / "b.pth").as_uri(),
        "ftp://127.0.0.1/a.pth",
    ):
        with pytest.raises(ConfigError, match=r"cannot be fetched|no address that can be used"):
            fetch(uri, SHA256)
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="larger than"):
        fetch(f"{address}/a.pth", SHA256)
    assert copies(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a?x=/../../b", "..%2f..%2fb", "~", ""])
def test_a_copy_lies_below_the_cache_whatever_it_is_called(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "_copy", lambda _, path: path.write_bytes(CONTENT) and SHA256)
    path = fetch(f"https://host/{name}", SHA256)
    assert path.resolve().parent == tmp_path / "cache" / SHA256
