"""What makes two manifests the same data."""

import shutil

import pytest

from assay.data.manifest import DataConfig, read_manifest


@pytest.fixture
def fingerprint_of(layout):
    """The fingerprint of a folder of printed parts."""

    def read(root, cache, **options):
        return read_manifest(DataConfig(root=root, **(layout | options)), cache).fingerprint

    return read


def test_the_fingerprint_does_not_depend_on_where_the_data_lies(
    fingerprint_of, parts, put, tmp_path, cache
):
    root = put(tmp_path / "here", *parts(("train/", "val/")))
    before = fingerprint_of(root, cache)
    there = shutil.copytree(root, tmp_path / "far" / "there")
    assert fingerprint_of(there, tmp_path / "other" / "cache") == before


@pytest.mark.parametrize("prefix", ["", "./", "{folder}/"])
def test_the_same_table_elsewhere_is_the_same_data(put, table_of, tmp_path, cache, prefix):
    manifests = []
    for name, spelt in (("one", ""), ("two", prefix)):
        folder = put(tmp_path / name, "1.png", "2.png")
        start = spelt.format(folder=folder)
        path = table_of(folder, "image,label", f"{start}1.png,a", f"{start}2.png,b")
        manifests.append(read_manifest(DataConfig(root=path), cache))
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[0].column("group") == manifests[1].column("group")


def test_the_order_of_a_tables_rows_decides_nothing(put, table_of, tmp_path, cache):
    put(tmp_path, *"abcd")
    lines = ["c,1,x", "a,2,y", "d,1,x", "b,2,y"]
    manifests = [
        read_manifest(
            DataConfig(root=table_of(tmp_path, "image,label,g", *order), group=("g",)), cache
        )
        for order in (lines, sorted(lines), lines[::-1])
    ]
    assert len({m.fingerprint for m in manifests}) == 1
    assert manifests[0].table == manifests[1].table == manifests[2].table
    assert manifests[0].take([3, 0]).fingerprint != manifests[0].take([0, 3]).fingerprint


def test_the_fingerprint_tells_every_kind_of_change(fingerprint_of, put, tmp_path, cache):
    names = ["train/A/Clip/Device_1_Print_1_1.jpg", "train/B/Clip/Device_2_Print_1_1.jpg"]

    def of(folder, *renamed, content=b"x", **options):
        root = put(tmp_path / folder, *names)
        for old, new in renamed:
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)
            if not any((root / "train" / "A").rglob("*.jpg")):
                shutil.rmtree(root / "train" / "A")
        sorted(root.rglob("*.jpg"))[0].write_bytes(content)
        return fingerprint_of(root, cache, **options)

    fingerprints = [
        of("same"),
        of("content", content=b"y"),
        of("label", (names[0], "train/C/Clip/Device_1_Print_1_1.jpg")),
        of("group", (names[0], "train/A/Clip/Device_1_Print_2_1.jpg")),
        of("domain", (names[0], "train/A/Plug/Device_1_Print_1_1.jpg")),
        of("split", (names[0], "val/A/Clip/Device_1_Print_1_1.jpg")),
        of("no domain", domains=()),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert of("again") == fingerprints[0]
