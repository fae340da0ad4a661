"""unit.py: marks in per cent are told from those in pixels, whatever file they come from."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assay.data.masks.coco import read_coco
from assay.data.masks.exports import read_export
from assay.data.masks.marks import Mark, MarkedImage, draw
from assay.data.masks.rules import MaskConfig
from assay.data.masks.sources import find_sources
from assay.data.masks.unit import check_unit
from assay.errors import MaskError

SIDES = st.tuples(st.integers(400, 6000), st.integers(400, 6000))
UNIT = st.floats(0, 1)
BOXES = st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=20)


def marked(size, boxes):
    """Outline boxes of left, top, width and height, one to an image of height and width."""
    outlines = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
    marks = [Mark(f"annotation {i}", 1, [outline]) for i, outline in enumerate(outlines, 1)]
    return [MarkedImage(size, (mark,)) for mark in marks]


def placed(boxes, width, height):
    """Bring boxes of shares (of the room that is left for the second two) to a width and height."""
    return [
        (x * width, y * height, w * (1 - x) * width, h * (1 - y) * height) for x, y, w, h in boxes
    ]


@given(size=SIDES, boxes=BOXES, corner=st.floats(0.9, 1.0))
def test_marks_that_fill_per_cent_are_refused(size, boxes, corner):
    percent = [*placed(boxes, 100, 100), (80, 80, 100 * corner - 80, 100 * corner - 80)]
    with pytest.raises(
        MaskError,
        match=r"marks that were looked at in coco\.json .* in per cent .* give them in pix",
    ):
        check_unit(marked(size, percent), "coco.json")


@given(size=SIDES, boxes=BOXES, far=st.floats(102, 400), axis=st.integers(0, 1))
def test_one_mark_further_off_says_that_all_are_in_pixels(size, boxes, far, axis):
    beyond = (0, 0, far, 20) if axis else (0, 0, 20, far)
    assert check_unit(marked(size, [*placed(boxes, 100, 100), beyond]), "coco.json") == 0


@given(size=SIDES, boxes=BOXES)
def test_small_marks_at_the_corner_are_taken_and_counted(size, boxes):
    assert check_unit(marked(size, placed(boxes, 50, 50)), "coco.json") == len(boxes)


@given(boxes=BOXES, sides=st.tuples(st.integers(8, 101), st.integers(8, 101)))
def test_images_as_small_as_the_range_are_in_pixels(boxes, sides):
    assert check_unit(marked(sides, placed(boxes, *sides)), "coco.json") == 0


@pytest.mark.parametrize("side", [300, 1000, 5100])
def test_random_marks_are_told(side):
    """20 squares anywhere of 2 to 20 % of the side: in per cent all but few are refused, in pixels none."""
    rng, refused = np.random.default_rng(side), 0
    for _ in range(200):
        width = rng.uniform(0.02, 0.2, 20)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - width)
        shares = np.stack([left, top, width, width], 1)
        assert check_unit(marked((side, side), shares * side), "coco.json") == 0
        try:
            check_unit(marked((side, side), shares * 100), "coco.json")
        except MaskError:
            refused += 1
    assert refused >= 180


def test_run_lengths_and_what_does_not_decode_have_no_coordinates():
    shapes = [{"size": [900, 900], "counts": [810_000]}, [["a", 1]], [[1, 2, 3]], 7, [[1, np.nan]]]
    marks = tuple(Mark(f"annotation {i}", 1, shape) for i, shape in enumerate(shapes))
    assert check_unit([MarkedImage((900, 900), marks)], "coco.json") == 0


SQUARE = (0.3, 0.4, 0.35, 0.25)


def coco(folder, boxes, side):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": side, "width": side}
            for i in range(len(boxes))
        ],
        "categories": [{"id": 1, "name": "defect"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": image.marks[0].shape}
            for i, image in enumerate(marked((side, side), boxes))
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return "coco.json"


def labelme(folder, boxes, side):
    for i, (x, y, w, h) in enumerate(boxes):
        points = [[x, y], [x + w, y + h]]
        shape = {"label": "defect", "points": points, "shape_type": "rectangle"}
        content = {"shapes": [shape], "imageHeight": side, "imageWidth": side}
        (folder / f"{i}.json").write_text(json.dumps(content))
    return "{folder}/{name}.json"


def voc(folder, boxes, side):
    for i, (x, y, w, h) in enumerate(boxes):
        ends = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        mark = f"<object><name>defect</name><bndbox>{ends}</bndbox></object>"
        size = f"<size><width>{side}</width><height>{side}</height></size>"
        (folder / f"{i}.xml").write_text(f"<annotation>{size}{mark}</annotation>")
    return "{folder}/{name}.xml"


@pytest.mark.parametrize("write", [coco, labelme, voc])
def test_each_kind_of_file(tmp_path, write):
    """Six marks of one image each say it together; of one alone nothing is known, and that is said."""
    shares = np.random.default_rng(0).uniform(0.1, 0.9, (6, 2)).round(3)
    shares[0] = 0.85, 0.9
    boxes = np.concatenate([shares, np.full((6, 2), 0.09)], axis=1)
    images = [tmp_path / f"{i}.png" for i in range(6)]
    for image in images:
        Image.new("L", (600, 600)).save(image)
    config = MaskConfig(files=write(tmp_path, boxes * 600, 600))
    assert find_sources(images, tmp_path, config)[1].cornered == 0
    with pytest.raises(
        MaskError, match=rf"All 6 marks that were looked at in {tmp_path}.* per cent"
    ):
        find_sources(images, tmp_path, MaskConfig(files=write(tmp_path, boxes * 100, 600)))
    one = MaskConfig(files=write(tmp_path, [np.array(SQUARE) * 100], 600), missing="empty")
    found = find_sources(images[:1], tmp_path, one)[1]
    assert "1 marks, all whose coordinates were looked at, lie within 100 pixels" in "; ".join(
        found.sentences()
    )


@pytest.mark.parametrize("write", [coco, labelme, voc])
@pytest.mark.parametrize("off", [0.0, 0.006, -0.006])
def test_shares_of_the_side_are_refused(tmp_path, write, off):
    """As some tools write them, up to a slip beyond the side."""
    files = write(tmp_path, [(0.3, 0.2, 0.7 + off, 0.5), (off, 0.2, 0.4, 0.3)], 600)
    if write is coco:
        read = read_coco(tmp_path / files, ("defect",)).values()
    else:
        suffix = files.rpartition(".")[2]
        read = [read_export(tmp_path / f"{i}.{suffix}", ("defect",)) for i in range(2)]
    for image in read:
        with pytest.raises(MaskError, match="normalised"):
            draw(image, files)
