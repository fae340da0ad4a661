import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.masks.patterns import _ANY, _KIND, _regex, match_files, unknown_fields
from assay.errors import ManifestError, MaskError


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root, images, pattern, classes=("defect",)):
    def relative(files):
        return [(Path(file).relative_to(root).as_posix(), number) for file, number in files]

    matches = match_files([root / image for image in images], root, pattern, classes)
    return [relative(files) for files in matches.of_image]


def test_folder_and_name(tmp_path):
    put(tmp_path, "x/1.png", "y/1.png", "masks/x/1.png", "masks/1.png")
    images = ["x/1.jpg", "y/1.jpg", "1.jpg"]
    beside = names(tmp_path, images, "{folder}/{name}.png")
    assert beside == [[("x/1.png", 1)], [("y/1.png", 1)], []]
    below = names(tmp_path, images, "masks/{folder}/{name}.png")
    assert below == [[("masks/x/1.png", 1)], [], [("masks/1.png", 1)]]


def test_sibling_folders(tmp_path):
    put(tmp_path, "train/masks/1.png", "train/images/1.jpg")
    files = names(tmp_path, ["train/images/1.jpg"], "{folder}/../masks/{name}.png")
    assert files == [[("train/masks/1.png", 1)]]


def test_kinds_are_classes_in_any_case_and_others_are_left_out(tmp_path):
    put(tmp_path, *(f"m/L1_{kind}.png" for kind in ("Hole_1", "Hole_2", "streak_1", "Part_1")))
    put(tmp_path, "m/L10_Hole_1.png", "m/L1_Hole_1.txt")
    files = names(tmp_path, ["L1.jpg", "L2.jpg"], "m/{name}_{kind}_*.png", ("streak", "hole"))
    assert files == [[("m/L1_Hole_1.png", 2), ("m/L1_Hole_2.png", 2), ("m/L1_streak_1.png", 1)], []]


def test_a_class_may_hold_a_separator_or_begin_as_another(tmp_path):
    put(tmp_path, "1_burn_a.png", "1_burn_mark_a.png", "1_burner_a.png")
    files = names(tmp_path, ["1.jpg"], "{name}_{kind}_*.png", ("burn", "burn_mark"))
    assert files == [[("1_burn_a.png", 1), ("1_burn_mark_a.png", 2)]]


def test_a_folder_per_kind(tmp_path):
    put(tmp_path, "pore/1.png", "streak/1.png", "streak/2.png", "streak/deep/2.png")
    files = names(tmp_path, ["i/1.jpg", "i/2.jpg"], "{kind}/{name}.png", ("pore", "streak"))
    assert files == [[("pore/1.png", 1), ("streak/1.png", 2)], [("streak/2.png", 2)]]


def test_characters_of_a_name_are_taken_as_they_are(tmp_path):
    put(tmp_path, "m/a[1]*_x.png", "m/a1b_x.png")
    assert names(tmp_path, ["a[1]*.jpg"], "m/{name}_*.png") == [[("m/a[1]*_x.png", 1)]]


def test_a_mask_of_two_images_is_refused_unless_the_folder_tells(tmp_path):
    put(tmp_path, "masks/bad/1.png")
    images = ["all/bad/1.jpg", "good/1.jpg"]
    with pytest.raises(MaskError, match=r"fits the images .*bad/1\.jpg and .*good/1\.jpg"):
        names(tmp_path, images, "masks/*/{name}.png")
    assert names(tmp_path, images, "masks/{parent}/{name}.png") == [[("masks/bad/1.png", 1)], []]


def test_hidden_files_are_no_masks_and_loops_end(tmp_path):
    put(tmp_path, "m/1_pore.png", "m/.ipynb_checkpoints/1_pore.png", "m/._1_pore.png")
    assert names(tmp_path, ["1.jpg"], "m/*_pore.png") == [[("m/1_pore.png", 1)]]
    assert names(tmp_path, ["1.jpg"], "none/*_pore.png") == [[]]
    (tmp_path / "m" / "l1").symlink_to(".")
    with pytest.raises(ManifestError, match="remove the link"):
        names(tmp_path, ["1.jpg"], "m/*_pore.png")


