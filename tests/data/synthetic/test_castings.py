"""What is planted is where the mask says; nothing but the defect tells the classes apart, but for the leak."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from assay.data.manifest import DataConfig, read_manifest
from assay.data.synthetic.castings import (
    SIZES,
    CastingsConfig,
    Planted,
    copy_casting,
    defect_of,
    draw_casting,
    draw_castings,
)
from assay.data.synthetic.defects import PLANT
from assay.data.synthetic.draw_once import TRUTH
from assay.errors import ConfigError

CONFIG = CastingsConfig(size_px=96)
TINY = CastingsConfig(size_px=64, num_train=24, num_test=12)
LEAKY = dataclasses.replace(TINY, leak=True, copies=4)


def read_planted(folder: Path) -> dict[str, Planted]:
    images = json.loads((folder / TRUTH).read_text())["images"]
    return {path: Planted(**planted) for path, planted in images.items()}


@pytest.fixture(scope="module")
def drawn():
    return [draw_casting(CONFIG, number) for number in range(120)]


def near(mask: np.ndarray, px: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * px + 1, 2 * px + 1), np.uint8)) > 0


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_mask_is_where_the_same_casting_without_its_defect_differs(size_px):
    config = dataclasses.replace(CONFIG, size_px=size_px)
    for number in range(0, 60, 2):
        casting, sound = draw_casting(config, number), draw_casting(config, number, planted=False)
        assert casting.truth.any()
        assert not sound.truth.any()
        difference = np.abs(casting.pixels.astype(int) - sound.pixels)
        assert difference[~near(casting.truth, 4)].max() == 0
        assert difference[casting.truth].mean() > 12
        assert (difference > 30).sum() < 3 * casting.truth.sum()


def test_kinds_and_sizes_come_equally_often_and_half_of_the_castings_are_sound():
    counts = Counter(defect_of(number) for number in range(60))
    assert counts[("", "")] == 30
    assert all(counts[kind, size] == 2 for kind in PLANT for size in SIZES)


def test_a_defect_grows_with_its_size(drawn):
    areas = {kind: {size: [] for size in SIZES} for kind in PLANT}
    for number in range(0, 120, 2):
        kind, size = defect_of(number)
        areas[kind][size].append(drawn[number].truth.sum())
    for kind in PLANT:
        small, medium, large = (np.mean(areas[kind][size]) for size in SIZES)
        assert 3 <= small < medium < large < 0.03 * 96**2


def test_kinds_differ_in_where_they_lie(drawn):
    """Chips lie at the edge, flash beyond it, the others on the casting; told by the mask alone."""
    reach = {kind: [] for kind in PLANT}
    for number in range(0, 120, 2):
        distance = np.hypot(*(np.argwhere(drawn[number].truth).mean(0) - 47.5))
        reach[defect_of(number)[0]].append(distance)
    means = {kind: np.mean(distances) for kind, distances in reach.items()}
    assert means["flash"] > means["chip"] > max(means["blow hole"], means["crack"])
    assert max(means["crack"], means["shrinkage"]) < 0.9 * means["chip"]


def test_sound_castings_have_no_mask_and_no_difference():
    casting = draw_casting(CONFIG, 7)
    assert not casting.truth.any()
    assert np.array_equal(casting.pixels, draw_casting(CONFIG, 7, planted=False).pixels)


def test_a_casting_depends_on_its_own_key_alone(drawn):
    more = dataclasses.replace(CONFIG, num_train=5000)
    assert np.array_equal(draw_casting(more, 4).pixels, drawn[4].pixels)
    other = draw_casting(dataclasses.replace(CONFIG, seed=1), 4)
    assert not np.array_equal(other.pixels, drawn[4].pixels)


def test_no_linear_rule_on_pixels_and_no_grey_level_tells_the_classes_apart():
    """Of 400 small castings: AUROC near 1/2, where .5 has a standard error of .04."""
    config = dataclasses.replace(CONFIG, size_px=64)
    pixels = np.stack([draw_casting(config, number).pixels for number in range(400)])
    truth = np.arange(400) % 2 == 0
    levels = {
        "mean": pixels.mean((1, 2)),
        "deviation": pixels.std((1, 2)),
        "darkest": pixels.min((1, 2)),
    }
    for name, level in levels.items():
        assert abs(roc_auc_score(truth, level) - 0.5) < 0.13, name
    flat = pixels.reshape(400, -1) / 255
    model = LogisticRegression(C=0.1, max_iter=500).fit(flat[:200], truth[:200])
    assert abs(model.score(flat[200:], truth[200:]) - 0.5) < 0.12


def test_the_folder_is_read_as_images_with_given_sets(tmp_path: Path):
    draw_castings(tmp_path, TINY)
    manifest = read_manifest(DataConfig(root=tmp_path / "images"), tmp_path / "hashes.sqlite")
    assert manifest.classes == ["defect", "sound"]
    assert Counter(manifest.declared_sets) == {"train": 24, "test": 12}
    planted = read_planted(tmp_path)
    assert sorted(planted) == sorted(manifest.column("id"))
    for path, label in zip(manifest.column("id"), manifest.column("label"), strict=True):
        mask = cv2.imread(str(tmp_path / "masks" / path), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(mask)) == ({0, 255} if label == "defect" else {0})
        assert (planted[path].kind in PLANT) == (label == "defect")
        expected = draw_casting(TINY, planted[path].casting)
        pixels = cv2.imread(str(tmp_path / "images" / path), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pixels, expected.pixels)
        assert np.array_equal(mask > 0, expected.truth)


def test_without_the_leak_no_casting_comes_twice_and_with_it_most_of_test_has_copies_in_train(
    tmp_path: Path,
):
    for config in (TINY, LEAKY):
        draw_castings(tmp_path / str(config.leak), config)
        planted = read_planted(tmp_path / str(config.leak))
        castings = {
            name: [p.casting for path, p in planted.items() if path.startswith(name)]
            for name in ("train", "test")
        }
        crossing = np.isin(castings["test"], castings["train"]).mean()
        sizes = Counter(castings["train"] + castings["test"])
        assert crossing == 0 if config is TINY else crossing > 0.75
        assert set(sizes.values()) == {4 if config.leak else 1}


def test_names_of_files_do_not_tell_the_casting():
    """Neighbours by name are copies no more often than by chance."""
    from assay.data.synthetic.castings import _list_images

    numbers = [number for _, number, _ in _list_images(dataclasses.replace(LEAKY, num_train=400))]
    same = np.mean(np.array(numbers[1:]) == numbers[:-1])
    assert same < 3 * 3 / 411


def test_a_copy_is_the_same_casting_turned_with_its_mask():
    """The defect of a copy is as dark, against the copy of the sound casting, as that of the first."""
    for number in range(0, 20, 2):
        casting, sound = draw_casting(CONFIG, number), draw_casting(CONFIG, number, planted=False)
        copy, plain = (copy_casting(CONFIG, number, 1, one) for one in (casting, sound))
        assert not np.array_equal(copy.pixels, casting.pixels)
        difference = np.abs(copy.pixels.astype(int) - plain.pixels)
        assert difference[copy.truth].mean() > 5 * difference[~near(copy.truth, 8)].mean()
        assert 0.7 < copy.truth.sum() / casting.truth.sum() < 1.5


def test_images_are_drawn_once_and_refused_of_another_config(tmp_path: Path):
    draw_castings(tmp_path, TINY)
    mask = next((tmp_path / "masks").rglob("*.png"))
    mask.unlink()
    draw_castings(tmp_path, TINY)
    assert not mask.exists()
    with pytest.raises(ConfigError, match="another config"):
        draw_castings(tmp_path, dataclasses.replace(TINY, seed=1))


def test_copies_are_idle_without_the_leak():
    assert "copies" in CONFIG.idle()
    assert not LEAKY.idle()
