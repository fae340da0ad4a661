"""A pipe, a socket or a device in a file's place is refused by name: it is neither waited for nor read without end."""

import os
import socket

import pytest

from assay.bundle.card import read_card
from assay.bundle.load import load
from assay.bundle.registry import Registry
from assay.data.annotated import read_annotations
from assay.data.images.decode import probe
from assay.data.images.entry import open_entry
from assay.data.masks.coco import read_coco
from assay.data.masks.exports import read_export
from assay.data.masks.given import read_mask
from assay.data.masks.record import find_mask
from assay.data.masks.rules import MaskConfig
from assay.data.table import read_table
from assay.errors import AssayError, disk_faults
from assay.files import open_file, read_json, read_parquet, refuse_special, sha256_of
from assay.nn import weights
from assay.runs.metrics import read_metrics
from assay.runs.record import read_record
from assay.serve.application_file import read_applications
from assay.serve.client import Client
from assay.strict_yaml import read_yaml

READERS = {
    "run.json": lambda path: read_record(path.parent),
    "config.json": read_json,
    "metrics.jsonl": read_metrics,
    "split.parquet": lambda path: read_parquet(path, ("id",)),
    "bundle.json": lambda path: read_card(path.parent),
    "bundle/bundle.json": lambda path: load(path.parent.parent, "0" * 64),
    "segment/champion.json": lambda path: Registry(str(path.parents[1])).holder(
        "segment", "champion"
    ),
    "space.yaml": lambda path: read_yaml(path, "mend it"),
    "serve.yaml": read_applications,
    "table.csv": lambda path: read_table(path, ("image",)),
    "table.parquet": lambda path: read_table(path, ("image",)),
    "train.json": lambda path: read_annotations([path]),
    "coco.json": lambda path: read_coco(path, ("pore",)),
    "labelme.json": lambda path: read_export(path, ("pore",)),
    "voc.xml": lambda path: read_export(path, ("pore",)),
    "mask.png": lambda path: read_mask(path, MaskConfig()),
    "written.png": lambda path: find_mask(path, "key", path),
    "image.png": probe,
    "sent.png": lambda path: Client("http://127.0.0.1:1").judge("segment", path, alias="champion"),
    "stored.entry": open_entry,
    "weights.safetensors": weights._read,
    "weights.pth": sha256_of,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_device_by_name(tmp_path, name):
    """Of a device that is empty at once: a reader that opens it ends with another sentence, and no test waits."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/null")
    with pytest.raises(AssayError, match="no regular file but a pipe") as error, disk_faults():
        READERS[name](path)
    assert str(tmp_path) in str(error.value)


def bind(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [os.mkfifo, bind, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_sockets_and_devices_are_not_opened(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x")
    with pytest.raises(OSError, match="pipe, a socket or a device") as error:
        open_file(tmp_path / "x")
    assert error.value.filename == str(tmp_path / "x")


def test_what_is_a_file_by_way_of_a_link_is_opened_and_what_is_missing_is_its_readers(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("a")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"a"
    for path in (tmp_path, tmp_path / "none", "Line 3 of x", "\0"):
        refuse_special(path)
