import io
import struct
from contextlib import suppress
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from assay.data.images.decode import write_png
from assay.data.masks.given import open_mask, read_given, read_mask
from assay.data.masks.rules import MaskConfig
from assay.errors import MaskError
from assay.levels import VOID

CONFIG = MaskConfig()
INDEX = MaskConfig(classes=("pore", "streak"), files="{name}.png", values="index")
ONE = replace(INDEX, classes=("defect",))
ALPHA = replace(CONFIG, values="alpha")
GREYS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def png(plane):
    return cv2.imencode(".png", plane)[1].tobytes()


def disc(value=255, dtype=np.uint8, radius=12, at=(32, 32)):
    plane = np.zeros((64, 64), dtype)
    cv2.circle(plane, at, radius, value, -1)
    return plane


# Taken


@given(GREYS)
def test_binary_and_alpha_masks(plane):
    plane = np.where(plane > 127, np.uint8(255), np.uint8(0))
    plane[0, 0] = 0
    mask = read_mask(png(plane), CONFIG)
    assert np.array_equal(mask, plane > 127)
    assert np.array_equal(read_mask(png(plane.astype(np.uint16) * 257), CONFIG), mask)
    cut_out = png(np.dstack([plane[::-1]] * 3 + [plane]))
    assert np.array_equal(read_mask(cut_out, ALPHA), plane > 128)


@given(GREYS, st.integers(1, 5))
def test_index_masks_are_taken_exactly_or_refused(plane, num):
    config = replace(INDEX, classes=tuple("abcde"[:num]))
    small = plane % (num + 1)
    assert np.array_equal(read_mask(png(small), config), small)
    assert np.array_equal(read_mask(png(small.astype(np.uint16)), config), small)
    small[0, 0] = 200
    with pytest.raises(MaskError, match="<bytes> has the value 200 among 1 pixels"):
        read_mask(png(small), config)


@pytest.mark.parametrize("level", [128, 200, 254])
def test_one_level_above_the_threshold_is_the_mark(level):
    mask, values, is_soft, _ = read_given(png(disc(level)), CONFIG)
    assert np.array_equal(mask, disc() > 0)
    assert values == {0: int((disc() == 0).sum()), level: int((disc() > 0).sum())}
    assert not is_soft


def test_soft_edges_are_cut_and_counted(tmp_path):
    """Antialiased, blurred, resized, and through JPEG: the middle of the edge is where it was."""
    smooth = cv2.GaussianBlur(disc(), (0, 0), 2)
    small = cv2.resize(disc(), (40, 40), interpolation=cv2.INTER_LINEAR)
    line = np.zeros((64, 64), np.uint8)
    cv2.line(line, (3, 5), (60, 50), 255, 2, cv2.LINE_AA)
    Image.fromarray(disc()).save(tmp_path / "m.jpg", quality=70)
    for source in (png(smooth), png(small), png(line), tmp_path / "m.jpg"):
        assert read_given(source, CONFIG).is_soft
    read = read_given(tmp_path / "m.jpg", CONFIG).mask
    assert np.abs(read.astype(int) - (disc() > 0)).mean() < 0.01
    assert np.array_equal(read_mask(png(smooth), CONFIG), smooth > 127)


def test_marks_too_faint_are_counted():
    plane = cv2.GaussianBlur(disc(radius=8) + disc(100, radius=4, at=(56, 56)), (0, 0), 1.5)
    assert read_given(png(plane), CONFIG).num_faint == 1


def test_void_is_kept_apart():
    plane = disc(1)
    plane[0] = 255
    read = read_mask(png(plane), replace(ONE, void=255))
    assert (read[0] == VOID).all()
    assert np.array_equal(read[1:], disc(1)[1:])


def test_255_is_the_only_class_and_soft_edges_are_refused(tmp_path):
    path = tmp_path / "m.png"
    write_png(path, np.array([[0, 1, 255]], dtype=np.uint8))
    assert open_mask(path, ("defect",)).tolist() == [[0, 1, 1]]
    with pytest.raises(MaskError, match="value 255"):
        open_mask(path, ("pore", "streak"))
    write_png(path, np.array([[0, 130, 255]], dtype=np.uint8))
    with pytest.raises(MaskError, match=r"m.png has the value 130 .*1 defect \(or 255\)"):
        open_mask(path, ("defect",))


