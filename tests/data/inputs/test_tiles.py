import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.tiles import TileConfig, _starts, cut_inside, level_map, tile_size
from assay.errors import ConfigError
from assay.levels import (
    LEVELS,
    NEVER,
    find_components,
    leading,
    level_probs,
    threshold_prob,
    to_levels,
    to_mask,
)

CONFIG = TileConfig(tile_px=64, overlap_px=16, size="fixed")


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pointwise(tiles: np.ndarray) -> np.ndarray:
    """A network that looks at one pixel: its answers cannot depend on how tiles are cut."""
    return np.stack([tiles[:, 0] * 2, tiles.mean(1) - 1], axis=1)


SIDES = st.integers(1, 200)


KINDS = st.sampled_from(["image", "imagenet", "constants"])
SIZES = st.sampled_from(["fit", "fixed"])


@given(SIDES, SIDES, st.sampled_from([0, 8, 16, 32]), KINDS, SIZES)
def test_a_pointwise_network_gives_what_it_gives_on_the_whole_image(
    height, width, overlap, kind, size
):
    entry = ImagePyramid.of(image_of(height, width))
    constants = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    config = TileConfig(tile_px=64, overlap_px=overlap, size=size, normalise=kind, **constants)
    found = level_map(entry, pointwise, 2, config)
    mean, std = {
        "image": (entry.mean, np.maximum(entry.std, 1 / 255)),
        "imagenet": ((0.485, 0.456, 0.406), np.array([0.229, 0.224, 0.225])),
        "constants": (constants["mean"], np.array(constants["std"])),
    }[kind]
    mean, std = np.float32(mean), np.float32(std)
    scaled = (entry.levels[0] / 255 - mean) / (std + 1e-6)
    expected = pointwise(scaled.transpose(2, 0, 1)[None].astype(np.float32))[0]
    assert found.shape == (2, height, width)
    # blending rounds in float32, which may cross the edge of a level
    assert np.abs(found.astype(int) - to_levels(expected)).max() <= 1
    assert (found == to_levels(expected)).mean() > 0.99


def test_tiles_are_blended_by_weights_that_fall_towards_their_edges():
    """Each tile says a constant of its own; between two of them the answer crosses over linearly."""
    entry = ImagePyramid.of(image_of(64, 112))  # two tiles that share 16 columns
    answers = iter([-4.0, 4.0])

    def constant(tiles: np.ndarray) -> np.ndarray:
        return np.stack([np.full((1, 64, 64), next(answers), np.float32) for _ in tiles])

    found = level_map(entry, constant, 1, CONFIG)[0].astype(float)
    assert (found[:, :48] == to_levels(np.array([-4.0]))).all()
    assert (found[:, 64:] == to_levels(np.array([4.0]))).all()
    share = (np.arange(16) + 0.5) / 16
    assert np.array_equal(found[0, 48:64], to_levels(-4.0 * (1 - share) + 4.0 * share))


@given(st.integers(1, 5000), st.sampled_from([32, 64, 512]), st.floats(0, 0.5))
def test_tiles_cover_an_edge_and_share_what_was_asked_at_least(length, side, share):
    overlap = int(side * share)
    starts = _starts(length, side, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - side)
    gaps = np.diff(starts)
    assert (gaps <= side - overlap).all()
    # as few as that allows
    if len(starts) > 1:
        assert (len(starts) - 2) * (side - overlap) + side < length


