import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from assay.data.images.white import White
from assay.errors import ConfigError, ImageError
from assay.experiment import run as experiment
from assay.experiment.options import parse
from assay.experiment.run import read_data
from assay.runs.folder import Run
from assay.train.source import TaskSource, load_task

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py")


def read_images(folder: Path, *options: str):
    """What `tasks/fingerprint.py --data.root` makes of the images, before it trains."""
    task = load_task(SOURCE)
    root = (
        f"--preset smoke --data.root {folder}/images --data.patterns {{label}}/{{name}} --data.group "
        f"--data.domains --workers 0 --storage {folder}/runs --split.unseen-domain"
    )
    config, resources, _ = parse(task, [*root.split(), "", *options])
    manifest = task.manifest(config, folder / "runs")
    return read_data(SOURCE, manifest, config, resources, folder / "runs").pixels


def draw(folder: Path, step: int, num: int = 3) -> np.ndarray:
    """Write images of two classes, of values 0 to 255 * step in 16 bits, and one of 8 bits."""
    narrow = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    narrow[0, 0] = 255
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        for i in range(num):
            changed = np.roll(narrow, (i, ord(label)), (0, 1)).astype(np.uint16) * step
            assert cv2.imwrite(str(folder / f"images/{label}/{i}.png"), changed[..., ::-1])
    assert cv2.imwrite(str(folder / "images/b/narrow.png"), narrow[..., ::-1])
    return narrow


def test_a_camera_of_12_bits_is_noticed_and_read_as_such(tmp_path, capsys):
    narrow = draw(tmp_path, step=16)
    pixels = read_images(tmp_path)
    assert pixels.white == White(value=4095.0)
    assert (
        "6 images of 16 bits hold no value above 4080: read as 12 bits" in capsys.readouterr().err
    )
    shown = pixels[0].cut((0, 0, 50, 40))
    expected = np.roll(narrow, (0, ord("a")), (0, 1)).astype(float) * 16 * 255 / 4095
    np.testing.assert_array_equal(shown, np.rint(expected))
    np.testing.assert_array_equal(pixels[6].cut((0, 0, 50, 40)), narrow)
    pixels = read_images(tmp_path, "--data.white", "4080")
    assert pixels.white == White(value=4080.0, clips=True)
    np.testing.assert_array_equal(pixels[0].cut((0, 0, 50, 40)), np.roll(narrow, ord("a"), 1))


def test_images_of_all_16_bits_are_read_as_ever_and_say_nothing(tmp_path, capsys):
    narrow = draw(tmp_path, step=257)
    pixels = read_images(tmp_path)
    np.testing.assert_array_equal(pixels[0].cut((0, 0, 50, 40)), np.roll(narrow, ord("a"), 1))
    assert "white" not in capsys.readouterr().err


@pytest.mark.parametrize("white", ["-3", "nan", "inf"])
def test_a_white_level_that_is_none_is_refused(tmp_path, white):
    draw(tmp_path, step=16)
    with pytest.raises(ConfigError, match="white is"):
        read_images(tmp_path, "--data.white", white)


def test_floats_of_any_range_are_refused_until_a_person_says_what_is_white(tmp_path):
    import tifffile

    draw(tmp_path, step=257)
    for path in (tmp_path / "images").glob("*/*.png"):
        values = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB).astype(np.float32) * 3
        tifffile.imwrite(path.with_suffix(".tif"), values, photometric="rgb")
        path.unlink()
    with pytest.raises(ImageError, match=r"7 images .* floats from 0 to 765.*--data\.white"):
        read_images(tmp_path)
    assert read_images(tmp_path, "--data.white", "765")[0].cut((0, 0, 50, 40)).max() == 255


def test_seconds_are_those_of_all_launches_that_ended_whatever_the_clock_is_set_to(
    tmp_path, monkeypatch
):
    """A trial that is judged on val, and shipped later, cost what both took."""
    run, now = Run(tmp_path), time.monotonic()
    elapsed = iter([0.0, 100.0, 0.0, 10.0])
    monkeypatch.setattr(experiment.time, "monotonic", lambda: now + next(elapsed))
    monkeypatch.setattr(experiment.time, "time", iter([9e9, 1e9, 9e9, 1e9]).__next__)
    for name in ("_refuse_other_split", "train", "judge", "ship", "_illustrate", "load_task"):
        monkeypatch.setattr(experiment, name, lambda *_: None)
    monkeypatch.setattr(experiment, "_begin", lambda prepared, run, *_: run.note(state="running"))
    prepared = SimpleNamespace(
        data=SimpleNamespace(source=SOURCE, storage=tmp_path),
        config=None,
        split=SimpleNamespace(tests=()),
    )
    for stage, seconds in (("val", 100.0), ("bundle", 110.0)):
        experiment.complete(prepared, run, None, stage, heartbeat=lambda position: None)
        assert (run.record.state, run.record.stage) == ("finished", stage)
        assert run.record.seconds == pytest.approx(seconds)
