"""Contents of two labels, pages, masks, and the settings of data."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from assay.config import from_dict
from assay.data.manifest import DataConfig, read_manifest
from assay.errors import ConfigError


def test_a_content_of_two_labels_is_refused_by_the_first_pair_and_their_number(
    put, refusal, table_of, tmp_path, cache
):
    root = put(
        tmp_path / "parts", *(f"{label}/{i}.png" for label in ("good", "scratch") for i in range(6))
    )
    for i in range(4):
        shutil.copy(root / "good" / f"{i}.png", root / "scratch" / f"copy{i}.png")
    for on_error in ("stop", "skip"):
        text = refusal(DataConfig(root=root, on_error=on_error), cache)
        assert "4 file content(s) have two labels" in text
        assert "'good/0.png' (good) and 'scratch/copy0.png' (scratch)" in text
    path = table_of(root, "image,label", "good/0.png,a", "scratch/copy0.png,b", "good/1.png,b")
    assert "'good/0.png' (a) and 'scratch/copy0.png' (b)" in refusal(DataConfig(root=path), cache)


def test_copies_of_one_label_and_empty_files_are_no_contradiction(put, tmp_path, cache):
    root = put(tmp_path, "a/1.png", "b/1.png")
    shutil.copy(root / "a" / "1.png", root / "a" / "copy.png")
    for label in "ab":
        (root / label / "empty.png").touch()  # damaged, which on_error decides
    assert len(read_manifest(DataConfig(root=root), cache)) == 5
    masks = DataConfig(root=put(tmp_path, "c/1.png"), label="", patterns=("{build}/{layer}",))
    assert len(read_manifest(masks, cache)) == 6


def test_settings_of_folders_have_no_effect_beside_a_table(table_of, tmp_path):
    assert set(DataConfig(root=table_of(tmp_path, "image,label")).idle()) == {"patterns"}
    assert set(DataConfig(root=tmp_path).idle()) == {"image"}
    assert not DataConfig(root=tmp_path / "none").idle()
    with pytest.raises(ConfigError, match=r"data\.patterns has 0 entries"):
        DataConfig(patterns=())


def test_on_error_is_one_of_two_words():
    with pytest.raises(ConfigError, match="'stop' or 'skip'"):
        from_dict(DataConfig, {"on_error": "ignore"})


@pytest.fixture
def masked(put):
    """Makes a manifest of images and a mask of each, whose pixels have these values."""

    def make(folder, values):
        for i, value in enumerate(values):
            put(folder, f"parts/b{i}/l.png")
            (folder / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"masks/{i}.png"), np.full((8, 8), value, np.uint8))
        config = DataConfig(
            root=folder / "parts", patterns=("{build}/{layer}",), label="", group=("build",)
        )
        manifest = read_manifest(config, folder / "hashes.sqlite")
        paths = [folder / f"masks/{i}.png" for i in range(len(values))]
        return manifest.with_masks({"label": paths}, ["pore", "streak"], folder / "hashes.sqlite")

    return make


def test_masks_bring_their_classes_and_their_files(masked, tmp_path):
    manifest = masked(tmp_path, [1, 2])
    assert manifest.mask_classes == ["pore", "streak"]
    assert manifest.classes == []
    assert manifest.truth.tolist() == [0, 0]
    keys = manifest.masks["label"]
    assert [manifest.files[key] for key in keys] == [
        str(tmp_path / f"masks/{i}.png") for i in (0, 1)
    ]
    assert len(manifest.files) == 4
    assert manifest.take([1]).masks == {"label": keys[1:]}
    assert manifest.take([1]).mask_classes == ["pore", "streak"]


def test_what_a_mask_holds_is_part_of_the_data_and_where_it_lies_is_not(masked, tmp_path):
    prints = []
    for name, values in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 1])):
        (tmp_path / name).mkdir()
        prints.append(masked(tmp_path / name, values).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_file_may_be_an_image_and_a_mask(tmp_path):
    """Their keys differ, so that each is stored as what it is."""
    cv2.imwrite(str(tmp_path / "x.png"), np.ones((8, 8), np.uint8))
    config = DataConfig(root=tmp_path, patterns=("{name}",), label="")
    manifest = read_manifest(config, tmp_path / "hashes.sqlite")
    both = manifest.with_masks(
        {"label": [tmp_path / "x.png"]}, ["pore"], tmp_path / "hashes.sqlite"
    )
    assert both.masks["label"] == [f"{manifest.column('content')[0]}-mask"]


def test_a_page_is_part_of_what_the_data_are(put, tmp_path, cache):
    put(tmp_path / "parts", "A/x.tif", "B/y.tif")
    config = DataConfig(root=tmp_path / "parts")
    plain, paged = read_manifest(config, cache), read_manifest(replace(config, page=1), cache)
    assert paged.column("content") == [f"{key}-page1" for key in plain.column("content")]
    assert paged.fingerprint != plain.fingerprint