def test_what_a_person_erased_to_transparency_is_refused(tmp_path):
    """Painting tools keep the colours under it, so that the mark would still be one."""
    path, alpha = tmp_path / "m.png", np.full((64, 64), 255, np.uint8)
    alpha[:5] = 0  # nothing is marked there
    Image.merge("LA", [Image.fromarray(disc()), Image.fromarray(alpha)]).save(path)
    assert np.array_equal(open_mask(path, ("defect",)), disc() > 0)
    alpha[30:34] = 0
    Image.merge("LA", [Image.fromarray(disc()), Image.fromarray(alpha)]).save(path)
    with pytest.raises(MaskError, match="transparent pixels, whose colours are no marks"):
        open_mask(path, ("defect",))


def test_a_corrected_mask_is_what_it_looks_like(tmp_path):
    """Painting tools order a palette as they like, and JPEG leaves ones around a mark."""
    path = tmp_path / "m.png"
    for first, plane in ((0, disc(1)), (255, 1 - disc(1))):
        image = Image.fromarray(plane, "P")
        image.putpalette([first] * 3 + [255 - first] * 3)
        image.save(path)
        if first:
            with pytest.raises(MaskError, match="a palette that is dark where its numbers mark"):
                open_mask(path, ("defect",))
        else:
            assert np.array_equal(open_mask(path, ("defect",)), disc() > 0)
    Image.fromarray(disc()).save(path, "JPEG", quality=100)
    with pytest.raises(MaskError, match=r"m\.png is a lossy JPEG"):
        open_mask(path, ("defect",))


def palette(plane):
    image = Image.fromarray(plane, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 750 + [224, 224, 192])
    return image


def painted(kinds):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for row, colour in enumerate(kinds):
        pixels[10 + 20 * row : 20 + 20 * row] = colour
    return Image.fromarray(pixels)


def cut_out(alpha):
    return Image.fromarray(np.dstack([np.full((64, 64, 3), 255, np.uint8), alpha]), "RGBA")


def two_levels(low, high):
    plane = disc(high)
    plane[:10, :10] = low
    return plane


PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "config", "message"),
    [
        (disc(1), CONFIG, "values 0, 1 and marks nothing above 127; give --masks.values index"),
        (disc(3), CONFIG, "values 0, 3 and marks nothing"),
        (disc(127), CONFIG, "values 0, 127 and marks nothing"),
        (disc(255, np.uint16), CONFIG, "values 0, 255 and marks nothing above 32767"),
        (two_levels(1, 255), CONFIG, "values 0, 1, 255, areas of more than two levels"),
        (two_levels(128, 255), CONFIG, "values 0, 128, 255, areas of more than two levels"),
        (PICTURE, CONFIG, "a picture or a map of probabilities"),
        (PICTURE // 2, CONFIG, "marks nothing above 127"),
        (palette(two_levels(2, 1)), CONFIG, "palette .*--masks.values index"),
        (painted([(255, 0, 0), (0, 255, 0)]), CONFIG, "more than one colour"),
        (cut_out(disc()), CONFIG, "transparent pixels.*--masks.values alpha"),
        (cut_out(disc()), ONE, "transparent pixels.*--masks.values alpha"),
        (cut_out(np.full((64, 64), 255, np.uint8)), ALPHA, "255 everywhere"),
        (cut_out(disc(1)), ALPHA, "values 0, 1 and marks nothing above 128"),
        (disc(), ALPHA, "no alpha channel"),
        (two_levels(1, 255), ONE, "1 and 255.*--masks.void 255"),
        (two_levels(1, 255), INDEX, "value 255 .*--masks.void 255"),
        (two_levels(1, 3), INDEX, "value 3 among"),
        (painted([(1, 0, 0), (2, 2, 2)]), INDEX, "colours"),
        (disc(300, np.uint16), ONE, "value 300"),
    ],
)
def test_what_would_be_misread_is_refused_with_what_to_give(tmp_path, image, config, message):
    path = tmp_path / "m.png"
    if isinstance(image, np.ndarray):
        write_png(path, image)
    else:
        image.save(path)
    with pytest.raises(MaskError, match=message) as error:
        read_mask(path, config)
    assert str(path) in str(error.value)


