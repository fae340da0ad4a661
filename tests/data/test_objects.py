"""Images on a real S3 server: the same manifest and hashes as of local ones, copied once."""

from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from assay.data import objects
from assay.data.manifest import DataConfig, read_manifest
from assay.data.objects import local, restore, uri_of
from assay.errors import ManifestError
from assay.storage import reach


@pytest.fixture(autouse=True)
def _another_process():
    objects._fetch_folder.cache_clear()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of three files, a table, and a hidden file."""
    rng = np.random.default_rng(0)
    for label in "ab":
        for number in range(3):
            path = tmp_path / "images" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(1000 + number))
    (tmp_path / "images" / ".hidden").write_bytes(b"x")
    rows = [f"{label}/{number}.png,{label}" for label in "ab" for number in range(3)]
    (tmp_path / "images" / "table.csv").write_text("\n".join(["image,label", *rows]))
    return tmp_path / "images"


def put(folder: Path, address: str) -> None:
    files, root = reach(address)
    pafs.copy_files(
        str(folder), root, destination_filesystem=files, source_filesystem=pafs.LocalFileSystem()
    )


def write(address: str, name: str, content: bytes) -> None:
    files, root = reach(address)
    with files.open_output_stream(f"{root}/{name}") as file:
        file.write(content)


def test_a_path_knows_the_address_that_it_stands_for(s3, tmp_path):
    address = s3("set/images")
    assert uri_of(Path(address)) == address
    assert uri_of(Path("gs://bucket/x")) == "gs://bucket/x"
    assert uri_of(tmp_path) is None
    assert uri_of(Path("s3/x")) is None
    assert local(Path("x")) == Path.cwd() / "x"


def test_images_have_the_same_hashes_as_local_ones(s3, images, tmp_path):
    put(images, s3("set"))
    folder = local(Path(s3("set")))
    assert not (folder / ".hidden").exists()
    assert uri_of(folder / "a" / "0.png") == s3("set/a/0.png")
    assert local(folder) == folder
    manifests = [
        read_manifest(DataConfig(root=root), tmp_path / "hashes.sqlite")
        for root in (images, folder)
    ]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[0].column("content") == manifests[1].column("content")
    assert manifests[0].column("id") == manifests[1].column("id")


def test_a_table_comes_with_what_lies_beside_it(s3, images, tmp_path):
    put(images, s3("set"))
    table = local(Path(s3("set/table.csv")))
    manifests = [
        read_manifest(DataConfig(root=root), tmp_path / "hashes.sqlite")
        for root in (images / "table.csv", table)
    ]
    assert manifests[0].fingerprint == manifests[1].fingerprint


def test_only_what_was_changed_is_copied_again(s3, images, monkeypatch):
    put(images, s3("set"))
    folder = local(Path(s3("set")))
    write(s3("set"), "a/0.png", b"longer than before" * 100)
    files, root = reach(s3("set"))
    files.delete_file(f"{root}/b/2.png")
    copied, fetch = [], objects._fetch

    def noted(files, info, target, address):
        copied.append(info.base_name)
        fetch(files, info, target, address)

    monkeypatch.setattr(objects, "_fetch", noted)
    objects._fetch_folder.cache_clear()
    assert local(Path(s3("set"))) == folder
    assert copied == ["0.png"]
    assert (folder / "a/0.png").read_bytes() == b"longer than before" * 100
    assert not (folder / "b/2.png").exists()


def test_a_node_that_lacks_an_image_copies_it(s3, images):
    put(images, s3("set"))
    path = local(Path(s3("set"))) / "a" / "1.png"
    path.unlink()
    assert restore(path).read_bytes() == (images / "a/1.png").read_bytes()
    assert not restore(path.with_name("none.png")).exists()


@pytest.mark.parametrize("change", ["longer", "deleted"])
def test_what_changes_between_listing_and_reading_is_one_sentence(s3, images, monkeypatch, change):
    put(images, s3("set"))
    _files, root = reach(s3("set"))
    fetch = objects._fetch

    def changed(files, info, target, address):
        if info.base_name == "1.png":
            files.delete_file(info.path)
            if change == "longer":
                write(s3("set"), info.path.removeprefix(f"{root}/"), bytes(5000))
        fetch(files, info, target, address)

    monkeypatch.setattr(objects, "_fetch", changed)
    with pytest.raises(
        ManifestError, match=r"1\.png was changed or deleted while s3://.* was read"
    ):
        local(Path(s3("set")))
    assert not list((Path.home() / ".cache").rglob("1.png"))


def test_more_than_the_disk_holds_is_refused_before_anything_is_copied(s3, images, monkeypatch):
    put(images, s3("set"))
    monkeypatch.setattr("assay.storage.FREE_BYTES", 1 << 60)
    with pytest.raises(ManifestError, match=r"0\.00 GB of s3://.* are to be copied"):
        local(Path(s3("set")))
    assert not list((Path.home() / ".cache").rglob("*.png"))


def test_what_is_not_there_is_one_sentence(s3, s3_server):
    address = s3("none")
    for wrong in (address, address.replace("bucket-", "no-bucket-")):
        with pytest.raises(ManifestError, match="Nothing lies at s3://"):
            local(Path(wrong))
    with pytest.raises(ManifestError, match=r"cannot be used \(AWS Error NETWORK_CONNECTION"):
        local(Path(address.replace(s3_server, "127.0.0.1:1")))


def test_a_name_that_leads_elsewhere_is_refused(s3, images):
    put(images, s3("set"))
    write(s3("set"), "a\\b.png", b"x")
    with pytest.raises(ManifestError, match="is no path of a file below it"):
        local(Path(s3("set")))
