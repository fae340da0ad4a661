"""Masks belong to the content of their image; corrections are neither lost nor misused."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.csv
import pytest

from assay.data.images.decode import read, write_png
from assay.data.masks.given import open_mask
from assay.data.masks.rules import MaskConfig, make
from assay.errors import MaskError

CONFIG = MaskConfig()


@pytest.fixture
def recorded(grey, discs):
    """Records an image under a name: dark discs elsewhere for each seed."""
    return lambda path, value, seed: write_png(path, grey(np.minimum(discs(seed, 64)[0], value)))


def test_a_build_recorded_again_has_its_masks_made_anew(
    pictures, prepare, prepared, recorded, tmp_path
):
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


def test_a_correction_of_another_image_is_neither_used_nor_lost(
    pictures, prepare, prepared, recorded, tmp_path
):
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


def test_a_correction_of_another_given_mask_is_refused(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 1)
    config = MaskConfig(files="m/{name}.png")
    write_png(tmp_path / "in/m/0.png", np.eye(64, dtype=np.uint8) * 255)
    (mask,) = prepare(images, tmp_path / "in", config, tmp_path / "out")
    correct(mask)
    prepare(images, tmp_path / "in", config, tmp_path / "out")
    write_png(tmp_path / "in/m/0.png", np.eye(64, dtype=np.uint8)[::-1] * 255)
    with pytest.raises(MaskError, match="corrected by a person"):
        prepare(images, tmp_path / "in", config, tmp_path / "out")


def test_a_run_that_ended_between_record_and_mask_is_no_correction(
    pictures, prepare, prepared, recorded, tmp_path, monkeypatch
):
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


def test_two_at_once_do_not_harm_each_other(pictures, prepare, prepared, recorded, tmp_path):
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
def test_a_damaged_record_is_named(pictures, prepare, tmp_path, content):
    images = pictures(tmp_path / "in", 1)
    (mask,) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    mask.with_suffix(".json").write_text(content)
    with pytest.raises(MaskError, match=r"json is damaged"):
        prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_sentence(pictures, prepare, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MaskError, match="cannot be"):
        prepare(pictures(tmp_path / "in", 1), tmp_path / "in", CONFIG, tmp_path / "out")
