"""The synthetic units: what follows from what, and what is to be seen of a defect."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from assay.data.synthetic.units import KINDS, UnitsConfig, draw_unit, draw_units, kind_of
from assay.errors import ConfigError

CONFIG = UnitsConfig(size_px=48, num_units=8, num_views=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("units")
    draw_units(folder, CONFIG)
    return folder


def test_each_unit_has_its_photos_below_its_kind(folder: Path) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    expected = [f"{kind_of(u)}/u{u + 1:04d}-{v + 1}.png" for u in range(8) for v in range(3)]
    assert names == sorted(expected)
    assert sorted({name.split("/")[0] for name in names}) == sorted(KINDS)
    read = cv2.imread(str(folder / "pits/u0003-2.png"))[..., ::-1]
    np.testing.assert_array_equal(read, draw_unit(CONFIG, 2, 1).pixels)


def test_a_defect_is_seen_from_two_of_three_sides_and_the_truth_says_which(folder: Path) -> None:
    seen = json.loads((folder / "truth.json").read_text())["seen"]
    for unit in range(8):
        num = sum(name.startswith(f"{kind_of(unit)}/u{unit + 1:04d}-") for name in seen)
        assert num == (0 if kind_of(unit) == "sound" else 2)
    for unit, view in ((1, 0), (1, 1), (1, 2), (0, 0)):
        path = f"{kind_of(unit)}/u{unit + 1:04d}-{view + 1}.png"
        assert draw_unit(CONFIG, unit, view).defect.any() == (path in seen)


def test_without_contrast_nothing_is_to_be_seen_and_the_rest_stays() -> None:
    for unit in range(1, 4):
        views = [draw_unit(CONFIG, unit, view) for view in range(3)]
        flat = replace(CONFIG, contrast=0.0)
        for view, image in enumerate(views):
            plain = draw_unit(flat, unit, view).pixels.astype(int)
            gap = np.abs(image.pixels - plain).max(-1)
            assert (
                gap[~cv2.dilate(image.defect.astype(np.uint8), np.ones((3, 3))).astype(bool)].max(
                    initial=0
                )
                <= 20
            )
            assert not image.defect.any() or gap[image.defect].mean() > 5


def test_photos_do_not_depend_on_what_else_is_drawn() -> None:
    many = replace(CONFIG, num_units=1000)
    np.testing.assert_array_equal(draw_unit(many, 5, 2).pixels, draw_unit(CONFIG, 5, 2).pixels)
    other = replace(CONFIG, seed=1)
    assert not np.array_equal(draw_unit(other, 5, 2).pixels, draw_unit(CONFIG, 5, 2).pixels)


def test_defects_are_of_a_size_at_any_resolution() -> None:
    """Where a defect is deep, as a share of its part of the plate, is alike for small and large images."""
    for unit in (1, 2, 3):
        shares = []
        for size in (64, 192):
            config = UnitsConfig(size_px=size, num_units=40, num_views=1)
            deep = []
            for turn in range(6):
                image = draw_unit(config, unit + 4 * turn, 0)
                plain = draw_unit(replace(config, contrast=0.0), unit + 4 * turn, 0).pixels
                gap = plain.astype(int) - image.pixels
                deep.append((gap.mean(-1)[image.defect] > 20).mean())
            shares.append(np.mean(deep))
        assert 0.05 < shares[0] < 0.6
        assert shares[1] == pytest.approx(shares[0], rel=0.35)


def test_another_config_is_not_drawn_over_it(folder: Path) -> None:
    draw_units(folder, CONFIG)
    with pytest.raises(ConfigError, match="another config"):
        draw_units(folder, replace(CONFIG, seed=4))
