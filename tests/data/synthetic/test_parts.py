"""What is planted is where the truth says, and can be read at full resolution only."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import GroupKFold, cross_val_score

from assay.data.synthetic.parts import (
    MACHINES,
    SEEN_DESIGNS,
    UNSEEN_DESIGNS,
    PartsConfig,
    draw_part,
    draw_parts,
    read_zones,
    zone_hits,
)
from assay.errors import ConfigError

DESIGNS = SEEN_DESIGNS + UNSEEN_DESIGNS
TINY = PartsConfig(size_px=256, parts_per_seen=1, parts_per_unseen=1, num_views=1)


def test_files_parse_and_a_second_call_draws_nothing(tmp_path: Path):
    draw_parts(tmp_path, TINY)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert len(files) == 6 * 9
    assert {file.parts[0] for file in files} == set(MACHINES)
    assert {file.parts[1] for file in files} == set(DESIGNS)
    assert files[0].name == "Device_1_Print_001_001.png"
    zones = read_zones(tmp_path)
    assert set(zones) == {file.as_posix() for file in files}
    image = cv2.imread(str(tmp_path / files[7]))[..., ::-1]
    drawn = draw_part(TINY, 0, files[7].parts[1], 0, 0)
    assert np.array_equal(image, drawn.pixels)
    assert np.array_equal(zones[files[7].as_posix()], drawn.zones)

    (tmp_path / files[0]).unlink()
    draw_parts(tmp_path, TINY)
    assert not (tmp_path / files[0]).exists()
    with pytest.raises(ConfigError, match="another config"):
        draw_parts(tmp_path, dataclasses.replace(TINY, seed=1))


def test_an_interrupted_drawing_is_taken_up(tmp_path: Path):
    draw_parts(tmp_path, TINY)
    (tmp_path / "truth.json").unlink()
    file = next(tmp_path.rglob("*.png"))
    content = file.read_bytes()
    file.write_bytes(b"half")
    draw_parts(tmp_path, TINY)
    assert file.read_bytes() == content


def test_an_image_depends_on_its_own_key_alone():
    config = PartsConfig(size_px=256)
    alone = draw_part(config, 2, "King", 3, 1)
    for part in range(2):
        draw_part(config, 4, "Plug", part, 0)
    assert np.array_equal(draw_part(config, 2, "King", 3, 1).pixels, alone.pixels)
    more = dataclasses.replace(config, parts_per_seen=50, num_views=9)
    assert np.array_equal(draw_part(more, 2, "King", 3, 1).pixels, alone.pixels)
    for other in (
        draw_part(config, 2, "King", 3, 0),
        draw_part(config, 2, "King", 4, 1),
        draw_part(config, 3, "King", 3, 1),
        draw_part(dataclasses.replace(config, seed=1), 2, "King", 3, 1),
    ):
        assert not np.array_equal(other.pixels, alone.pixels)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("size_px", [256, 512])
def test_zones_lie_inside_the_part_and_apart(design, size_px):
    for seed in range(3):
        image = draw_part(PartsConfig(seed=seed, size_px=size_px), seed, design, 0, seed)
        boxes = np.concatenate([image.zones, image.decoys])
        assert len(image.zones) == len(image.decoys) == 3
        assert boxes.min() >= 0
        assert boxes.max() <= size_px
        brightness = cv2.blur(image.pixels.mean(2), (5, 5))
        threshold = (brightness.min() + brightness.max()) / 2
        for x0, y0, x1, y1 in boxes:
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (x1 - x0, y1 - y0))
            assert brightness[y0:y1, x0:x1][disc > 0].min() > threshold
            assert x1 - x0 == pytest.approx(size_px * 54 / 512, rel=0.12)
        inner = boxes + size_px // 100 * np.array([1, 1, -1, -1])
        for index, box in enumerate(inner):
            assert not zone_hits(np.delete(inner, index, 0), box[None]).any()


def test_the_truth_is_where_the_signal_is():
    """With and without signal, the same image differs in zones and decoys and nowhere else."""
    config = PartsConfig()
    with_signal = draw_part(config, 1, "Clip", 0, 0)
    without = draw_part(dataclasses.replace(config, signal=0.0), 1, "Clip", 0, 0)
    assert np.array_equal(with_signal.zones, without.zones)
    difference = np.abs(with_signal.pixels.astype(int) - without.pixels).max(2)
    inside = np.zeros(difference.shape, bool)
    for x0, y0, x1, y1 in np.concatenate([with_signal.zones, with_signal.decoys]):
        assert difference[y0:y1, x0:x1].mean() > 2
        inside[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = True
    assert difference[~inside].max() == 0
    small = [
        cv2.resize(image.pixels, (128, 128), interpolation=cv2.INTER_AREA).astype(int)
        for image in (with_signal, without)
    ]
    assert np.abs(small[0] - small[1]).max() <= 1  # rounding


def test_machines_are_read_at_full_resolution_and_not_from_the_overview():
    """A linear probe on the spectrum of zones: at scale 1 and at the overview's 1/4.

    Folds over parts, chance 1/6; half of the decoys carry a machine's raster, of any machine.
    """
    config = PartsConfig()
    spectra: dict[str, list[np.ndarray]] = {"full": [], "overview": [], "decoy": []}
    labels, groups = [], []
    for index in range(108):
        machine, design, part = index % 6, DESIGNS[index // 6 % 9], index // 54
        image = draw_part(config, machine, design, part, 0)
        overview = cv2.resize(image.pixels, (128, 128), interpolation=cv2.INTER_AREA)
        for zone, decoy in zip(image.zones, image.decoys, strict=True):
            spectra["full"].append(spectrum(image.pixels, zone, 32))
            spectra["decoy"].append(spectrum(image.pixels, decoy, 32))
            spectra["overview"].append(spectrum(overview, zone // 4, 8))
        labels += [machine] * 3
        groups += [index] * 3
    accuracy = {
        name: probe_accuracy(np.array(rows), labels, groups) for name, rows in spectra.items()
    }
    assert accuracy["full"] > 0.75, accuracy
    assert accuracy["overview"] < 0.25, accuracy  # 1/6 and four standard errors
    assert accuracy["decoy"] < 0.25, accuracy


def probe_accuracy(spectra: np.ndarray, labels: list[int], groups: list[int]) -> float:
    probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    folds = GroupKFold(6, shuffle=True, random_state=0)
    return cross_val_score(probe, spectra, labels, groups=groups, cv=folds).mean()


def spectrum(pixels: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    y, x = (box[1::2].sum() - side) // 2, (box[::2].sum() - side) // 2
    patch = pixels[y : y + side, x : x + side].astype(float).mean(2)
    return np.log1p(np.abs(np.fft.rfft2(patch - patch.mean()))).ravel()


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_shortcut_is_there_when_asked_and_in_seen_designs_only(shortcut):
    config = PartsConfig(size_px=128, shortcut=shortcut)
    colours: dict[str, list[np.ndarray]] = {"King": [], "Plug": []}
    for design, tables in colours.items():
        for machine in range(6):
            corners = [
                draw_part(config, machine, design, part, 0).pixels[:4, :4].mean((0, 1))
                for part in range(6)
            ]
            tables.append(np.array(corners) - np.mean(corners, axis=1, keepdims=True))
    spread = {
        design: np.mean([table.std(0).mean() for table in tables])
        for design, tables in colours.items()
    }
    assert (spread["King"] < 3) == shortcut
    assert spread["Plug"] > 3


def test_zone_hits_needs_half_of_the_patch_on_one_zone():
    zones = np.array([[10, 10, 50, 50], [60, 10, 100, 50]])
    patches = np.array(
        [[20, 20, 40, 40], [0, 20, 20, 40], [0, 20, 19, 40], [30, 10, 80, 50], [90, 90, 99, 99]]
    )
    assert zone_hits(zones, patches).tolist() == [True, True, False, False, False]


def test_a_full_disk_leaves_no_drawing_that_is_taken_for_whole(tmp_path, full_disk):
    config = PartsConfig(size_px=64, parts_per_seen=1, parts_per_unseen=0, num_views=1)
    with pytest.raises(OSError, match="File too large"), full_disk(200):
        draw_parts(tmp_path, config)
    assert not list(tmp_path.rglob("*.png"))
    draw_parts(tmp_path, config)  # what was broken off is drawn again
    assert list(tmp_path.rglob("*.png"))
    (tmp_path / "truth.json").write_text('{"conf')
    with pytest.raises(ConfigError, match=r"truth\.json is missing or damaged .* drawn anew"):
        draw_parts(tmp_path, config)
