"""Planted copies are found beside their originals; unrelated images, and parts in one jig, are not."""

import cv2
import numpy as np
import pytest

from assay.data.images import decode
from assay.data.images.pyramid import ImagePyramid
from assay.data.near.pairs import near_pairs, turn_of
from assay.data.near.register import LIMIT, compare, register
from assay.data.near.sketch import Sketch, sketch, standardise, thumbnail
from assay.data.synthetic.parts import PartsConfig, draw_parts


def scenes(num, seed, height=180, width=240):
    """Draw unrelated images: noise of several scales."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        image = np.zeros((height, width), np.float32)
        for blur in (1.5, 5, 15):
            noise = rng.standard_normal((height, width)).astype(np.float32)
            image += blur**1.3 * cv2.GaussianBlur(noise, (0, 0), blur)
        grey = cv2.normalize(image, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)
        yield np.dstack([grey] * 3)


def rotated(image, angle):
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def recompressed(image, quality=60):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def stretched(image):
    """Cut 12 % off one side and bring it back to size, which changes the aspect."""
    height, width = image.shape[:2]
    return cv2.resize(image[:, : round(width * 0.88)], (width, height))


COPIES = {
    "recompressed": lambda image, i: recompressed(image, 50 + i),
    "brighter": lambda image, i: cv2.convertScaleAbs(image, alpha=1.1, beta=10),
    "darker": lambda image, i: (image * 0.5 + 10).astype(np.uint8),
    "smaller": lambda image, i: cv2.resize(
        image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA
    ),
    "turned": lambda image, i: np.ascontiguousarray(np.rot90(image[:, :: 1 - 2 * (i % 2)], i // 2)),
    "rotated": lambda image, i: rotated(image, 7 + 37 * i),
    "cropped": lambda image, i: image[round(image.shape[0] * 0.015 * i) :],
    "stretched": lambda image, i: stretched(image),
    "all": lambda image, i: recompressed(rotated(stretched(image)[:, ::-1], 36 * i) // 2 + 40, 70),
}


def found(images):
    entries = [ImagePyramid.of(np.ascontiguousarray(image)) for image in images]
    signs = np.stack([np.frombuffer(entry.signature, np.uint8) for entry in entries])
    names = [f"{i:03d}" for i in range(len(images))]
    pairs = near_pairs(names, signs, [sketch(thumbnail(entry)) for entry in entries])
    assert all(LIMIT <= pair.agreement <= 1 + 1e-6 for pair in pairs)
    return {(int(pair.first), int(pair.second)) for pair in pairs}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_and_nothing_else(kind):
    originals, others = list(scenes(10, seed=1)), list(scenes(10, seed=2))
    copies = [COPIES[kind](image, i) for i, image in enumerate(originals)]
    assert found([*originals, *others, *copies]) == {(i, 20 + i) for i in range(10)}


def test_unrelated_images_are_not_paired():
    assert found(list(scenes(60, seed=3, height=96, width=128))) == set()


def test_smooth_and_blank_images_are_told_apart():
    """Where keypoints say nothing the signature's turn is tried."""
    y, x = np.mgrid[:90, :120] / 100
    blank = np.full((90, 120, 3), 90, np.uint8)
    ramp = np.dstack([(200 * (x + y**2) / 3).astype(np.uint8)] * 3)
    assert found([blank, ramp, blank + 40]) == set()


def jig(seed):
    """Draw one part of a kind: an outline that all share, and the grain of its own surface."""
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    outline = 90.0 * (radius < 0.9) - 60 * (radius < 0.5) + 50 * (radius < 0.2)
    outline += 30 * ((np.cos(6 * angle) > 0.6) & (radius > 0.25) & (radius < 0.45))
    grain = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((200, 200)), (0, 0), 1.5)
    grey = np.clip(outline + 60 + 30 * grain, 0, 255).astype(np.uint8)
    return np.dstack([grey] * 3)


def test_parts_in_one_jig_are_not_joined_but_copies_of_one_are():
    parts = [jig(seed) for seed in range(20)]
    copies = [recompressed(rotated(part, 50 * i), 75) for i, part in enumerate(parts[:8])]
    assert found(parts + copies) == {(i, 20 + i) for i in range(8)}


def test_synthetic_parts_of_one_design_are_parts_of_their_own(tmp_path):
    """Their grain is faint and their outline is one: a report must not call them copies."""
    draw_parts(tmp_path, PartsConfig(parts_per_seen=11, parts_per_unseen=1, num_views=1))
    files = sorted(tmp_path.glob("*/Connector/*.png"))
    assert len(files) == 66
    assert found([decode.read(file) for file in files]) == set()


@pytest.mark.parametrize("turn", range(8))
def test_the_turn_of_a_signature_maps_pixels_onto_the_same_pixels(turn):
    (image,) = scenes(1, seed=5)
    thumb = standardise(image)
    side = thumb[:, ::-1] if turn >= 4 else thumb
    other = np.ascontiguousarray(np.rot90(side, turn % 4))
    blank = np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    matrix = turn_of(Sketch(thumb, *blank), Sketch(other, *blank), turn)
    laid = cv2.warpAffine(thumb, matrix, other.shape[::-1])
    assert np.abs(laid.astype(int) - other).max() <= 1


def test_a_map_is_found_to_a_fifth_of_a_pixel():
    (image,) = scenes(1, seed=6, height=400, width=400)
    thumb = standardise(image)
    truth = np.array([[0.94, -0.31, 22.0], [0.28, 1.02, -14.0]])
    second = cv2.warpAffine(thumb, truth, (128, 128), borderMode=cv2.BORDER_REFLECT)
    registration = register(sketch(thumb), sketch(second))
    corners = np.array([[30, 30, 1], [90, 30, 1], [30, 90, 1], [90, 90, 1]])
    assert np.abs(corners @ (registration.matrix - truth).T).max() < 0.2
    assert registration.agreement > 0.95


def test_a_map_that_is_a_little_off_is_refined():
    (image,) = scenes(1, seed=7, height=400, width=400)
    thumb = sketch(standardise(image))
    off = np.array([[1.005, 0.004, 0.5], [-0.004, 0.995, -0.4]])
    registration = compare(thumb, thumb, off)
    assert np.abs(registration.matrix - np.eye(2, 3)).max() < 0.05
    assert registration.agreement > 0.98


def test_images_that_hardly_overlap_are_not_compared():
    (image,) = scenes(1, seed=8)
    thumb = sketch(standardise(image))
    assert compare(thumb, thumb, np.array([[1.0, 0, 90], [0, 1, 0]])) is None
