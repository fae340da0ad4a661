"""Cells of patches: those that show something, those of a fixed pattern, and the best of all."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.data.inputs.cells import (
    best_cells,
    informative_cells,
    iterative_cells,
    lattice_cells,
    tile_cells,
)
from assay.data.inputs.patches import PatchConfig, cell_corners
from assay.nn.topk import hard_topk

GRID = 12
SMALL = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0)


# Informative cells


def patch_means(overview, grid, sizes):
    """Mean of each cell's patch on a canvas drawn in full, zero outside."""
    factor = sizes.image_px // sizes.overview_px
    canvas = np.kron(overview.mean(-1), np.ones((factor, factor))) / 255
    pad = sizes.patch_px
    padded = np.pad(canvas, pad)
    return np.array(
        [
            padded[y + pad : y + 2 * pad, x + pad : x + 2 * pad].mean()
            for x, y in cell_corners(np.arange(grid * grid), grid, sizes)
        ]
    )


def with_part(rows, columns, level=220):
    overview = np.zeros((80, 80, 3), np.uint8)
    overview[rows, columns] = level
    return overview


@settings(max_examples=60)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(12, 40),
    st.integers(60, 255),
    st.integers(1, 4),
)
def test_dark_cells_are_never_drawn_while_bright_ones_are_enough(y, x, side, level, k):
    overview = with_part(slice(y, y + side), slice(x, x + side), level)
    means = patch_means(overview, GRID, SMALL)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cells = informative_cells(overview, GRID, SMALL, k, rng)
        assert len(set(cells.tolist())) == k
        assert cells.tolist() == sorted(cells.tolist())
        if (means > 0.13).sum() >= k:  # a thirtieth for whole overview pixels and grey levels
            assert (means[cells] > 0.07).all()


def test_every_bright_cell_is_drawn_alike():
    overview = with_part(slice(20, 60), slice(20, 60))
    rng = np.random.default_rng(0)
    drawn = np.bincount(
        np.concatenate([informative_cells(overview, GRID, SMALL, 4, rng) for _ in range(2000)]),
        minlength=GRID * GRID,
    )
    means = patch_means(overview, GRID, SMALL)
    assert (drawn[means > 0.13] > 0).all()
    assert (drawn[means < 0.07] == 0).all()
    expected = 8000 / (drawn > 0).sum()
    assert np.abs(drawn[drawn > 0] / expected - 1).max() < 0.4  # 4.5 standard deviations


def test_the_bar_falls_until_enough_cells_pass():
    # a part at a mean of about 0.06 (below 0.1, above 0.1 / 2) on a table at about 0.02
    overview = np.full((80, 80, 3), 5, np.uint8)
    overview[:, 40:] = 15
    means = patch_means(overview, GRID, SMALL)
    for seed in range(20):
        cells = informative_cells(overview, GRID, SMALL, 10, np.random.default_rng(seed))
        assert (means[cells] > 0.045).all()


def test_a_black_image_draws_from_all_cells():
    black = np.zeros((80, 80, 3), np.uint8)
    rng = np.random.default_rng(0)
    drawn = {
        cell for _ in range(300) for cell in informative_cells(black, GRID, SMALL, 8, rng).tolist()
    }
    assert drawn == set(range(GRID * GRID))
    every = informative_cells(black, GRID, SMALL, GRID * GRID, rng)
    assert every.tolist() == list(range(GRID * GRID))


def test_cells_are_drawn_by_the_generator_alone(smooth):
    overview = smooth(80, 80)
    one, other = (
        informative_cells(overview, GRID, SMALL, 8, np.random.default_rng(3)) for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


# Cells without a scorer


@given(
    grid=st.integers(1, 40),
    stride=st.integers(1, 30),
    patch=st.integers(8, 200),
    extra=st.integers(0, 39),
)
def test_tiles_cover_the_canvas_with_few_patches(grid, stride, patch, extra):
    image = grid * stride + min(extra, grid - 1)
    assume(stride <= patch <= image and image >= 8)
    config = PatchConfig(image_px=image, overview_px=8, patch_px=patch)
    cells = tile_cells(grid, config)
    assert (np.diff(cells) > 0).all()
    seen = np.zeros((image, image), dtype=bool)
    for x, y in cell_corners(cells, grid, config):
        seen[max(y, 0) : max(y + patch, 0), max(x, 0) : max(x + patch, 0)] = True
    # what lies beyond the last cell's own patch no cell reaches
    end = (
        image
        if (patch - stride) // 2 >= image - grid * stride
        else (grid - 1) * stride + patch - (patch - stride) // 2
    )
    assert seen[:end, :end].all()
    assert np.sqrt(len(cells)) <= image / (patch // stride * stride) + 2


@given(grid=st.integers(1, 30), data=st.data())
def test_a_lattice_has_k_different_cells_evenly_spread(grid, data):
    k = data.draw(st.integers(1, max(1, grid * grid // 4)))
    assume(int(np.sqrt(k)) + 2 <= grid)
    cells = lattice_cells(grid, k)
    assert len(set(cells.tolist())) == k
    assert (np.diff(cells) > 0).all()
    rows, columns = np.divmod(cells, grid)
    for places in (rows, columns):
        assert abs(places.mean() + 0.5 - grid / 2) <= 1


@given(
    scores=st.lists(st.integers(-3, 3).map(float), min_size=25, max_size=25),
    k=st.integers(1, 25),
    apart=st.integers(0, 6),
)
def test_cells_without_torch_are_those_with_torch(scores, k, apart):
    expected = hard_topk(torch.tensor([scores]), k, apart)[0].tolist()
    assert best_cells(np.array(scores), k, 5, apart).tolist() == expected


@given(
    num=st.integers(1, 30), k=st.integers(1, 6), chunk=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_iterative_cells_are_the_best_of_all_with_little_in_memory(num, k, chunk, seed):
    """Where attention is a fixed order of features, the few at a time are the best of all."""
    assume(k <= num)
    worth = np.random.default_rng(seed).permutation(2 * num).reshape(2, num).astype(float)
    held = []

    def embed(cells):
        held.append(cells.shape[1])
        return np.take_along_axis(worth, cells, axis=1)[..., None]

    def attend(features):
        held.append(features.shape[1])
        return features[..., 0]

    found = iterative_cells(np.arange(num), 2, k, chunk, embed, attend)
    assert found.tolist() == np.sort(np.argsort(-worth, axis=1)[:, :k], axis=1).tolist()
    assert max(held) <= k + chunk
