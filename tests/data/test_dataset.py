"""The rows of a manifest as a task sees them, against what its columns say."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import DataConfig, Manifest, read_manifest

LABELS, LAMPS, SIZES = ("crack", "good", "pore"), ("dim", "bright"), ("9", "10", "11")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose names say everything, and a mask beside each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(12):
        label, lamp, size = LABELS[index % 3], LAMPS[index % 2], SIZES[index % 3 - 1]
        path = root / "images" / lamp / label / f"{size}-{index // 4}-{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
        mask = root / "masks" / f"{index:02d}.png"
        mask.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(mask), np.full((20, 30), 1 + index % 2, np.uint8))
    return root


def manifest_of(folder: Path, keep: tuple[str, ...] = ("size", "view")) -> Manifest:
    config = DataConfig(
        root=folder / "images",
        patterns=("{lamp}/{label}/{size}-{part}-{view}",),
        group=("label", "part"),
        domains=("lamp",),
        keep=keep,
    )
    return read_manifest(config, folder / "hashes.sqlite")


def dataset_of(manifest: Manifest, folder: Path, train: np.ndarray | None = None) -> Dataset:
    store = Store(str(folder / "store"))
    for content, file in manifest.files.items():
        store.build(content, Path(file))
    return Dataset.of(manifest, Pixels(store, manifest.column("content"), manifest.masks), train)


@given(st.lists(st.text(max_size=3)))
def test_a_column_is_its_texts_numbered(texts: list[str]) -> None:
    column = Column.of(texts)
    assert [column.values[code] for code in column.codes] == texts
    assert column.values == tuple(sorted(set(texts)))
    # as numpy numbers them, which sorts by code point as Python does, but strips NULs
    if not any("\0" in text for text in texts):
        np.testing.assert_array_equal(column.codes, np.unique(texts, return_inverse=True)[1])


def test_every_column_of_every_row_is_what_its_name_says(folder: Path) -> None:
    manifest = manifest_of(folder)
    dataset = dataset_of(manifest, folder, np.array([3, 1]))
    assert len(dataset) == 12
    assert dataset.classes == LABELS
    assert dataset.mask_classes == ()
    assert dataset.domains.keys() == {"lamp"}
    assert dataset.columns.keys() == {"size", "view"}
    assert dataset.columns["size"].values == ("10", "11", "9")  # text, not numbers
    assert dataset.domains["lamp"].values == ("bright", "dim")
    np.testing.assert_array_equal(dataset.train, [3, 1])
    for row, name in enumerate(manifest.column("id")):
        lamp, label, rest = name.removesuffix(".png").split("/")
        size, part, view = rest.split("-")
        assert dataset.classes[dataset.truth[row]] == label
        assert dataset.group.values[dataset.group.codes[row]] == f"{label}/{part}"
        assert dataset.domains["lamp"].values[dataset.domains["lamp"].codes[row]] == lamp
        for column, text in (("size", size), ("view", view)):
            assert dataset.columns[column].values[dataset.columns[column].codes[row]] == text
        expected = cv2.imread(str(folder / "images" / name))[..., ::-1]
        np.testing.assert_array_equal(dataset.pixels[row].pixels, expected)


def test_without_train_nothing_can_be_fitted(folder: Path) -> None:
    assert dataset_of(manifest_of(folder), folder).train.shape == (0,)


def test_labels_and_masks_stand_side_by_side(folder: Path) -> None:
    manifest = manifest_of(folder)
    numbers = [int(view) for view in manifest.column("column.view")]
    paths = [folder / "masks" / f"{number:02d}.png" for number in numbers]
    masked = manifest.with_masks({"label": paths}, ["void", "edge"], folder / "hashes.sqlite")
    dataset = dataset_of(masked, folder)
    assert dataset.classes == LABELS
    assert dataset.mask_classes == ("void", "edge")
    np.testing.assert_array_equal(dataset.truth, manifest.truth)
    labels = [name.split("/")[1] for name in manifest.column("id")]
    assert [dataset.classes[index] for index in dataset.truth] == labels
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(dataset.pixels.mask(row, "label"), 1 + number % 2)
    # rows that are taken keep both
    few = masked.take([5, 2])
    assert few.mask_classes == ["void", "edge"]
    assert few.column("column.view") == [manifest.column("column.view")[row] for row in (5, 2)]


def test_masks_without_labels_leave_the_classes_empty(folder: Path) -> None:
    config = DataConfig(root=folder / "images", patterns=("{lamp}/{kind}/{name}",), label="")
    manifest = read_manifest(config, folder / "hashes.sqlite")
    dataset = dataset_of(manifest, folder)
    assert dataset.classes == ()
    np.testing.assert_array_equal(dataset.truth, np.zeros(12, np.int32))


def test_what_is_kept_is_part_of_the_data(folder: Path) -> None:
    manifests = [manifest_of(folder, keep) for keep in ((), ("size",), ("size", "view"))]
    assert len({manifest.fingerprint for manifest in manifests}) == 3
    assert manifests[0].columns == []
    assert manifest_of(folder).fingerprint == manifests[2].fingerprint


def test_it_pickles_small_however_much_was_looked_at(folder: Path) -> None:
    dataset = dataset_of(manifest_of(folder), folder)
    before = len(pickle.dumps(dataset))
    for row in range(len(dataset)):
        assert dataset.pixels[row].pixels.any()
    text = pickle.dumps(dataset)
    assert len(text) == before
    assert len(text) < 1000 + 200 * len(dataset)  # an image has 1800 bytes
    again = pickle.loads(text)
    np.testing.assert_array_equal(again.truth, dataset.truth)
    np.testing.assert_array_equal(again.pixels[7].pixels, dataset.pixels[7].pixels)