def test_a_palette_of_numbers_is_taken_by_its_numbers(tmp_path):
    palette(two_levels(2, 1)).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", INDEX), two_levels(2, 1))
    palette(disc(1)).save(tmp_path / "m.png")  # dark red on black
    assert np.array_equal(read_mask(tmp_path / "m.png", CONFIG), disc(1))


@pytest.mark.parametrize("name", ["m.jpg", "m.webp"])
def test_numbers_of_classes_are_kept_without_loss(tmp_path, name):
    Image.fromarray(disc(2)).save(tmp_path / name, quality=100)
    with pytest.raises(MaskError, match=rf"{name} is a lossy (JPEG|WEBP)"):
        read_mask(tmp_path / name, INDEX)
    Image.fromarray(np.repeat(disc(2)[..., None], 3, axis=2)).save(
        tmp_path / "m.webp", lossless=True
    )
    assert np.array_equal(read_mask(tmp_path / "m.webp", INDEX), disc(2))


def test_a_second_colour_is_told_however_small_its_areas():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[disc() > 0] = (255, 0, 0)
    fringe = cv2.GaussianBlur(pixels, (0, 0), 1)
    pixels[2:6, 2:6] = (0, 255, 0)
    for depth, what in ((np.uint8, 1), (np.uint16, 257)):
        content = png(pixels[..., ::-1].astype(depth) * depth(what))
        with pytest.raises(MaskError, match="more than one colour"):
            read_mask(content, CONFIG)
    assert np.array_equal(read_mask(png(fringe[..., ::-1]), CONFIG), fringe[..., 0] > 127)


@pytest.mark.parametrize("other", [(255, 120, 0), (255, 0, 110), (255, 130, 130), (140, 70, 0)])
def test_colours_that_share_what_is_bright_are_two(other):
    """Red and orange, as annotation tools paint two kinds; one colour at two lights is one, with soft edges too."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[disc() > 0] = (255, 0, 0)
    alone = cv2.resize(pixels, (192, 192), interpolation=cv2.INTER_LINEAR)
    pixels[2:8, 2:8] = other
    with pytest.raises(MaskError, match="more than one colour"):
        read_mask(png(pixels[..., ::-1]), CONFIG)
    assert np.array_equal(read_mask(png(alone[..., ::-1]), CONFIG), alone[..., 0] > 127)


def test_a_mask_of_several_pages_is_told_what_helps():
    """The page that is read of images is none of masks'."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([disc(), disc()]), photometric="minisblack")
    with pytest.raises(MaskError, match=r"2 pages, .* said; save each as a file") as error:
        read_mask(file.getvalue(), CONFIG)
    assert "data.page" not in str(error.value)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("level", [100, 200])
def test_thin_marks_of_a_second_level_are_no_soft_edges(width, level):
    """As of cracks of two kinds: the one would be marked as the other, or lost."""
    plane = cv2.line(disc(), (2, 60), (60, 62), level, width)
    with pytest.raises(MaskError, match="areas of more than two levels"):
        read_mask(png(plane), CONFIG)
    edge = cv2.dilate(disc(), np.ones((3, 3), np.uint8)) // 2
    soft = np.maximum(disc(), edge)
    assert len(np.unique(soft)) == 3
    assert np.array_equal(read_mask(png(soft), CONFIG), disc() > 0)


def test_numbers_of_many_parts_are_no_soft_edges():
    """As of one number for each part: those above the threshold would be marked, and the others lost."""
    numbers = np.zeros((160, 160), np.uint8)
    for i in range(16):
        top, left = 8 + i // 4 * 38, 8 + i % 4 * 38
        numbers[top : top + 24, left : left + 24] = 15 * i + 15
    with pytest.raises(MaskError, match="areas of more than two levels"):
        read_mask(png(numbers), CONFIG)
    small = cv2.GaussianBlur(disc(), (0, 0), 1)
    large = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(read_mask(png(large), CONFIG), large > 127)


