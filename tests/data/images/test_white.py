import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.images.pyramid import ImagePyramid
from assay.data.images.white import BITS, Range, White, choose, to_uint8
from assay.errors import ImageError

RAMP = np.arange(65535, dtype=np.uint16).reshape(-1, 5, 3)


def ints(*highs):
    return [Range("uint16", 0.0, float(high)) for high in highs]


def test_16_bits_are_rounded_to_the_nearest():
    np.testing.assert_array_equal(to_uint8(RAMP), np.rint(RAMP / 257))
    np.testing.assert_array_equal(to_uint8(RAMP, 65535.0), np.rint(RAMP / 257))
    assert to_uint8(np.full((1, 1, 3), 65535, np.uint16)).max() == 255
    narrow = (RAMP // 257).astype(np.uint8)
    assert to_uint8(narrow) is narrow


@pytest.mark.parametrize("white", [1.0, 255.0, 1023.0, 4095.0, 3000.5, 65535.0])
def test_white_and_more_is_255(white):
    expected = np.floor(np.minimum(RAMP.astype(float), white) / white * 255 + 0.5)
    np.testing.assert_array_equal(to_uint8(RAMP, white), expected)
    floats = np.linspace(-white, 2 * white, 3000, dtype=np.float32).reshape(-1, 10, 3)
    shares = np.clip(floats.astype(float), 0, white) / white * 255
    assert np.abs(to_uint8(floats, white) - shares).max() <= 0.501


@pytest.mark.parametrize("high", [0, 255, 1000, 4095, 16383])
def test_values_that_may_be_of_any_depth_are_not_guessed_at(high):
    pixels = np.full((4, 4, 3), high, np.uint16)
    with pytest.raises(ImageError, match=rf"from {high} to {high}.*--data.white"):
        to_uint8(pixels)
    with pytest.raises(ImageError, match=r"--data.white"):
        ImagePyramid.of(pixels).cut((0, 0, 2, 2))
    assert to_uint8(pixels.astype(np.uint8)).max() == high % 256


def test_floats_are_not_guessed_at():
    with pytest.raises(ImageError, match=r"floats from 0.5 to 0.5.*--data.white"):
        to_uint8(np.full((4, 4, 3), 0.5, np.float32))


@given(st.lists(st.integers(0, 65535), min_size=1))
def test_the_least_depth_that_holds_all_is_chosen(highs):
    white, news = choose([*ints(*highs), Range("uint8", 0.0, 255.0)])
    bits = next(bits for bits in BITS if all(high < 2**bits for high in highs))
    assert white == White(value=2.0**bits - 1)
    assert (f"read as {bits} bits" in news) == (bits < 16)
    assert ("nearly black" in news) == any(8 * high < 2**bits - 1 for high in highs)
    for high in highs:
        assert Range("uint16", 0.0, float(high)).scale(white) == 2**bits - 1


def test_images_of_8_bits_need_no_level():
    shallow = [Range("uint8", 0.0, 255.0)] * 3
    assert choose(shallow) == (None, "")
    assert choose(shallow, 4095.0)[0] is None
    assert "no effect" in choose(shallow, 4095.0)[1]
    assert shallow[0].scale(White(value=4095.0)) == 255


def test_a_level_that_a_person_sets_clips():
    white, news = choose(ints(900, 4000, 3000), 2000.0)
    assert white == White(value=2000.0, clips=True)
    assert "2 of 3 images hold values above the white level 2000" in news
    assert Range("uint16", 0.0, 60000.0).scale(white) == 2000
    assert choose(ints(900), 2000.0)[1] == ""


def test_floats_between_0_and_1_are_taken_as_they_are_and_others_refused():
    unit = [Range("float32", 0.01, 1.0), Range("float32", 0.0, 0.3)]
    white, news = choose(unit)
    assert white == White(value=1.0)
    assert "1 is white" in news
    with pytest.raises(
        ImageError, match=r"floats from -0.5 to 1; pass --data.white|from -0.5 to 1"
    ):
        choose([*unit, Range("float32", -0.5, 1.0)])
    with pytest.raises(ImageError, match=r"floats from 0 to 80"):
        choose([*unit, Range("float32", 0.0, 80.0)])
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    with pytest.raises(ImageError, match=r"floats from 0 to 1\.0000001, and"):
        choose([*unit, Range("float32", 0.0, above)])
    with pytest.raises(ImageError, match=r"holds floats from 0\.3 to 1\.0000001, and .* is 1;"):
        Range("float32", float(np.float32(0.3)), above).scale(White(value=1.0))
    with pytest.raises(ImageError, match=r"floats and whole numbers"):
        choose([*unit, *ints(4000)])
    assert choose([*unit, *ints(4000)], 4095.0)[0] == White(value=4095.0, clips=True)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (Range("uint16", 0.0, 4096.0), White(value=4095.0)),
        (Range("float32", 0.0, 1.5), White(value=1.0)),
        (Range("float32", -0.1, 1.0), White(value=1.0)),
    ],
)
def test_an_image_of_another_level_than_the_data_is_refused(values, white):
    with pytest.raises(ImageError, match=r"white level of the data is"):
        values.scale(white)


def test_images_of_fewer_bits_among_others_are_said():
    """Of 12 bits beside 16: of their 4096 values 17 grey levels are left."""
    white, news = choose([*ints(4095, 900), *ints(60000)])
    assert white == White(value=65535.0)
    assert "2 of 3 images hold no value above 4095 where 65535 is white" in news
    assert choose(ints(9000, 60000))[1] == ""
    assert "1 of 1 images hold no value above 900 where 65535" in choose(ints(900), 65535.0)[1]
    dark = choose([Range("float32", 0.0, 0.01), Range("float32", 0.0, 0.9)])[1]
    assert "1 of 2 images hold no value above 0.01 where 1 is white" in dark


def test_values_below_0_are_said():
    white, news = choose([Range("float32", -1.0, 1.0), Range("float32", 0.0, 1.0)], 1.0)
    assert white == White(value=1.0, clips=True)
    assert news == "1 of 2 images hold values below 0, which are shown as black."
