import os

import numpy as np
import pyarrow.csv
import pytest

from assay.data.images.decode import read, write_png
from assay.data.layers import LayerConfig, collect, stack
from assay.data.manifest import DataConfig, read_manifest
from assay.errors import ManifestError

RNG = np.random.default_rng(0)
PLANES = {letter: RNG.integers(0, 65536, (6, 7)).astype(np.uint16) for letter in "abc"}


def build(root, *names, letters="abc", suffix=".PNG"):
    for name in names:
        for letter in letters:
            write_png(root / f"{name}{letter}{suffix}", PLANES[letter])
    return root


def rows(path):
    return pyarrow.csv.read_csv(path).to_pydict()


def test_pictures_after_the_laser(tmp_path):
    root = build(tmp_path / "in", "m1/Layer0010", "m2/Layer0011")
    (root / "m1" / "notes_b.txt").touch()
    table = rows(collect(root, LayerConfig(channels="b"), tmp_path / "out"))
    assert table == {
        "image": [str(root / "m1/Layer0010b.PNG"), str(root / "m2/Layer0011b.PNG")],
        "id": ["m1/Layer0010b.PNG", "m2/Layer0011b.PNG"],
        "build": ["m1", "m2"],
        "layer": [10, 11],
    }


def test_every_picture(tmp_path):
    root = build(tmp_path / "plate", "5", "last_")
    table = rows(collect(root, LayerConfig(), tmp_path / "out"))
    assert len(table["image"]) == 6
    assert set(table["build"]) == {"plate"}
    assert table["layer"] == [5, 5, 5, None, None, None]


def test_hidden_pictures_are_none_and_loops_are_refused(tmp_path):
    root = build(tmp_path / "in", "m1/1", ".thumbnails/1", "m1/._2")
    table = rows(collect(root, LayerConfig(channels="b"), tmp_path / "out"))
    assert table["id"] == ["m1/1b.PNG"]
    (root / "m1" / "again").symlink_to("..")
    with pytest.raises(ManifestError, match="remove the link"):
        collect(root, LayerConfig(channels="b"), tmp_path / "out")
    with pytest.raises(ManifestError, match="is a file; give a folder"):
        collect(root / "m1" / "1b.PNG", LayerConfig(), tmp_path / "out")


def test_triplets_keep_their_order_and_bits(tmp_path):
    root = build(tmp_path / "in", "m/1", "m/2", suffix=".png")
    write_png(root / "m" / "recoater.png", PLANES["a"])
    path = collect(root, LayerConfig(channels="triplet"), tmp_path / "out")
    table = rows(path)
    assert table["id"] == ["m/1", "m/2"]
    for image in table["image"]:
        pixels = read(path.parent / image)
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, np.dstack([PLANES[letter] for letter in "abc"]))


def test_a_stacked_image_is_made_again_only_when_a_picture_changed(tmp_path):
    root = build(tmp_path / "in", "m/1")
    table = collect(root, LayerConfig(channels="triplet"), tmp_path / "out")
    stacked = tmp_path / "out" / rows(table)["image"][0]
    first = stacked.stat()
    collect(root, LayerConfig(channels="triplet"), tmp_path / "out")
    assert stacked.stat().st_ino == first.st_ino
    write_png(root / "m" / "1b.PNG", PLANES["a"])
    copied = first.st_mtime - 3600  # as a copy keeps the time of what it is a copy of
    os.utime(root / "m" / "1b.PNG", (copied, copied))
    collect(root, LayerConfig(channels="triplet"), tmp_path / "out")
    assert np.array_equal(read(stacked)[:, :, 1], PLANES["a"])


def test_8_bits_stay_8_and_are_stretched_beside_16(tmp_path):
    paths = [tmp_path / f"{letter}.png" for letter in "abc"]
    low = (PLANES["a"] >> 8).astype(np.uint8)
    for path in paths:
        write_png(path, low)
    assert stack(paths).dtype == np.uint8
    write_png(paths[1], PLANES["b"])
    assert np.array_equal(stack(paths)[:, :, 2], low * np.uint16(257))


@pytest.mark.parametrize("channels", ["all", "b", "triplet"])
def test_a_manifest_reads_the_table(tmp_path, channels):
    root = build(tmp_path / "in", "m1/1", "m1/2", "m2/1")
    for number, path in enumerate(sorted(root.rglob("*.PNG"))):
        write_png(path, PLANES["a"] + np.uint16(number))
    table = collect(root, LayerConfig(channels=channels), tmp_path / "out")
    config = DataConfig(root=table, label="build", group=("build",), domains=("build",))
    manifest = read_manifest(config, tmp_path / "cache" / "hashes.sqlite")
    assert len(manifest) == (9 if channels == "all" else 3)
    assert set(manifest.column("group")) == {"m1", "m2"}


def test_an_incomplete_triplet_names_the_missing_picture(tmp_path):
    root = build(tmp_path / "in", "m/1", "m/2")
    (root / "m" / "2c.PNG").unlink()
    with pytest.raises(ManifestError, match=r"has 0 of 'c' \(m/2c\.PNG\)"):
        collect(root, LayerConfig(channels="triplet"), tmp_path / "out")


def test_two_pictures_of_a_letter_are_refused(tmp_path):
    root = build(tmp_path / "in", "1")
    build(root, "1", letters="a", suffix=".tif.png")
    build(root, "1", letters="b", suffix=".png")
    with pytest.raises(ManifestError, match="has 2 of 'b'"):
        collect(root, LayerConfig(channels="triplet"), tmp_path / "out")


def test_triplets_of_two_sizes_are_refused(tmp_path):
    root = build(tmp_path / "in", "1")
    write_png(root / "1c.PNG", PLANES["c"][:4])
    with pytest.raises(ManifestError, match="7 x 4 and 7 x 6"):
        collect(root, LayerConfig(channels="triplet"), tmp_path / "out")


@pytest.mark.parametrize("channels", ["all", "b", "triplet"])
def test_a_folder_without_pictures_is_refused(tmp_path, channels):
    with pytest.raises(ManifestError, match=channels):
        collect(tmp_path, LayerConfig(channels=channels), tmp_path / "out")


def test_stacked_images_below_the_root_are_not_collected(tmp_path):
    root = build(tmp_path, "m/1a")
    first = rows(collect(root, LayerConfig(channels="triplet"), root / "out"))
    assert rows(collect(root, LayerConfig(channels="triplet"), root / "out")) == first