@pytest.mark.parametrize("form", ["jpeg", "webp", "animation"])
def test_loss_is_told_inside_other_files_too(tmp_path, form):
    """Blocks of one value each, which lossy codes keep as they are: so it could not be told from the values."""
    marks = np.kron(np.array([[0, 1], [2, 0]], np.uint8), np.ones((16, 16), np.uint8))
    colours, path = np.repeat(marks[..., None], 3, axis=2), tmp_path / "m.tif"
    if form == "animation":
        path = tmp_path / "m.webp"
        Image.fromarray(colours).save(path, quality=90)
        path.write_bytes(as_frame(path.read_bytes()[12:], 32))
    elif form == "webp":
        how = {"compression": "webp", "compressionargs": {"level": 50}}
        tifffile.imwrite(path, colours, photometric="rgb", **how)
    else:
        how = {"compression": "jpeg", "compressionargs": {"level": 100}}
        tifffile.imwrite(path, marks, photometric="minisblack", **how)
    with pytest.raises(MaskError, match=r"is a lossy (TIFF|WEBP)"):
        read_mask(path, INDEX)


def as_frame(still, side):
    """A WebP animation of one frame."""
    sides = (side - 1).to_bytes(3, "little") * 2
    frame = bytes(6) + sides + bytes(4) + still
    chunks = {b"VP8X": b"\2\0\0\0" + sides, b"ANIM": bytes(6), b"ANMF": frame}
    body = b"".join(kind + struct.pack("<I", len(each)) + each for kind, each in chunks.items())
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


TWO_COLOURS = [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("config", [CONFIG, ONE])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_marks_that_a_png_calls_transparent_are_refused(tmp_path, mode, config):
    """Transparency by an entry of the palette or by one colour, not by a channel."""
    image = Image.fromarray(disc(1), "P")
    image.putpalette(TWO_COLOURS)
    clear: object = b"\xff\0"
    if mode != "P":
        value = 255 if config is CONFIG else 1
        image = Image.fromarray(disc(value)).convert(mode)
        clear = value if mode == "L" else (value,) * 3
    image.save(tmp_path / "m.png", transparency=clear)
    with pytest.raises(MaskError, match=r"transparent pixels.*--masks\.values alpha"):
        read_mask(tmp_path / "m.png", config)
    image.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", config), disc(1))


@pytest.mark.parametrize("extra", ["unspecified", "unassalpha"])
def test_what_a_tiff_is_stands_by_its_image_and_not_by_its_preview(tmp_path, extra):
    path, colours = tmp_path / "m.tif", np.repeat(disc()[..., None], 3, axis=2)
    for share, is_refused in ((255, False), (0, extra == "unassalpha")):
        pixels = np.dstack([colours, np.full_like(disc(), share)])
        with tifffile.TiffWriter(path) as file:
            file.write(disc()[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
            file.write(pixels, photometric="rgb", extrasamples=[extra], metadata=None)
        if is_refused:
            with pytest.raises(MaskError, match="transparent pixels"):
                read_mask(path, CONFIG)
        else:
            assert np.array_equal(read_mask(path, CONFIG), disc(1))


def test_a_palette_of_grey_levels_is_no_palette_of_numbers(tmp_path):
    """As BMP has it of every grey image."""
    smooth = cv2.GaussianBlur(disc(), (0, 0), 2)
    Image.fromarray(smooth).save(tmp_path / "m.bmp")
    assert np.array_equal(read_mask(tmp_path / "m.bmp", CONFIG), smooth > 127)


@pytest.mark.parametrize("kept", [0, 5, 40, 100])
def test_damaged_masks_are_refused(tmp_path, kept):
    path = tmp_path / "m.png"
    path.write_bytes(png(disc())[:kept])
    for config in (CONFIG, INDEX, ALPHA):
        with pytest.raises(MaskError, match=r"m\.png"):
            read_mask(path, config)
    with pytest.raises(MaskError, match=r"m\.png"):
        open_mask(path, ("defect",))


@given(st.binary(max_size=60), st.integers(0, 400))
def test_mutated_files_raise_a_mask_error_alone(tmp_path_factory, noise, start):
    content = bytearray(png(two_levels(128, 255)))
    content[start : start + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "mutated.png"
    path.write_bytes(content)
    for config in (CONFIG, INDEX, ALPHA):
        with suppress(MaskError):
            read_mask(path, config)


def test_numbers_may_have_a_transparent_background(tmp_path):
    """As editors save a drawing without a layer below it."""
    marks = disc(1)
    pixels = np.dstack([marks] * 3 + [marks * np.uint8(255)])
    Image.fromarray(pixels, "RGBA").save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", ONE), marks)
