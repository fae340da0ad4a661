import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from assay.data.hashes import content_hashes
from assay.data.images.decode import read, write_png
from assay.data.manifest import Manifest
from assay.data.masks import prepare as prepare_module
from assay.data.masks.contact import NUM_TILES, choose_layers
from assay.data.masks.given import open_mask
from assay.data.masks.header import turn
from assay.data.masks.prepare import file_name
from assay.data.masks.rules import MaskConfig, make
from assay.data.masks.sources import merge
from assay.errors import ConfigError, MaskError

MAKERS = ("fixed", "otsu", "adaptive", "vote")
CONFIG = MaskConfig()
PLAIN = MaskConfig(open_px=0, close_px=0, min_area_px=0)
GREYS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))
PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def grey(plane):
    return np.repeat(plane[:, :, None], 3, axis=2)


def discs(seed=0, size=160):
    """Draw dark discs on a noisy background, whose range reaches from 0 to 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size), dtype=bool)
    for cy in range(25, size, 50):
        for cx in range(25, size, 50):
            truth |= (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(6, 13) ** 2
    plane = np.where(truth, 20, 170) + rng.normal(0, 8, truth.shape)
    plane[0, :2] = 0, 255
    return np.clip(plane, 0, 255).astype(np.uint8), truth


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


# Makers


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_planted_discs_are_found(maker, seed):
    plane, truth = discs(seed)
    mask, agreement = make(grey(plane), replace(CONFIG, maker=maker))
    assert iou(mask, truth) > 0.9
    assert 0.8 < agreement <= 1


def test_vote_outvotes_a_lighting_that_sees_something_else():
    plane, truth = discs()
    shadow = plane.copy()
    shadow[:, :60] //= 12
    mask, agreement = make(np.dstack([plane, shadow, plane]), CONFIG)
    assert iou(mask, truth) > 0.9
    assert agreement < 0.5


def test_voters_of_lightings_by_hand():
    channels = [[0, 0, 0, 9, 255], [0, 0, 9, 9, 255], [0, 9, 9, 200, 255]]
    pixels = np.array(channels, dtype=np.uint8).T[None]
    mask, agreement = make(pixels, replace(PLAIN, threshold=5))
    assert mask.tolist() == [[True, True, False, False, False]]
    assert agreement == pytest.approx(1 / 3)


@given(PICTURES, st.sampled_from(MAKERS))
def test_bright_is_dark_inverted(pixels, maker):
    for config in (PLAIN, replace(CONFIG, min_area_px=3)):
        config = replace(config, maker=maker)
        dark = make(pixels, config)
        bright = make(255 - pixels, replace(config, dark=False))
        assert np.array_equal(bright[0], dark[0])
        assert bright[1] == dark[1]


@given(GREYS, st.sampled_from(MAKERS), st.integers(0, 9))
def test_no_small_component_is_left(plane, maker, least):
    config = replace(CONFIG, maker=maker, open_px=0, min_area_px=least)
    mask, agreement = make(grey(plane), config)
    assert 0 <= agreement <= 1
    assert all(size >= least for size in components(mask))


def components(mask):
    """Count the pixels of 8-connected marks, by flood filling."""
    marked, sizes = set(map(tuple, np.argwhere(mask))), []
    while marked:
        stack, size = [marked.pop()], 0
        while stack:
            y, x = stack.pop()
            size += 1
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & marked
            marked -= near
            stack += near
        sizes.append(size)
    return sizes


@given(GREYS, st.sampled_from(MAKERS))
def test_16_bits_of_the_same_picture_give_the_same_mask(plane, maker):
    config = replace(CONFIG, maker=maker)
    wide = make(grey(plane.astype(np.uint16) * 257), config)
    assert np.array_equal(wide[0], make(grey(plane), config)[0])


@pytest.mark.parametrize("maker", MAKERS)
def test_finer_levels_change_little(maker):
    plane, _ = discs()
    fine = plane.astype(np.uint16) * 16 + np.random.default_rng(1).integers(0, 16, plane.shape)
    config = replace(CONFIG, maker=maker)
    wide = make(grey(fine.astype(np.uint16)), config)[0]
    assert iou(wide, make(grey(plane), config)[0]) > 0.97


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("dark", [True, False])
def test_a_constant_image_marks_nothing(maker, value, dark):
    pixels = np.full((30, 20, 3), value, dtype=np.uint8)
    mask, agreement = make(pixels, replace(PLAIN, maker=maker, dark=dark))
    assert not mask.any()
    assert agreement == 1


@pytest.mark.parametrize("maker", MAKERS)
def test_voters_that_are_equal_agree(maker):
    plane = np.full((60, 60), 255, dtype=np.uint8)
    plane[20:30, 20:30] = 0
    mask, agreement = make(grey(plane), replace(PLAIN, maker=maker))
    assert agreement == 1
    assert np.array_equal(mask, plane == 0)


def test_opening_removes_what_is_thin_and_closing_fills():
    plane = np.full((40, 40), 255, dtype=np.uint8)
    plane[5:25, 5:25] = 0
    plane[15, 15] = 255
    plane[30:32, 5:35] = 0
    mask, _ = make(grey(plane), replace(CONFIG, maker="fixed", min_area_px=0))
    expected = np.zeros_like(mask)
    expected[5:25, 5:25] = True
    assert np.array_equal(mask, expected)


@given(st.lists(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 3)), min_size=1, max_size=4))
def test_merging_is_drawing_the_classes_in_order(parts):
    expected = np.zeros((4, 5), dtype=np.uint8)
    for number in (1, 2, 3):
        for part in parts:
            expected[part == number] = number
    assert np.array_equal(merge(parts), expected)
    assert np.array_equal(merge(parts[::-1]), expected)


# Preparing


def prepared(images, root, config, folder):
    """Prepare masks of images (id, path) as they are now."""
    names, paths = [name for name, _ in images], [path for _, path in images]
    contents = content_hashes(paths, folder.parent / "hashes.sqlite")
    columns = {"id": names, "image": [str(path) for path in paths], "content": contents}
    return prepare_module.prepare(Manifest(pa.table(columns)), root, config, folder)


def prepare(images, root, config, folder):
    return prepared(images, root, config, folder).paths


def pictures(root, num=3, size=64):
    """Write images in folders of one name each; return them as (id, path)."""
    images = []
    for i in range(num):
        path = root / f"b{i % 2}" / f"{i // 2}.png"
        write_png(path, grey(discs(i, size)[0]))
        images.append((path.relative_to(root).as_posix(), path))
    return images


def test_made_masks_their_table_and_sheet(tmp_path):
    images = pictures(tmp_path / "in", 3)
    masks = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    for (_, path), written in zip(images, masks, strict=True):
        mask, _ = make(read(path), CONFIG)
        assert np.array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), mask * np.uint8(255))
    table = pyarrow.csv.read_csv(tmp_path / "out" / "agreement.csv").to_pydict()
    expected = [make(read(path), CONFIG) for _, path in images]
    assert table["id"] == [name for name, _ in images]
    assert table["share"] == pytest.approx([mask.mean() for mask, _ in expected])
    assert table["agreement"] == pytest.approx([agreement for _, agreement in expected])
    sheet = read(tmp_path / "out" / "contact.png")
    assert (sheet == (255, 32, 32)).all(2).any(), "outlines"
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_corrected_mask_is_kept_and_the_rest_is_made(tmp_path):
    images = pictures(tmp_path / "in", 4)
    masks = prepare(images[:3], tmp_path / "in", CONFIG, tmp_path / "out")
    corrected = np.zeros((64, 64), dtype=np.uint8)
    corrected[10:20, 10:20] = 1
    write_png(masks[1], corrected)
    before = [mask.read_bytes() for mask in masks]
    again = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert again[:3] == masks
    assert [mask.read_bytes() for mask in masks] == before
    assert again[3].exists()
    table = pyarrow.csv.read_csv(tmp_path / "out" / "agreement.csv").to_pydict()
    assert table["share"][1] == 100 / 64**2
    assert table["agreement"] == pytest.approx([make(read(path), CONFIG)[1] for _, path in images])


def test_complete_masks_are_not_made_again(tmp_path, monkeypatch):
    images = pictures(tmp_path / "in")
    masks = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    monkeypatch.setattr("assay.data.masks.prepare.make", None)
    assert prepare(images, tmp_path / "in", CONFIG, tmp_path / "out") == masks


def test_kinds_are_merged_and_images_without_are_clean(tmp_path):
    images = pictures(tmp_path / "in", 3)
    for kind, rows in (
        ("pore_1", slice(0, 9)),
        ("pore_2", slice(20, 29)),
        ("Streak_1", slice(5, 22)),
    ):
        plane = np.zeros((64, 64), dtype=np.uint8)
        plane[rows] = 255
        write_png(tmp_path / "in" / "m" / "b0" / f"0_{kind}.png", plane)
    pattern = "m/{folder}/{name}_{kind}_*.png"
    config = MaskConfig(classes=("pore", "streak"), files=pattern, missing="empty")
    first, *others = prepare(images, tmp_path / "in", config, tmp_path / "out")
    column = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)[:, 0].tolist()
    assert column == [1] * 5 + [2] * 17 + [1] * 7 + [0] * 35
    assert not any(open_mask(mask, config.classes).any() for mask in others)
    with pytest.raises(MaskError, match=r"2 of 3 images have no mask .* first .*b1/0\.png"):
        prepare(images, tmp_path / "in", replace(config, missing="refuse"), tmp_path / "new")


def test_coco_masks(tmp_path):
    images = pictures(tmp_path, 1)
    (tmp_path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "b0/0.png", "height": 64, "width": 64}],'
        ' "categories": [{"id": 1, "name": "defect"}], "annotations": [{"id": 1, "image_id": 1,'
        ' "category_id": 1, "segmentation": [[10, 0, 20, 0, 20, 64, 10, 64]]}]}'
    )
    (mask,) = prepare(images, tmp_path, MaskConfig(files="a.json"), tmp_path / "out")
    assert np.flatnonzero(open_mask(mask, ("defect",)).all(0)).tolist() == list(range(10, 20))


def test_another_size_is_refused_whether_given_or_corrected(tmp_path):
    images = pictures(tmp_path / "in", 1)
    write_png(tmp_path / "in" / "m.png", np.full((64, 60), 255, dtype=np.uint8))
    with pytest.raises(MaskError, match=r"m\.png has 60 x 64 pixels .*0\.png 64 x 64"):
        prepare(images, tmp_path / "in", MaskConfig(files="m.png"), tmp_path / "out")
    (mask,) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    write_png(mask, np.zeros((10, 64), dtype=np.uint8))
    with pytest.raises(MaskError, match="64 x 10 pixels"):
        prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")


def test_a_given_mask_that_changed_is_taken_by_its_content(tmp_path):
    images = pictures(tmp_path / "in", 1)
    config = MaskConfig(files="masks/{name}.png")
    source = tmp_path / "in" / "masks" / "0.png"
    write_png(source, np.eye(64, dtype=np.uint8) * 255)
    (mask,) = prepare(images, tmp_path / "in", config, tmp_path / "out")
    written = mask.stat().st_mtime_ns
    os.utime(source, (2e9, 2e9))  # another time says nothing
    assert prepare(images, tmp_path / "in", config, tmp_path / "out") == [mask]
    assert mask.stat().st_mtime_ns == written
    write_png(source, np.eye(64, dtype=np.uint8)[::-1] * 255)
    os.utime(source, (1e9, 1e9))
    prepare(images, tmp_path / "in", config, tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), np.eye(64)[::-1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(PLAIN, maker="fixed", threshold=255), r"cover 100\.0% of all .*--masks\.dark"),
        (replace(CONFIG, min_area_px=10**6), r"all 3 images are empty.*--masks\.min-area-px"),
    ],
)
def test_masks_that_teach_nothing_are_refused_and_removed(tmp_path, config, message):
    images = pictures(tmp_path / "in")
    with pytest.raises(MaskError, match=message):
        prepare(images, tmp_path / "in", config, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["agreement.csv", "contact.png"]


def test_given_masks_that_are_empty_ask_for_their_values(tmp_path):
    images = pictures(tmp_path / "in", 1)
    write_png(tmp_path / "in" / "m.png", np.eye(64, dtype=np.uint8))
    config = MaskConfig(files="m.png")
    with pytest.raises(MaskError, match=r"--masks\.values"):
        prepare(images, tmp_path / "in", config, tmp_path / "out")
    prepare(images, tmp_path / "in", replace(config, values="index"), tmp_path / "out")


@given(st.lists(st.text(st.sampled_from("ab/_. é"), min_size=1), unique=True, max_size=9))
def test_names_of_files_do_not_collide(ids):
    names = [file_name(name) for name in ids]
    assert len(set(names)) == len(ids)
    assert not any("/" in name or name.startswith(".") for name in names)


def test_lowest_agreement_comes_first_then_evenly_spaced_layers():
    agreements = np.random.default_rng(3).permutation(100) / 100
    chosen = choose_layers(agreements.tolist())
    assert len(set(chosen)) == len(chosen) == NUM_TILES
    half = NUM_TILES // 2
    assert [agreements[i] for i in chosen[:half]] == [i / 100 for i in range(half)]
    assert chosen[half:] == sorted(chosen[half:])
    assert np.diff(chosen[half:]).max() <= 12
    assert sorted(choose_layers([0.5] * 7)) == list(range(7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("a", "A")}, "masks.classes"),
        ({"classes": ("a,b",)}, "write them apart, without commas: a b"),
        ({"classes": ("a", " ")}, "masks.classes"),
        ({"classes": ()}, "masks.classes"),
        ({"classes": ("a", "b")}, "only one class"),
        ({"classes": ("a", "b"), "files": "{name}.png"}, "only one class"),
        ({"files": "{stem}.png"}, "{stem}"),
        ({"files": "{folder}/m/" * 5 + "{name}.png"}, "{folder} 4 times"),
        ({"files": "{kind}/{name}.png", "values": "index"}, "twice"),
        ({"block_px": 50}, "block-px is 50"),
        ({"files": "{kind}/{name}.json"}, "twice"),
        ({"void": 1}, "the number of the class 'defect'"),
        ({"void": -1}, "void is -1"),
        ({"threshold": 0}, "threshold is 0"),
        ({"offset": 0}, "offset is 0"),
        ({"open_px": -1}, "open-px is -1"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MaskConfig(**settings)


# By content


def recorded(path, value, seed):
    """Record an image under a name: dark discs elsewhere for each seed."""
    write_png(path, grey(np.minimum(discs(seed, 64)[0], value)))


def test_a_build_recorded_again_has_its_masks_made_anew(tmp_path):
    images = pictures(tmp_path / "in", 2)
    (first, second) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    untouched = second.stat().st_mtime_ns
    stat = images[0][1].stat()
    recorded(images[0][1], 230, seed=7)
    os.utime(images[0][1], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as copying tools do
    result = prepared(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert result.paths == [first, second]
    assert np.array_equal(open_mask(first, ("defect",)), make(read(images[0][1]), CONFIG)[0])
    assert second.stat().st_mtime_ns == untouched
    assert (result.account.by_rule, result.account.corrected) == (2, 0)
    table = pyarrow.csv.read_csv(tmp_path / "out" / "agreement.csv").to_pydict()
    assert table["agreement"] == pytest.approx([make(read(path), CONFIG)[1] for _, path in images])


def correct(mask):
    plane = np.zeros((64, 64), np.uint8)
    plane[10:20, 10:20] = 255
    write_png(mask, plane)
    return plane > 0


def test_a_correction_of_another_image_is_neither_used_nor_lost(tmp_path):
    images = pictures(tmp_path / "in", 2)
    mask, _ = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    corrected = correct(mask)
    before = images[0][1].read_bytes()
    recorded(images[0][1], 230, seed=7)
    with pytest.raises(MaskError, match=r"corrected by a person, and .*b0/0\.png") as error:
        prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), corrected)
    assert str(mask) in str(error.value)
    images[0][1].write_bytes(before)  # the image that it was corrected over is back
    assert prepared(images, tmp_path / "in", CONFIG, tmp_path / "out").account.corrected == 1
    recorded(images[0][1], 230, seed=7)
    mask.with_suffix(".json").unlink()  # as the sentence says: keep it as it stands
    result = prepared(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert result.account.corrected == 1
    assert result.account.sentences() == [
        f"1 masks were corrected by a person and are used as they stand, first {mask}"
    ]
    assert np.array_equal(open_mask(mask, ("defect",)), corrected)
    mask.unlink()  # or: have it made anew
    assert prepared(images, tmp_path / "in", CONFIG, tmp_path / "out").account.corrected == 0
    assert np.array_equal(open_mask(mask, ("defect",)), make(read(images[0][1]), CONFIG)[0])


def test_a_correction_of_another_given_mask_is_refused(tmp_path):
    images = pictures(tmp_path / "in", 1)
    config = MaskConfig(files="m/{name}.png")
    write_png(tmp_path / "in/m/0.png", np.eye(64, dtype=np.uint8) * 255)
    (mask,) = prepare(images, tmp_path / "in", config, tmp_path / "out")
    correct(mask)
    prepare(images, tmp_path / "in", config, tmp_path / "out")
    write_png(tmp_path / "in/m/0.png", np.eye(64, dtype=np.uint8)[::-1] * 255)
    with pytest.raises(MaskError, match="corrected by a person"):
        prepare(images, tmp_path / "in", config, tmp_path / "out")


def test_a_run_that_ended_between_record_and_mask_is_no_correction(tmp_path, monkeypatch):
    images = pictures(tmp_path / "in", 1)
    (mask,) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    recorded(images[0][1], 230, seed=7)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("assay.data.masks.record.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert prepared(images, tmp_path / "in", CONFIG, tmp_path / "out").account.corrected == 0
    assert np.array_equal(open_mask(mask, ("defect",)), make(read(images[0][1]), CONFIG)[0])


def test_two_at_once_do_not_harm_each_other(tmp_path):
    images = pictures(tmp_path / "in", 6)
    prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    for i, (_, path) in enumerate(images):
        recorded(path, 230, seed=10 + i)

    def again(_):
        return prepared(images, tmp_path / "in", CONFIG, tmp_path / "out").account

    with ThreadPoolExecutor(4) as pool:
        accounts = list(pool.map(again, range(4)))
    assert {a.corrected for a in accounts} == {0}
    assert len({str(a) for a in accounts}) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 3}', "[" * 10**5])
def test_a_damaged_record_is_named(tmp_path, content):
    images = pictures(tmp_path / "in", 1)
    (mask,) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    mask.with_suffix(".json").write_text(content)
    with pytest.raises(MaskError, match=r"json is damaged"):
        prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MaskError, match="cannot be"):
        prepare(pictures(tmp_path / "in", 1), tmp_path / "in", CONFIG, tmp_path / "out")


# Orientation


def turned(root, orientation, mask_orientation=1, size=(40, 60), drawn_on="stored"):
    """An image whose camera was turned, and the mask of its dark corner; return what is right upright."""
    stored = np.full(size, 200, np.uint8)
    stored[:10, :15] = 20
    exif = Image.Exif()
    exif[274] = orientation
    (root / "m").mkdir(parents=True)
    Image.fromarray(grey(stored)).save(root / "a.jpg", exif=exif, quality=95)
    upright = turn(stored, orientation) < 100
    mask = np.where(stored < 100 if drawn_on == "stored" else upright, 255, 0).astype(np.uint8)
    exif[274] = mask_orientation
    Image.fromarray(mask).save(root / "m/a.png", exif=exif)
    return [("a.jpg", root / "a.jpg")], upright


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_image_over_a_mask_without_orientation(tmp_path, orientation):
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


def test_a_square_cannot_tell(tmp_path):
    images, _ = turned(tmp_path, 6, size=(60, 60), drawn_on="upright")
    with pytest.raises(MaskError, match=r"--masks\.orientation stored"):
        prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_that_is_turned_as_its_image_lies_right(tmp_path, orientation):
    images, upright = turned(tmp_path, orientation, orientation)
    (mask,) = prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), upright)


def test_a_mask_that_alone_is_turned_is_refused(tmp_path):
    images, _ = turned(tmp_path, 1, 3)
    with pytest.raises(MaskError, match=r"orientation 1 and its mask .* 3,"):
        prepare(images, tmp_path, MaskConfig(files="m/{name}.png"), tmp_path / "out")


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 60)), (6, (40, 60)), (6, (60, 40))])
def test_coco_on_a_turned_image(tmp_path, orientation, size):
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


# What is counted


def test_what_was_not_used_is_counted_and_said(tmp_path):
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


def test_masks_with_light_and_dark_exchanged_are_said(tmp_path):
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


def test_coco_images_that_are_not_in_the_data_are_counted(tmp_path):
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


def test_labelme_and_voc_files_beside_the_images(tmp_path):
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
