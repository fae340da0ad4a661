"""Images through a process of their own: the same pixels; whatever harms it harms one answer alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import assay
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError
from assay.serve.decode_process import ARENAS, Child, DecodeLimits, say
from assay.serve.decoders import Decoders, is_bounded


def encoded(suffix: str, height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> bytes:
    high = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).integers(0, high, (height, width, 3), dtype=dtype)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def read(decoders: Decoders, *contents: bytes) -> list[ImagePyramid | ImageError]:
    return list(decoders.pool.map(decoders.read, contents))


def is_equal(entry: ImagePyramid | ImageError, content: bytes) -> bool:
    expected = ImagePyramid.read(content)
    assert isinstance(entry, ImagePyramid), entry
    assert entry.signature == expected.signature
    assert np.array_equal([entry.mean, entry.std], [expected.mean, expected.std])
    pairs = zip(entry.levels, expected.levels, strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_pixels_are_those_of_this_process_and_stay_while_they_are_looked_at(decoders):
    contents = [
        encoded(".png", 60, 80),
        encoded(".jpg", 300, 200),
        encoded(".png", 90, 30, np.uint16),
        encoded(".bmp", 1, 1),
        encoded(".tiff", 700, 500),
        *[encoded(".bmp", 40, 40, seed=seed) for seed in range(2 * ARENAS)],
    ]
    entries = read(decoders, *contents)  # more at once than there are arenas
    assert all(map(is_equal, entries, contents))
    with pytest.raises(ValueError, match="read-only"):
        entries[3].levels[0][0, 0] = 1
    del entries
    assert is_equal(read(decoders, contents[4])[0], contents[4])


def test_what_cannot_be_read_says_why_and_nothing_of_this_machine(decoders):
    whole = encoded(".png", 60, 80)
    good, cut, nothing, also = read(decoders, whole, whole[:-30], b"\x89PNG\r\n\x1a\n", whole)
    assert is_equal(good, whole)
    assert is_equal(also, whole)
    assert isinstance(cut, ImageError)
    assert isinstance(nothing, ImageError)
    for error in (cut, nothing):
        assert not any(mark in str(error) for mark in "/<>")
    assert (
        say(ImageError("Image <bytes> cannot be read: its end is missing.")) == "its end is missing"
    )
    assert say(ImageError("OpenCV(5) /io/modules/grfmt.cpp:1: error")) == "it is damaged"
    assert say(ValueError("anything")) == "it is damaged"
    assert "memory" in say(MemoryError())


def test_pixels_are_limited_by_the_header(decoders, header_alone):
    (error,) = read(decoders, header_alone(60_000, 60_000))
    assert "60000 x 60000 pixels, more than 120 megapixels" in str(error)


def test_a_process_that_dies_or_hangs_is_replaced_and_costs_one_answer():
    decoders = Decoders(1, DecodeLimits(120e6, 2.0))
    whole = encoded(".bmp", 60, 80)
    try:
        assert is_equal(read(decoders, whole)[0], whole)
        (first,) = decoders.children.values()
        # where memory is short, the kernel ends this one before what answers
        assert Path(f"/proc/{first.process.pid}/oom_score_adj").read_text() == "1000\n"
        os.kill(first.process.pid, signal.SIGKILL)
        # by another than its image, as when memory is short
        assert all(is_equal(entry, whole) for entry in read(decoders, whole, whole))
        (second,) = decoders.children.values()
        os.kill(second.process.pid, signal.SIGSTOP)
        slow, good = read(decoders, whole, whole)
        assert "longer than 2 s" in str(slow)
        assert is_equal(good, whole)
        assert second.process.poll() is not None
    finally:
        decoders.close()


def test_an_image_that_ends_two_processes_is_damaged(monkeypatch):
    decoders = Decoders(1, DecodeLimits(120e6, 20.0))
    ended = []

    def end(child: Child, *_: object) -> None:
        ended.append(child)
        raise EOFError

    monkeypatch.setattr(Child, "read", end)
    try:
        (died,) = read(decoders, encoded(".bmp", 60, 80))
        assert "ends the process" in str(died)
        assert len({child.process.pid for child in ended}) == 2
        assert all(child.process.poll() is not None for child in ended)
    finally:
        decoders.close()


def progressive() -> bytes:
    """Make a JPEG of ten scans."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def test_an_image_has_a_process_where_its_time_is_not_told_by_its_pixels(monkeypatch):
    """So that neither a crowd of scans, nor a decoder that few have attacked, meets other requests."""
    decoders = Decoders(1, DecodeLimits(120e6, 20.0))
    here = [encoded(suffix, 60, 80) for suffix in (".png", ".jpg")]
    apart = [encoded(suffix, 60, 80) for suffix in (".bmp", ".webp", ".tiff")] + [progressive()]
    try:
        assert all(map(is_equal, read(decoders, *here), here))
        assert decoders.children == {}
        for content in apart:
            assert not is_bounded(content)
        assert is_equal(read(decoders, apart[-1])[0], apart[-1])
        (child,) = decoders.children.values()
        monkeypatch.setattr(child, "read", lambda *args: ImageError("by the process"))
        monkeypatch.setattr("assay.serve.decoders.MOST_HERE", 60 * 80 - 1)  # a large one
        assert str(read(decoders, here[0])[0]) == "by the process"
    finally:
        decoders.close()


def test_memory_is_limited_by_what_a_process_has():
    code = (
        "from assay.serve.decode_process import _limit_memory as limit, say\nimport numpy as np\n"
    )
    code += "limit(64 << 20)\nnp.ones(32 << 20, np.uint8)\n"
    code += "try:\n np.ones(128 << 20, np.uint8)\nexcept MemoryError as error:\n print(say(error))"
    environment = os.environ | {"PYTHONPATH": str(Path(assay.__file__).parents[1])}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "more memory" in told.stdout


def test_a_process_that_is_begun_as_all_are_ended_is_ended_too():
    pool = Decoders(1, DecodeLimits(1e6, 5))
    pool.close()
    assert pool._child().process.returncode is not None
