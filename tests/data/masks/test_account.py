"""What masks did not use or may have wrong is counted and said."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from assay.data.images.decode import write_png
from assay.data.masks.given import open_mask
from assay.data.masks.rules import MaskConfig
from assay.errors import MaskError


def test_what_was_not_used_is_counted_and_said(discs, pictures, prepared, tmp_path):
    images = pictures(tmp_path / "in", 3)
    soft = cv2.GaussianBlur(discs()[1][:64, :64] * np.uint8(255), (0, 0), 2)
    for name in ("0_pore", "0_dirt", "9_pore"):
        write_png(tmp_path / "in" / "m" / f"b0_{name}.png", soft)
    config = MaskConfig(files="m/{parent}_{name}_{kind}.png", classes=("pore",), missing="empty")
    for _ in range(2):  # from the files, and from what is kept
        counts = prepared(images, tmp_path / "in", config, tmp_path / "out").account
        assert (counts.images, counts.given, counts.without, counts.unmarked) == (3, 1, 2, 2)
        assert counts.passed_over == 1
        assert (counts.unused_files, counts.other_kinds, counts.soft) == (1, {"dirt": 1}, 1)
        assert counts.marked_px == {"pore": (soft > 127).sum()}
        assert counts.values["0"] == (soft == 0).sum()
        assert counts.sentences() == [
            f"2 of 3 images have no mask and count as free of defects, first {images[1][1]}",
            f"1 of them lie in folders where other images have one, and may have lost theirs, first {tmp_path / 'in/b0/1.png'}",
            "1 mask files are no image's and were not used, first m/b0_9_pore.png",
            f"1 mask files have values between background and mark, which were cut at the threshold, first {tmp_path / 'in/m/b0_0_pore.png'}",
            "mask files of kinds that are no class were not used: dirt (1)",
        ]


def test_masks_with_light_and_dark_exchanged_are_said(pictures, prepared, tmp_path):
    images = pictures(tmp_path / "in", 3)
    defect = np.zeros((64, 64), np.uint8)
    defect[20:40, 10:40] = 255
    corner = np.zeros((64, 64), np.uint8)
    corner[:30, :30] = 255  # a defect may lie in one
    for (_, path), mask in zip(images, (defect, 255 - defect, corner), strict=True):
        write_png(tmp_path / "in" / "m" / path.parent.name / path.name, mask)
    config = MaskConfig(files="m/{parent}/{name}.png")
    for _ in range(2):  # from the files, and from what is kept
        counts = prepared(images, tmp_path / "in", config, tmp_path / "out").account
        assert counts.framed == 1
        assert counts.sentences() == [
            "1 masks mark all four corners of their image and leave out what lies between, as where light and dark are exchanged"
        ]


def test_coco_images_that_are_not_in_the_data_are_counted(pictures, prepare, prepared, tmp_path):
    images = pictures(tmp_path, 3)
    names = ["b0/0.png", "b1/0.png", "b7/5.png", "b8/6.png"]
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    content = {
        "images": [
            {"id": i, "file_name": name, "height": 64, "width": 64} for i, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "defect"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "segmentation": square}
            for i, image in enumerate([0, 2, 2, 3])
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    config = MaskConfig(files="a.json", missing="empty")
    counts = prepared(images, tmp_path, config, tmp_path / "out").account
    assert (counts.given, counts.without, counts.unlisted, counts.unmarked) == (2, 1, 1, 2)
    assert (counts.marks, counts.strangers, counts.stranger_marks) == (1, 2, 3)
    with pytest.raises(MaskError, match="1 of 3 images have no mask"):
        prepare(images, tmp_path, replace(config, missing="refuse"), tmp_path / "new")


def test_labelme_and_voc_files_beside_the_images(pictures, prepare, prepared, tmp_path):
    images = pictures(tmp_path / "in", 2)
    shape = {"label": "defect", "points": [[5, 5], [15, 15]], "shape_type": "rectangle"}
    for folder in ("b0", "b1"):
        content = {"shapes": [shape], "imageHeight": 64, "imageWidth": 64}
        (tmp_path / "in" / folder / "0.json").write_text(json.dumps(content))
        (tmp_path / "in" / folder / "0.xml").write_text(
            "<annotation><size><height>64</height><width>64</width></size><object><name>defect</name><bndbox>"
            "<xmin>6</xmin><ymin>6</ymin><xmax>15</xmax><ymax>15</ymax></bndbox></object></annotation>"
        )
    for suffix in ("json", "xml"):
        config = MaskConfig(files=f"{{folder}}/{{name}}.{suffix}")
        result = prepared(images, tmp_path / "in", config, tmp_path / suffix)
        expected = np.zeros((64, 64), bool)
        expected[5:15, 5:15] = True
        assert all(np.array_equal(open_mask(p, ("defect",)), expected) for p in result.paths)
        assert (result.account.given, result.account.marks) == (2, 2)
    (tmp_path / "in/b1/0.json").write_text(json.dumps(content | {"imageWidth": 63}))
    with pytest.raises(MaskError, match=r"b1/0\.json gives .* 63 x 64 pixels, the image has 64"):
        prepare(images, tmp_path / "in", MaskConfig(files="{folder}/{name}.json"), tmp_path / "x")
