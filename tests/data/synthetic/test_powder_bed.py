"""What is planted is where the truth says; layers of one build are alike, and builds are not."""

import dataclasses
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from assay.data.synthetic.powder_bed import LayersConfig, draw_layer, draw_layers
from assay.errors import ConfigError

CONFIG = LayersConfig()
TINY = LayersConfig(num_builds=2, layers_per_build=2)
ALL = [(build, layer) for build in range(6) for layer in range(8)]


@pytest.fixture(scope="module")
def drawn():
    return {(build, layer): draw_layer(CONFIG, build, layer) for build, layer in ALL}


def test_images_and_their_truth_are_written_once(tmp_path: Path):
    draw_layers(tmp_path, TINY)
    for kind in ("layers", "truth"):
        assert len([*(tmp_path / kind).rglob("*.png")]) == 4
    for build, layer in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        name = f"build_{build + 1:02d}/layer_{layer + 1:03d}.png"
        expected = draw_layer(TINY, build, layer)
        pixels = cv2.imread(str(tmp_path / "layers" / name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pixels, expected.pixels)
        stored = cv2.imread(str(tmp_path / "truth" / name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, 255 * expected.truth.astype(np.uint8))

    mask = next((tmp_path / "truth").rglob("*.png"))
    mask.unlink()
    draw_layers(tmp_path, TINY)
    assert not mask.exists()
    with pytest.raises(ConfigError, match="another config"):
        draw_layers(tmp_path, dataclasses.replace(TINY, seed=1))


def test_an_interrupted_drawing_is_taken_up(tmp_path: Path):
    draw_layers(tmp_path, TINY)
    (tmp_path / "truth.json").unlink()
    file = next(tmp_path.rglob("*.png"))
    content = file.read_bytes()
    file.write_bytes(b"half")
    draw_layers(tmp_path, TINY)
    assert file.read_bytes() == content


def test_a_layer_depends_on_its_own_key_alone(drawn):
    more = dataclasses.replace(CONFIG, num_builds=50, layers_per_build=90)
    alone = draw_layer(more, 2, 5)
    assert np.array_equal(alone.pixels, drawn[2, 5].pixels)
    assert np.array_equal(alone.truth, drawn[2, 5].truth)
    others = [drawn[2, 6], drawn[3, 5], draw_layer(dataclasses.replace(CONFIG, seed=1), 2, 5)]
    assert not any(np.array_equal(other.pixels, alone.pixels) for other in others)


@pytest.mark.parametrize("size_px", [192, 256, 384])
def test_the_truth_is_where_the_defects_are(size_px):
    """With and without contrast, the same layer differs at the planted defects and nowhere else."""
    config = LayersConfig(size_px=size_px, clean_share=0.0)
    for build in range(4):
        layer = draw_layer(config, build, 1)
        flat = draw_layer(dataclasses.replace(config, contrast=0.0), build, 1)
        assert np.array_equal(layer.truth, flat.truth)
        assert layer.truth.any()
        difference = np.abs(layer.pixels.astype(int) - flat.pixels)
        near = cv2.dilate(layer.truth.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        assert difference[~near].max() == 0
        components = cv2.connectedComponents(layer.truth.astype(np.uint8))[1]
        for component in range(1, components.max() + 1):
            assert difference[components == component].mean() > 6  # faint, but there


def test_defects_are_darker_than_what_is_around_them(drawn):
    steps = []
    for layer in drawn.values():
        truth = layer.truth.astype(np.uint8)
        near, far = (cv2.dilate(truth, np.ones((side, side), np.uint8)) for side in (5, 15))
        if truth.any():
            ring = (far > 0) & (near == 0)
            steps.append(float(layer.pixels[ring].mean()) - float(layer.pixels[layer.truth].mean()))
    assert np.mean(steps) > 15
    assert np.mean(np.array(steps) > 0) > 0.9


def test_about_a_quarter_is_clean_and_the_rest_is_sparsely_marked(drawn):
    shares = np.array([layer.truth.mean() for layer in drawn.values()])
    clean = (shares == 0).sum()
    assert abs(clean - 12) <= 3 * np.sqrt(48 * 0.25 * 0.75)
    assert 0.01 < shares.mean() < 0.04
    assert shares.max() < 0.2
    none, every = (
        [draw_layer(dataclasses.replace(CONFIG, clean_share=share), 0, layer) for layer in range(4)]
        for share in (1.0, 0.0)
    )
    assert not any(layer.truth.any() for layer in none)
    assert all(layer.truth.any() for layer in every)


def test_layers_of_a_build_are_near_duplicates_and_those_of_two_builds_are_not(drawn):
    """Correlation of the images without their grain."""
    smooth = {
        key: cv2.GaussianBlur(layer.pixels, (0, 0), 4).ravel().astype(float)
        for key, layer in drawn.items()
    }

    def likeness(pairs):
        return np.array([np.corrcoef(smooth[a], smooth[b])[0, 1] for a, b in pairs])

    adjacent = likeness([((b, i), (b, i + 1)) for b in range(6) for i in range(7)])
    between = likeness([((a, 3), (b, 3)) for a, b in combinations(range(6), 2)])
    assert np.median(adjacent) > 0.85
    assert np.median(adjacent) > np.median(between) + 0.3


def test_some_defects_last_for_layers(drawn):
    """Far more defect pixels than chance are defect pixels in the next layer, too."""
    pairs = [
        (drawn[b, i].truth, drawn[b, i + 1].truth)
        for b, i in ALL
        if i < 7 and drawn[b, i].truth.any() and drawn[b, i + 1].truth.any()
    ]
    both = sum((truth & later).sum() for truth, later in pairs)
    chance = sum(truth.mean() * later.sum() for truth, later in pairs)
    assert both > 5 * chance
