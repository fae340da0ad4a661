"""PNG, JPEG, WebP and BMP by what their headers say; pages; and bounds of every header."""

import io
import struct
import time
import zlib
from contextlib import suppress
from itertools import product

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import probe, read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


def saved(image, form, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind, content):
    sums = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sums)


def pack(values, bits):
    digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)


# PNG


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
PASSES += [(1, 0, 2, 1)]
"""Adam7: first row and column, and their steps."""


def png(values, bits, colour, *, interlaced=False, chunks=b"", behind=b""):
    """A PNG of samples (h, w, n), packed by hand."""
    parts = [values[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [values]
    rows = b"".join(
        b"\0" + row.tobytes() for part in parts if part.size for row in pack(part, bits)
    )
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    body = chunks + chunk(b"IDAT", zlib.compress(rows)) + behind
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + body + chunk(b"IEND", b"")


def shown(values, bits):
    return (values * (255 // (2**bits - 1)) if bits < 8 else values).astype(
        "u2" if bits == 16 else "u1"
    )


PNG = [(0, bits, 1) for bits in (1, 2, 4, 8, 16)]
PNG += [(2, 8, 3), (2, 16, 3), (4, 8, 2), (4, 16, 2), (6, 8, 4), (6, 16, 4)]
ANCILLARY = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", bytes(32))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits", "num"), PNG)
def test_png_of_every_kind(colour, bits, num, interlaced):
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, num))
    significant = chunk(b"sBIT", bytes([max(bits // 2, 1)] * num))
    for chunks in (b"", ANCILLARY + significant):
        content = png(values, bits, colour, interlaced=interlaced, chunks=chunks)
        image, right = read(content), shown(values, bits)
        assert image.dtype == right.dtype
        colours = right[..., :1] if num < 3 else right[..., :3]
        np.testing.assert_array_equal(image, np.broadcast_to(colours, image.shape))
        assert probe(content) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(read_plane(content, "level"), colours.max(2))
    if num in (2, 4):
        alpha = np.rint(values[..., -1] / 257) if bits == 16 else values[..., -1]
        np.testing.assert_array_equal(read_plane(content, "alpha"), alpha)
    if num < 3:
        np.testing.assert_array_equal(read_plane(content, "index"), values[..., 0])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes(bits, interlaced):
    index = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, 1))
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    opaque = RNG.integers(0, 256, 2**bits // 2, dtype=np.uint8)
    chunks = chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", opaque.tobytes())
    content = png(index, bits, 3, interlaced=interlaced, chunks=chunks)
    np.testing.assert_array_equal(read(content), colours[index[..., 0]])
    np.testing.assert_array_equal(read_plane(content, "index"), index[..., 0])
    alpha = np.append(opaque, np.full(2**bits - len(opaque), 255))[index[..., 0]]
    np.testing.assert_array_equal(read_plane(content, "alpha"), alpha)


@pytest.mark.parametrize(("colour", "num"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_one_transparent_colour(colour, num, bits):
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, num))
    clear = chunk(b"tRNS", values[3, 4].astype(">u2").tobytes())
    content = png(values, bits, colour, chunks=clear)
    np.testing.assert_array_equal(read(content)[..., :num], values)
    same = (values == values[3, 4]).all(2)
    np.testing.assert_array_equal(read_plane(content, "alpha"), np.where(same, 0, 255))


def test_a_png_number_beyond_its_palette_is_refused():
    index = np.full((HEIGHT, WIDTH, 1), 3)
    content = png(index, 2, 3, chunks=chunk(b"PLTE", bytes(9)))
    with pytest.raises(ImageError, match="the number 3, beyond its palette of 3 colours"):
        read(content)
    assert read_plane(content, "index").max() == 3


@pytest.mark.parametrize(("bits", "colour"), [(3, 0), (16, 3), (4, 2), (8, 5)])
def test_png_headers_that_do_not_exist_are_refused(bits, colour):
    size = struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0)
    with pytest.raises(ImageError, match=f"colour type {colour}, {bits} bits"):
        probe(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IEND", b""))


def turned(orientation):
    """An EXIF block that says an orientation."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize(
    ("kind", "content"), [("eXIf", turned(3)), ("PLTE", bytes(9)), ("tRNS", b"\0\1"), ("IHDR", b"")]
)
def test_a_png_that_says_two_things_is_refused(kind, content):
    """Readers differ in which of two chunks they take."""
    twice = chunk(kind.encode(), content) * (1 if kind == "IHDR" else 2)
    with pytest.raises(ImageError, match=f"its chunk {kind} stands twice"):
        read(png(np.full((HEIGHT, WIDTH, 1), 3), 8, 0, chunks=twice))


def jpeg_turned(*blocks):
    content = saved(SMOOTH, "JPEG", quality=95)
    marks = [struct.pack(">2sH", b"\xff\xe1", len(b) + 8) + b"Exif\0\0" + b for b in blocks]
    return content[:2] + b"".join(marks) + content[2:]


def webp_turned(*blocks):
    still = saved(SMOOTH, "WEBP", lossless=True)[12:]
    sides = b"".join((side - 1).to_bytes(3, "little") for side in SMOOTH.shape[1::-1])
    marks = [struct.pack("<4sI", b"EXIF", len(b)) + b for b in blocks]
    body = b"WEBPVP8X" + struct.pack("<I4B", 10, 8, 0, 0, 0) + sides + still + b"".join(marks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("write", [jpeg_turned, webp_turned])
def test_exif_that_contradicts_itself_is_refused(write):
    """Readers differ in which of two blocks they take; one that says nothing contradicts none."""
    upright, silent = read(write(turned(1))), turned(1).replace(b"\x01\x12", b"\x01\x13")
    for blocks in [(6,), (6, 6)]:
        content = write(*map(turned, blocks))
        np.testing.assert_array_equal(read(content), np.rot90(upright, -1))
    for blocks in [(silent, turned(6)), (turned(6), silent), (turned(6), b"torn")]:
        np.testing.assert_array_equal(read(write(*blocks)), np.rot90(upright, -1))
    for blocks in [(1, 6), (6, 1), (3, 8)]:
        with pytest.raises(
            ImageError, match=f"orientation {blocks[0]} and, in another block, {blocks[1]}"
        ):
            read(write(*map(turned, blocks)))


# JPEG


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_data_end_early_is_refused_whatever_its_end(mode, progressive, options):
    content = saved(
        Image.fromarray(SMOOTH).convert(mode),
        "JPEG",
        quality=98,
        progressive=progressive,
        **options,
    )
    image = read(content)
    right = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(image, right)
    first, last = content.index(b"\xff\xda") + 14, len(content) - 2
    for stop in np.linspace(first, last - 60, 25, dtype=int).tolist():
        for end in (b"\xff\xd9", b"\0\0\xff\xd9", b""):
            cut = content[:stop].rstrip(b"\xff") + end
            with pytest.raises(ImageError, match=r"end early|truncated|damaged"):
                read(cut)


@pytest.mark.parametrize(
    ("mode", "progressive"),
    [("RGB", False), ("RGB", True), ("L", False), ("L", True), ("CMYK", False)],
)
def test_a_jpeg_whose_data_go_on_after_its_height_is_refused(mode, progressive):
    noise = np.random.default_rng(0).integers(0, 255, (384, 288, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    content = saved(image, "JPEG", quality=95, progressive=progressive)
    at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    assert content[at : at + 2] == (384).to_bytes(2, "big")
    lower = content[:at] + (192).to_bytes(2, "big") + content[at + 2 :]
    assert np.array(Image.open(io.BytesIO(lower))).shape[:2] == (192, 288)  # read in silence
    with pytest.raises(ImageError, match="go on for"):
        read(lower)
    for filled in (content[:-2] + b"\0" * 2000 + content[-2:], content + b"another file" * 200):
        np.testing.assert_array_equal(read(filled), read(content))


def test_jpeg_kinds_that_are_not_read_are_named():
    content = saved(SMOOTH, "JPEG")
    frame = content.index(b"\xff\xc0")
    kinds = {0xC3: "lossless", 0xC9: "arithmetic", 0xC5: "hierarchical"}
    for kind, word in kinds.items():
        other = content[: frame + 1] + bytes([kind]) + content[frame + 2 :]
        with pytest.raises(ImageError, match=word):
            probe(other)
    deep = content[: frame + 4] + b"\x0c" + content[frame + 5 :]
    with pytest.raises(ImageError, match="12 bits per sample"):
        probe(deep)
    lossless = imagecodecs.jpeg8_encode(SMOOTH, lossless=True)
    with pytest.raises(ImageError, match="lossless"):
        read(bytes(lossless))


def test_jpeg_colours_by_adobes_marker():
    smooth = np.ascontiguousarray(SMOOTH)
    plain = imagecodecs.jpeg8_encode(smooth, 100, colorspace="RGB", outcolorspace="RGB")
    assert b"Adobe" in plain
    assert np.abs(read(bytes(plain)).astype(int) - SMOOTH).max() <= 3
    unknown = bytes(plain).replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\7")
    with pytest.raises(ImageError, match="colour transform 7"):
        read(unknown)
    inks = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    place = inks.index(b"Adobe")
    with pytest.raises(ImageError, match="no Adobe marker"):
        read(inks[:place] + b"Other" + inks[place + 5 :])


def test_a_jpeg_of_several_pictures():
    file = io.BytesIO()
    pictures = [Image.fromarray(each) for each in (SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1])]
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:], quality=98)
    content = bytearray(file.getvalue())
    with Image.open(io.BytesIO(content)) as image:
        starts = [entry["DataOffset"] for entry in image.mpinfo[0xB002]]
    block = content.index(b"MPF\0") + 4
    for kind in (0, 0x020003):  # none, as Pillow writes it; views of one object
        for entry in range(3):
            place = content.index(struct.pack("<I", starts[1]), block) - 24 + 16 * entry
            content[place : place + 4] = struct.pack("<I", kind)
        with pytest.raises(ImageError, match=r"it holds 3 pictures.*--data\.page 0"):
            read(bytes(content))
    np.testing.assert_array_equal(
        read(bytes(content), page=0), read(saved(SMOOTH, "JPEG", quality=98))
    )
    for page, picture in enumerate(pictures):
        right = np.array(picture).astype(int)
        assert np.abs(read(bytes(content), page=page) - right).mean() < 2
        assert probe(bytes(content), page=page) == SMOOTH.shape[:2]


def test_jpegs_that_lack_their_last_bytes_are_refused():
    """Or decode to the same pixels."""
    rng, passed, num = np.random.default_rng(2), 0, 0
    for mode, options in product(("RGB", "L", "CMYK"), ({}, {"progressive": True})):
        for quality in (60, 90):
            noise = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            image = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2)).convert(mode)
            content = saved(image, "JPEG", quality=quality, **options)
            right = read(content)
            for lost in range(1, 40, 2):
                num += 1
                with suppress(ImageError):
                    passed += not np.array_equal(read(content[: -2 - lost] + b"\xff\xd9"), right)
    assert (num, passed) == (240, 0)


def in_front(content, code, block):
    """The file with a segment more behind its first marker."""
    segment = struct.pack(">BBH", 255, code, len(block) + 2) + block
    return content[:2] + segment + content[2:]


def test_what_means_nothing_for_the_pixels_is_passed_over():
    """Profiles cut off, a revision to come, and limits of a sequential scan that many cameras write as 0."""
    content = saved(SMOOTH, "JPEG", quality=98)
    profile = in_front(content, 0xE2, b"ICC_PROFILE\0\2\5" + bytes(40))
    newer = content.replace(b"JFIF\0\1", b"JFIF\0\7")
    limits = content.index(b"\xff\xda") + 11
    assert content[limits : limits + 3] == b"\0\x3f\0"
    camera = content[:limits] + bytes(3) + content[limits + 3 :]
    for other in (profile, newer, camera, in_front(content, 0xFE, b"a comment")):
        assert other != content
        np.testing.assert_array_equal(read(other), read(content))


@pytest.mark.parametrize("between", [b"", bytes(9)])
def test_two_jpegs_one_behind_the_other_are_a_choice(between):
    first, second = saved(SMOOTH, "JPEG", quality=98), saved(SMOOTH[::-1], "JPEG")
    joined = first + between + second
    with pytest.raises(ImageError, match=r"a second picture of its size.*--data\.page 0"):
        read(joined)
    np.testing.assert_array_equal(read(joined, page=0), read(first))
    smaller = saved(SMOOTH[::2], "JPEG")
    for behind in (between + smaller, b"ftypmp42" + second):  # a preview; a film
        np.testing.assert_array_equal(read(first + behind), read(first))


def test_smaller_pictures_of_no_type_are_none_of_the_pages():
    """As phones put a map of gain behind a photo."""
    file = io.BytesIO()
    small = Image.fromarray(SMOOTH[::2, ::2].copy())
    Image.fromarray(SMOOTH).save(file, "MPO", save_all=True, append_images=[small], quality=98)
    content = file.getvalue()
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read(content), read(saved(SMOOTH, "JPEG", quality=98)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_restart_markers_out_of_turn_are_damage(mode):
    """Decoders take what stands between for lost, and fill it with what was before, in silence."""
    image = Image.fromarray(SMOOTH).convert(mode)
    content = saved(image, "JPEG", quality=90, restart_marker_blocks=2)
    at = content.index(b"\xff\xd2")
    for number in (0, 1, 3, 7):
        damaged = content[: at + 1] + bytes([0xD0 + number]) + content[at + 2 :]
        assert np.array(Image.open(io.BytesIO(damaged))).shape[:2] == SMOOTH.shape[:2]
        with pytest.raises(
            ImageError, match=f"restart marker 2 of a scan has the number {number}, not 2"
        ):
            read(damaged)
    swapped = bytearray(content)
    for first, second in ((b"\xff\xd3", 0xD4), (b"\xff\xd4", 0xD3)):
        swapped[content.index(first) + 1] = second
    with pytest.raises(ImageError, match="number 4, not 3"):
        read(bytes(swapped))


# WebP and BMP


def test_webp_of_every_kind():
    lossless = saved(RGB, "WEBP", lossless=True)
    np.testing.assert_array_equal(read(lossless), RGB)
    alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    content = saved(np.dstack([RGB, alpha]), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(read(content), RGB)
    np.testing.assert_array_equal(read_plane(content, "alpha"), alpha[..., 0])
    assert np.abs(read(saved(SMOOTH, "WEBP", quality=98)).astype(int) - SMOOTH).mean() < 4
    with pytest.raises(ImageError, match="no alpha channel"):
        read_plane(lossless, "alpha")


def test_what_follows_a_webp_is_none_of_it():
    content = saved(RGB, "WEBP", lossless=True)
    mark = struct.pack("<4sI", b"EXIF", len(turned(6))) + turned(6)
    np.testing.assert_array_equal(read(content + mark), RGB)
    for size in (0, 4, len(content) - 60):
        with pytest.raises(ImageError):
            read(content[:4] + struct.pack("<I", size) + content[8:])


def bmp(width, height, bits, body, *, compression=0, palette=b"", masks=b""):
    """A BMP; a negative height says that the first row is on top."""
    start = 54 + len(masks) + len(palette)
    head = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, len(palette) // 4, 0
    )
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + masks + palette + body
    )


@pytest.mark.parametrize("start", [0, 20, 53])
def test_a_bmp_whose_pixels_begin_in_its_header_is_refused(start):
    content = bmp(WIDTH, HEIGHT, 24, bytes(9000))
    with pytest.raises(ImageError, match=f"begin at byte {start} and its header ends at 54"):
        read(content[:10] + struct.pack("<I", start) + content[14:])


def rows_of(values, bits):
    packed = pack(values, bits)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_palettes(bits, top_down):
    index = RNG.integers(0, 2**bits, (HEIGHT, WIDTH))
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    rows = rows_of(index, bits)
    rows = rows if top_down else rows[::-1]
    content = bmp(WIDTH, -HEIGHT if top_down else HEIGHT, bits, rows.tobytes(), palette=palette)
    np.testing.assert_array_equal(read(content), colours[index])
    np.testing.assert_array_equal(read_plane(content, "index"), index)
    assert probe(content) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [24, 32])
def test_bmp_colours(bits, top_down):
    rows = RGB[..., ::-1] if top_down else RGB[::-1, :, ::-1]
    rows = np.pad(rows, ((0, 0), (0, 0), (0, bits // 8 - 3))).reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    content = bmp(WIDTH, -HEIGHT if top_down else HEIGHT, bits, rows.tobytes())
    np.testing.assert_array_equal(read(content), RGB)


@pytest.mark.parametrize("layout", [(5, 5, 5), (5, 6, 5)])
def test_bmp_bit_fields(layout):
    """5 and 6 bits are spread over 8."""
    sizes = np.array(layout)
    values = RNG.integers(0, 2**sizes, (HEIGHT, WIDTH, 3))
    shifts = (sizes[1] + sizes[2], sizes[2], 0)
    words = sum(values[..., i] << shifts[i] for i in range(3)).astype("<u2")
    masks = b"".join(struct.pack("<I", (2 ** layout[i] - 1) << int(shifts[i])) for i in range(3))
    content = bmp(WIDTH, HEIGHT, 16, words[::-1].tobytes(), compression=3, masks=masks)
    assert np.abs(read(content) - values * 255 / (2**sizes - 1)).max() < 1


def test_bmp_of_32_bits_in_fields():
    """As Windows and GIMP write them, with alpha in a header of 124 bytes."""
    rgba = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    for order in ((2, 1, 0, 3), (0, 1, 2, 3), (3, 2, 1, 0)):
        masks = [0xFF << 8 * order.index(channel) for channel in range(4)]
        body = rgba[::-1][..., order].tobytes()
        if order == (3, 2, 1, 0):
            masks = [0xFF << 8 * (3 - channel) for channel in range(4)]
        head = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 32, 3, 0, 0, 0, 0, 0)
        head = (head + struct.pack("<4I", *masks)).ljust(124, b"\0")
        content = b"BM" + struct.pack("<IHHI", 138 + len(body), 0, 0, 138) + head + body
        np.testing.assert_array_equal(read(content), rgba[..., :3])
        np.testing.assert_array_equal(read_plane(content, "alpha"), rgba[..., 3])


def test_bmp_fields_that_are_not_read_are_named():
    masks = struct.pack("<3I", 0xF00, 0xF0, 0xF)
    content = bmp(WIDTH, HEIGHT, 16, bytes(9000), compression=3, masks=masks)
    with pytest.raises(ImageError, match="16 bits in fields that are not read"):
        read(content)


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_run_lengths(bits):
    index = np.repeat(RNG.integers(0, 2**bits, (HEIGHT, WIDTH // 2)), 2, 1)
    runs = b"".join(
        b"".join(bytes([2, value * 17 if bits == 4 else value]) for value in row[::2]) + b"\0\0"
        for row in index[::-1].tolist()
    )
    palette = np.repeat(np.arange(2**bits, dtype=np.uint8)[:, None], 4, 1)
    palette[:, 1] //= 2
    body = runs + b"\0\1"
    content = bmp(WIDTH, HEIGHT, bits, body, compression=3 - bits // 4, palette=palette.tobytes())
    np.testing.assert_array_equal(read(content), palette[index][..., 2::-1][..., :3])
    with pytest.raises(ImageError):
        read(content[: -len(runs) // 2])


@pytest.mark.parametrize(("compression", "bits"), [(4, 24), (5, 24), (1, 4), (0, 2), (6, 32)])
def test_other_bmp_are_refused_by_name(compression, bits):
    content = bmp(WIDTH, HEIGHT, bits, bytes(9000), compression=compression)
    with pytest.raises(ImageError, match=f"compression {compression} and {bits} bits, allowed"):
        read(content)


# Pages


def stack(*pages, **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        for page in pages:
            out.write(page, photometric="rgb", metadata=None, **options)
    return file.getvalue()


def animation(form):
    frames = [Image.fromarray(np.roll(RGB, i, 0)) for i in range(3)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP"])
def test_of_several_pages_one_is_named(form):
    frames = [np.roll(RGB, i, 0) for i in range(3)]
    content = stack(*frames) if form == "TIFF" else animation(form)
    with pytest.raises(ImageError, match=r"holds 3 (pages|frames).*pass --data\.page 0"):
        read(content)
    with pytest.raises(ImageError, match="holds 3"):
        probe(content)
    for page, frame in enumerate(frames):
        np.testing.assert_array_equal(read(content, page=page), frame)
        np.testing.assert_array_equal(read_plane(content, "level", page=page), frame.max(2))
        assert probe(content, page=page) == RGB.shape[:2]
    with pytest.raises(ImageError, match=r"holds 3 .*--data\.page 3 counts from 0"):
        read(content, page=3)


def animated(rows, *, says=2):
    """An APNG of two frames, whose second holds as many rows."""
    values = RGB.astype(int)
    sides = struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    second = b"".join(b"\0" + row.tobytes() for row in (255 - RGB)[:rows])
    before = chunk(b"acTL", struct.pack(">II", says, 0)) + chunk(b"fcTL", bytes(4) + sides)
    behind = chunk(b"fcTL", struct.pack(">I", 1) + sides)
    behind += chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(second))
    return png(values, 8, 2, chunks=before, behind=behind)


def test_a_frame_whose_rows_end_early_is_refused():
    whole, cut = animated(HEIGHT), animated(HEIGHT // 2)
    np.testing.assert_array_equal(read(whole, page=1), 255 - RGB)
    with Image.open(io.BytesIO(cut)) as image:
        image.seek(1)
        assert image.size == (WIDTH, HEIGHT)  # read in silence
        image.load()
    np.testing.assert_array_equal(read(cut, page=0), RGB)
    with pytest.raises(ImageError, match="truncated or damaged"):
        read(cut, page=1)


@pytest.mark.parametrize("says", [0, 1, 3])
def test_an_animation_of_other_frames_than_it_says_is_refused(says):
    for page in (None, 0):
        with pytest.raises(ImageError, match=f"an animation of {says} frames, and holds 2"):
            read(animated(HEIGHT, says=says), page=page)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "BMP", "JPEG"])
def test_of_one_page_the_first_is_it(form):
    content = saved(RGB, form)
    np.testing.assert_array_equal(read(content, page=0), read(content))
    with pytest.raises(ImageError, match=r"it holds 1 page, and --data\.page 1"):
        read(content, page=1)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["before", "behind", "below", "above", "mask"])
def test_previews_and_masks_are_no_pages(place, old):
    small = RGB[::2, ::2].copy()
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"photometric": "rgb", "metadata": None}
        if place == "before":
            out.write(small, subfiletype=1, **how)
            out.write(RGB, **how)
        elif place == "behind":
            out.write(RGB, **how)
            out.write(small, subfiletype=1, **how)
        elif place == "above":  # as in raw files of cameras
            out.write(small, subfiletype=1, subifds=1, **how)
            out.write(RGB, **how)
        elif place == "below":
            out.write(RGB, subifds=1, **how)
            out.write(small, subfiletype=1, **how)
        else:
            out.write(RGB, **how)
            out.write(RGB[..., 0] > 9, photometric="mask", subfiletype=4, metadata=None)
    content = (
        with_old_subfile_types(file.getvalue()) if old and place != "mask" else file.getvalue()
    )
    np.testing.assert_array_equal(read(content), RGB)
    np.testing.assert_array_equal(read(content, page=0), RGB)
    assert probe(content) == RGB.shape[:2]


def with_old_subfile_types(content):
    """The file with tag 255 (2: reduced, 1: full) in the place of 254."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [*file.pages, *(file.pages.first.pages or ())]
        for page in pages:
            tag = page.tags.get(254)
            if tag is not None:
                value = 2 if tag.value == 1 else 1
                changed[tag.offset : tag.offset + 12] = struct.pack("<HHIHH", 255, 3, 1, value, 0)
    return bytes(changed)


def test_a_preview_alone_is_refused():
    with pytest.raises(ImageError, match=r"NewSubfileType \(254\) marks every picture"):
        read(stack(RGB, subfiletype=1))


def test_frames_of_imagej_without_directories_are_counted():
    file = io.BytesIO()
    frames = RNG.integers(0, 65536, (4, 9, 11), dtype=np.uint16)
    tifffile.imwrite(file, frames, imagej=True)
    content = file.getvalue()
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        first = tiff.pages.first
        after = first.offset + 2 + 12 * len(first.tags)
        num = len(tiff.pages)
    content = content[:after] + bytes(4) + content[after + 4 :] if num > 1 else content
    with pytest.raises(ImageError, match=r"holds 4 frames of ImageJ.*--data\.page 0"):
        read(content)
    np.testing.assert_array_equal(read(content, page=0)[..., 0], frames[0])
    with pytest.raises(ImageError, match="4 frames of ImageJ"):
        read(content, page=2)


@pytest.mark.parametrize("shape", [(5, 9, 11), (5, 9, 11, 3), (5, 1, 9, 11)])
def test_frames_of_tifffile_without_directories_are_counted(shape):
    frames = RNG.integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    with tifffile.TiffWriter(file) as out:
        out.write(frames, photometric=photometric, truncate=True)
    with pytest.raises(ImageError, match=r"holds 5 frames of tifffile.*--data\.page 0"):
        read(file.getvalue())
    np.testing.assert_array_equal(
        read(file.getvalue(), page=0), np.broadcast_to(frames[0].reshape(9, 11, -1), (9, 11, 3))
    )
    one = io.BytesIO()
    with tifffile.TiffWriter(one) as out:
        out.write(frames[0], photometric=photometric, truncate=True)
    np.testing.assert_array_equal(read(one.getvalue()), read(file.getvalue(), page=0))


def test_planes_of_metamorph_are_counted():
    """Its stacks have one directory, and a tag with as many values as planes."""
    planes = RNG.integers(0, 65536, (4, 9, 11), dtype=np.uint16)
    for num in (1, 4):
        file = io.BytesIO()
        told = (33629, 5, num, (1, 1) * num, True)
        tifffile.imwrite(file, planes[0], photometric="minisblack", metadata=None, extratags=[told])
        content = file.getvalue() + planes[1:].tobytes()
        if num > 1:
            with pytest.raises(ImageError, match="holds 4 frames of MetaMorph"):
                read(content)
        np.testing.assert_array_equal(read(content, page=0)[..., 0], planes[0])


def test_a_picture_below_one_of_its_size_is_a_page():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        out.write(255 - RGB, photometric="rgb", subifds=1, metadata=None)
        out.write(RGB, photometric="rgb", metadata=None)
    with pytest.raises(ImageError, match="holds 2 pages"):
        read(file.getvalue())
    np.testing.assert_array_equal(read(file.getvalue(), page=1), RGB)


# Bounds


def chain_of_directories(num):
    one = struct.pack("<HHHII", 1, 256, 3, 1, 4)
    links = [struct.pack("<I", 8 + (i + 1) * (len(one) + 4)) for i in range(num)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(one + link for link in links)


def strips(num):
    """A TIFF of that many strips of one row."""
    tags = [(256, 4, 1, 1), (257, 4, 1, num), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, num, 200), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, num, 200 + 4 * num)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)
    return head.ljust(200, b"\0") + struct.pack("<I", 200) * num + struct.pack("<I", 1) * num


def pictures(num):
    """A JPEG whose index says so many times that a picture of no type, of a long header, stands behind it."""
    size = 26 + 16 * (num + 1)
    start = size + len(PLAIN_JPEG) - 2
    entries = struct.pack(">IIII", 0, 0, start, 0) * (num + 1)
    index = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0xB002, 7, len(entries), 26, 0) + entries
    block = b"\xff\xe2" + struct.pack(">H", len(index) + 6) + b"MPF\0" + index
    behind = PLAIN_JPEG[:2] + b"\xff\xfe\0\2" * 9_000 + PLAIN_JPEG[2:]
    return PLAIN_JPEG[:2] + block + PLAIN_JPEG[2:] + behind


PLAIN_PNG = png(RGB.astype(int), 8, 2)
PLAIN_JPEG = saved(SMOOTH, "JPEG")
ATTACKS = {
    "strips": strips(5_000_000),
    "directories": chain_of_directories(2_000_000),
    "tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535 + 4),
    "chunks": PLAIN_PNG[:33] + chunk(b"tEXt", b"") * 1_000_000 + PLAIN_PNG[33:],
    "segments": PLAIN_JPEG[:2] + b"\xff\xfe\0\2" * 2_000_000 + PLAIN_JPEG[2:],
    "fill": PLAIN_JPEG[:2] + b"\xff" * 20_000_000 + PLAIN_JPEG[3:],
    "riff": b"RIFF\xff\xff\xff\x7fWEBP" + b"JUNK\0\0\0\0" * 2_000_000,
    "pictures": pictures(16),
    "many pictures": pictures(4000),
    "long tag": b"MM\0*" + struct.pack(">IHHHII", 8, 1, 256, 4, 0xFFFFFFFF, 8) + bytes(20_000_000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_headers_without_end_are_refused_at_once(name):
    for read_it in (probe, read):
        began = time.process_time()
        with pytest.raises(ImageError):
            read_it(ATTACKS[name])
        assert time.process_time() - began < 2  # .05 s without the checks of shapes


def test_sizes_that_fit_no_memory_are_refused(monkeypatch):
    content = stack(RGB)
    monkeypatch.setattr(np, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    rows = io.BytesIO()
    tifffile.imwrite(rows, RGB, photometric="rgb", rowsperstrip=2, metadata=None)
    with pytest.raises(ImageError, match="do not fit in memory"):
        read(rows.getvalue())
    np.testing.assert_array_equal(read(content), RGB)
