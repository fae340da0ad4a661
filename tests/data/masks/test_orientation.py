"""Images and masks whose camera was turned."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from assay.data.masks.given import open_mask
from assay.data.masks.header import turn
from assay.data.masks.rules import MaskConfig
from assay.errors import MaskError


def turned(root, orientation, mask_orientation=1, size=(40, 60), drawn_on="stored"):
    """An image whose camera was turned, and the mask of its dark corner; return what is right upright."""
    stored = np.full(size, 200, np.uint8)
    stored[:10, :15] = 20
    exif = Image.Exif()
    exif[274] = orientation
    (root / "m").mkdir(parents=True)
    Image.fromarray(np.dstack([stored] * 3)).save(root / "a.jpg", exif=exif, quality=95)
    upright = turn(stored, orientation) < 100
    mask = np.where(stored < 100 if drawn_on == "stored" else upright, 255, 0).astype(np.uint8)
    exif[274] = mask_orientation
    Image.fromarray(mask).save(root / "m/a.png", exif=exif)
    return [("a.jpg", root / "a.jpg")], upright


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_image_over_a_mask_without_orientation(prepare, tmp_path, orientation):
    """Refused where nothing tells; with the setting the mask lies where the defect is."""
    for drawn_on in ("stored", "upright"):
        root = tmp_path / drawn_on
        images, upright = turned(root, orientation, drawn_on=drawn_on)
        config = MaskConfig(files="m/{name}.png")
        if drawn_on == "upright" and orientation >= 5:  # the size tells
            (mask,) = prepare(images, root, config, root / "out")
            assert np.array_equal(open_mask(mask, ("defect",)), upright)
        else:
            with pytest.raises(MaskError, match=f"orientation {orientation} and its mask .* 1,"):
                prepare(images, root, config, root / "out")
        config = replace(config, orientation=drawn_on)
        (mask,) = prepare(images, root, config, root / "set")
        assert np.array_equal(open_mask(mask, ("defect",)), upright)


def test_a_square_cannot_tell(prepare, tmp_path):
    images, _ = turned(tmp_path, 6, size=(60, 60), drawn_on="upright")
    with pytest.raises(MaskError, match=r"--masks\.orientation stored"):
        prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_that_is_turned_as_its_image_lies_right(prepare, tmp_path, orientation):
    images, upright = turned(tmp_path, orientation, orientation)
    (mask,) = prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), upright)


def test_a_mask_that_alone_is_turned_is_refused(prepare, tmp_path):
    images, _ = turned(tmp_path, 1, 3)
    with pytest.raises(MaskError, match=r"orientation 1 and its mask .* 3,"):
        prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 60)), (6, (40, 60)), (6, (60, 40))])
def test_coco_on_a_turned_image(prepare, tmp_path, orientation, size):
    images, upright = turned(tmp_path, orientation)
    marks = [[0, 0, 15, 0, 15, 10, 0, 10]]
    if size != (40, 60):  # annotated as it is seen
        y, x = np.argwhere(upright).min(0).tolist()
        marks = [[x, y, x + 10, y, x + 10, y + 15, x, y + 15]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "defect"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": marks}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    config = MaskConfig(files="a.json")
    if size == (40, 60):
        with pytest.raises(MaskError, match="EXIF orientation"):
            prepare(images, tmp_path, config, tmp_path / "out")
        config = replace(config, orientation="stored")
    (mask,) = prepare(images, tmp_path, config, tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), upright)
