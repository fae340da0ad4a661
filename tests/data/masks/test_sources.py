"""Marks are their own image's, and those that are to be ignored are said."""

import json

import numpy as np
import pytest

from assay.data.images.decode import write_png
from assay.data.masks.header import Stand
from assay.data.masks.rules import MaskConfig
from assay.data.masks.sources import find_sources
from assay.errors import MaskError
from assay.levels import VOID

SIZE = (64, 64)
UPRIGHT = Stand(SIZE, 1)
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "b0" / "l0.png"
    path.parent.mkdir()
    write_png(path, np.zeros(SIZE, np.uint8))
    return path


def labelme(image, said):
    shape = {"label": "defect", "points": [[5, 5], [15, 15]], "shape_type": "rectangle"}
    content = {"shapes": [shape], "imageHeight": 64, "imageWidth": 64, "imagePath": said}
    image.with_suffix(".json").write_text(json.dumps(content))
    return "{folder}/{name}.json"


def voc(image, said, difficult=0):
    box = "<xmin>6</xmin><ymin>6</ymin><xmax>15</xmax><ymax>15</ymax>"
    image.with_suffix(".xml").write_text(
        f"<annotation><filename>{said or ''}</filename><size><height>64</height><width>64</width></size><object><name>defect</name>"
        f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object></annotation>"
    )
    return "{folder}/{name}.xml"


def source_of(image, pattern):
    (source,), _ = find_sources([image], image.parent.parent, MaskConfig(files=pattern))
    return source


@pytest.mark.parametrize("write", [labelme, voc])
@pytest.mark.parametrize(
    "said",
    ["l0.png", "..\\images\\L0.BMP", "/a/colleague's/l0.jpg", "l0", "", None],
)
def test_marks_are_taken_by_an_image_of_their_name_or_where_they_have_none(image, write, said):
    mask, counted = source_of(image, write(image, said)).read(UPRIGHT)
    assert (np.count_nonzero(mask), counted.marks) == (100, 1)


@pytest.mark.parametrize("write", [labelme, voc])
@pytest.mark.parametrize("said", ["l1.png", "l00.png", "l0.png.bak", "b0/l01.png"])
def test_marks_of_another_image_are_refused(image, write, said):
    source = source_of(image, write(image, said))
    with pytest.raises(MaskError, match=r"l0\.(json|xml) says that its marks are of 'l.*l0\.png;"):
        source.read(UPRIGHT)


def test_a_name_that_is_no_text_is_refused(image):
    with pytest.raises(MaskError, match=r"l0\.json .* the image's path is 3, not a text"):
        source_of(image, labelme(image, 3))


def test_marks_to_be_ignored_are_void_and_said(image, tmp_path):
    mark = {"image_id": 1, "category_id": 1, "segmentation": SQUARE}
    ignored = {"id": 2, "ignore": 1, "segmentation": [[30, 5, 50, 5, 50, 15, 30, 15]]}
    content = {
        "images": [{"id": 1, "file_name": "b0/l0.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "defect"}],
        "annotations": [mark | {"id": 1}, mark | ignored],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    mask, counted = source_of(image, "a.json").read(UPRIGHT)
    assert [np.count_nonzero(mask == value) for value in (1, VOID)] == [100, 200]
    (said,) = counted.sentences()
    assert said.startswith("1 marks that are to be ignored (COCO's ignore, VOC's difficult)")
    assert said.endswith(f"first in {tmp_path / 'a.json'} on {image}")


@pytest.mark.parametrize("where", ["image", "shape"])
def test_flags_of_labelme_are_said(image, where):
    """A person may have meant by them that the image is bad, or that a mark is no defect."""
    pattern = labelme(image, "l0.png")
    path = image.with_suffix(".json")
    content = json.loads(path.read_text())
    holder = content if where == "image" else content["shapes"][0]
    for is_set in (False, True):
        holder["flags"] = {"blurred": False, "bad": is_set}
        path.write_text(json.dumps(content))
        mask, counted = source_of(image, pattern).read(UPRIGHT)
        assert np.count_nonzero(mask) == 100
        said = [f"1 LabelMe files set flags, which were not used, first 'bad' in {path}"]
        assert counted.sentences() == said * is_set


def test_masks_of_files_that_count_from_0_have_another_key(image):
    pattern = voc(image, "l0.png")
    path = image.with_suffix(".xml")
    path.write_text(path.read_text().replace("<xmin>6<", "<xmin>0<"))
    assert source_of(image, pattern).key()[1:] == ["from 0"]


def test_masks_of_difficult_objects_have_another_key(image):
    """Those that were made when such objects were marks like others are made anew."""
    pattern = voc(image, "l0.png")
    plain = source_of(image, pattern)
    assert plain.key()[1:] == []
    voc(image, "l0.png", difficult=1)
    assert plain.key()[1:] == ["void"]
    assert np.count_nonzero(source_of(image, pattern).read(UPRIGHT)[0] == VOID) == 100


def test_a_copy_of_an_image_is_no_mask_of_it(image):
    """Where little is bright it would pass for one; what marks nothing may be the same file."""
    copy, bright = image.parent / "masks" / image.name, np.zeros(SIZE, np.uint8)
    copy.parent.mkdir()
    copy.write_bytes(image.read_bytes())
    source = source_of(image, "{folder}/masks/{name}.png")
    assert not source.read(UPRIGHT)[0].any()
    bright[20:28, 20:36] = 255
    for path in (image, copy):
        write_png(path, bright)
    with pytest.raises(MaskError, match=r"masks/l0\.png is a copy of its image"):
        source.read(UPRIGHT)
    write_png(copy, bright // 255 * np.uint8(254))
    assert np.array_equal(source.read(UPRIGHT)[0], bright > 0)