class Shown:
    """A network that notes what it is shown, and answers by one pixel."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.shapes.append(tiles.shape)
        return tiles[:, :1]

    @property
    def num_pixels(self) -> int:
        return sum(num * height * width for num, _, height, width in self.shapes)


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([0, 8, 32]))
def test_tiles_that_fit_show_no_more_than_squares_and_at_most_so_much_at_once(
    height, width, overlap
):
    entry, shown = ImagePyramid.of(np.zeros((height, width, 3), np.uint8)), {}
    for size in ("fit", "fixed"):
        shown[size] = Shown()
        config = TileConfig(tile_px=64, overlap_px=overlap, size=size)
        level_map(entry, shown[size], 1, config)
    assert shown["fit"].num_pixels <= shown["fixed"].num_pixels
    for num, _, high, wide in shown["fit"].shapes:
        assert num * high * wide <= 6 * 64 * 64
        assert high % 32 == wide % 32 == 0
        assert min(high, wide) >= 64


@pytest.mark.parametrize("size", [(512, 512), (480, 544), (1024, 256), (256, 96)])
def test_an_image_of_few_squares_goes_through_whole(size):
    entry, shown = ImagePyramid.of(np.zeros((*size, 3), np.uint8)), Shown()
    level_map(entry, shown, 1, TileConfig(tile_px=256, overlap_px=32))
    assert shown.shapes == [(1, 3, *size)]


@pytest.mark.parametrize(
    ("image", "tile_px", "overlap", "expected"),
    [
        # one by two: 1600, and (1600 + 64) / 2 = 832; whole it would be too large
        ((1600, 1600), 512, 64, (1600, 832)),
        # whole: 400 up to 416, and of no more pixels than six squares
        ((400, 800), 256, 32, (416, 800)),
        ((100, 70), 256, 32, (128, 96)),
        ((10, 70), 256, 32, (64, 96)),
    ],
)
def test_tiles_divide_an_image_by_hand(image, tile_px, overlap, expected):
    assert tile_size(*image, TileConfig(tile_px=tile_px, overlap_px=overlap)) == expected


@pytest.mark.parametrize("size", [(1000, 1500), (2048, 2048), (3000, 4000), (5100, 5100)])
def test_a_large_image_costs_little_more_than_its_pixels(size):
    height, width = tile_size(*size, TileConfig())
    tiles = len(_starts(size[0], height, 64)) * len(_starts(size[1], width, 64))
    assert tiles * height * width <= 1.15 * size[0] * size[1]


def test_a_small_image_is_mirrored_to_a_tile():
    pixels = image_of(20, 30)
    cut = cut_inside(pixels, 0, 0, (64, 64))
    assert np.array_equal(cut[:20, :30], pixels)
    assert np.array_equal(cut[20:40, :30], pixels[::-1])
    assert np.array_equal(cut[:20, 30:60], pixels[:, ::-1])


@given(st.floats(-20, 20))
def test_levels_are_logits_in_steps(logit):
    level = int(to_levels(np.array([logit]))[0])
    assert 0 <= level < LEVELS
    if -8 <= logit < 8:
        prob = 1 / (1 + np.exp(-logit))
        assert threshold_prob(level) <= prob + 1e-9
        assert prob < threshold_prob(level + 1) + 1e-9
        assert threshold_prob(level) < level_probs()[level] < threshold_prob(level + 1)


def test_a_mask_takes_the_likeliest_class_where_it_reaches_its_threshold():
    levels = np.array([[[10, 40, 50, 47, 20]], [[10, 39, 52, 46, 47]]], dtype=np.uint8)
    assert to_mask(levels, [32, 48]).tolist() == [[0, 1, 2, 1, 0]]
    assert to_mask(levels[:1], [63]).tolist() == [[0, 0, 0, 0, 0]]
    assert not to_mask(np.full((2, 1, 3), LEVELS - 1, np.uint8), [NEVER, NEVER]).any()
    assert threshold_prob(NEVER) == 1


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_mask_is_what_each_leading_class_marks_by_itself(seed, num_classes):
    """So that counts of single classes are counts of the mask that ships."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, LEVELS, (num_classes, 9, 11), dtype=np.uint8)
    thresholds = rng.integers(1, NEVER + 1, num_classes).tolist()
    marked = leading(levels) >= np.array(thresholds)[:, None, None]
    assert (marked.sum(0) <= 1).all()
    numbers = np.arange(1, num_classes + 1)[:, None, None]
    assert np.array_equal((marked * numbers).sum(0), to_mask(levels, thresholds))


@given(st.integers(0, 10_000))
def test_components_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((24, 24)) < 0.3).astype(np.uint8) * rng.integers(
        1, 3, (24, 24), dtype=np.uint8
    )
    found = find_components(mask)
    expected = []
    for value in (1, 2):
        labels, num = ndimage.label(mask == value, np.ones((3, 3)))
        for i, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            area = int((labels == i).sum())
            expected.append((value, area, columns.start, rows.start, columns.stop, rows.stop))
        assert num == sum(v == value for v, _, _ in found)
    assert sorted((v, a, *b.tolist()) for v, a, b in found) == sorted(expected)
    assert [a for _, a, _ in found] == sorted((a for _, a, _ in found), reverse=True)


@pytest.mark.parametrize(
    "settings",
    [{"tile_px": 100}, {"tile_px": 0}, {"tile_px": 64, "overlap_px": 40}, {"overlap_px": -1}],
)
def test_sizes_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="tiles"):
        TileConfig(**settings)