def test_unknown_fields_are_named():
    assert unknown_fields("{folder}/{stem}_{kind}*{}.png") == ["{stem}", "{}"]
    assert unknown_fields("{name!r}/{name.png") == ["{name!r}", "{name.png"]
    assert unknown_fields("{{name}}.png") == ["{", "}"]


def test_what_is_no_images_or_no_class_is_told(tmp_path):
    put(tmp_path, "x/1.jpg", "m/x/1_hole.png", "m/x/2_hole.png", "m/y/z/1_hole.png", "m/1_hole.png")
    put(tmp_path, "m/x/1_dirt.png", "m/x/1_Dust.png", "m/x/.1_hole.png", "m/x/1_hole.txt")
    matches = match_files(
        [tmp_path / "x/1.jpg"], tmp_path, "m/{folder}/{name}_{kind}.png", ("hole",)
    )
    assert matches.other_kinds == {"dirt": 1, "Dust": 1}
    assert matches.unused == ["m/1_hole.png", "m/x/2_hole.png", "m/y/z/1_hole.png"]


def test_images_are_no_unused_masks(tmp_path):
    put(tmp_path, "a/images/1.png", "a/masks/1.png", "a/masks/2.png")
    pattern = "{folder}/../masks/{name}.png"
    matches = match_files([tmp_path / "a/images/1.png"], tmp_path, pattern, ("defect",))
    assert matches.of_image == [[(tmp_path / "a/masks/1.png", 1)]]
    assert matches.unused == ["a/masks/2.png"]
    put(tmp_path, "a/images/part_1.png")
    beside = match_files(
        [tmp_path / "a/images/part_1.png"], tmp_path / "a/images", "{name}_{kind}.png", ("defect",)
    )
    assert (beside.of_image, beside.unused) == ([[]], [])


@pytest.mark.parametrize(
    "pattern", ["{folder}/{name}.png", "{folder}/{name}*.png", "x/{name}_*.png"]
)
def test_an_image_is_no_mask_of_its_own_nor_of_another(tmp_path, pattern):
    """A bright part on a dark ground passes for a mask, and a network that learns it looks perfect."""
    put(tmp_path, "x/1.png", "x/1_2.png")
    with pytest.raises(
        MaskError,
        match=r"x/1(_2)?.png would be the mask of .*x/1.png by .* is an image of the data",
    ):
        names(tmp_path, ["x/1.png", "x/1_2.png"], pattern, ("defect",))
    assert names(tmp_path, ["x/1.png"], "x/{name}_*.png", ("defect",)) == [[("x/1_2.png", 1)]]


NAIVE = {_KIND: "(?P<kind>(?i:ab|a)|[^/]+?)", _ANY: "[^/]*"}


@given(
    st.lists(st.sampled_from([*"ab/_*"]), max_size=9),
    st.integers(-1, 9),
    st.text("ab/_", max_size=9),
)
def test_many_stars_fit_as_each_end_tried_would(pattern, kind, name):
    signs = [_ANY if part == "*" else part for part in pattern]
    if kind >= 0:
        signs.insert(kind, _KIND)
    naive = re.fullmatch("".join(NAIVE.get(sign) or re.escape(sign) for sign in signs), name)
    match = _regex("".join(signs), ("a", "ab")).fullmatch(name)
    assert (match and match.groupdict()) == (naive and naive.groupdict())


@pytest.mark.parametrize(
    "pattern", ["m/" + "*a" * 30 + "{name}.png", "m/{kind}" + "a*" * 30 + "{name}.png"]
)
def test_thirty_stars_end(tmp_path, pattern):
    put(tmp_path, "1.png", f"m/{'a' * 200}2.png", f"m/{'a' * 29}1.png", f"m/{'a' * 31}1.png")
    assert names(tmp_path, ["1.png"], pattern, ("a",)) == [[(f"m/{'a' * 31}1.png", 1)]]
