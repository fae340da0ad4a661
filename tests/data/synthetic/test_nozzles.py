"""What is planted at the nozzle is there, and the lamp knows the label only where it should."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from assay.data.manifest import DataConfig, read_manifest
from assay.data.synthetic.nozzles import (
    FRAME_S,
    LAMP_AGREES,
    ODD_PRINTER,
    PRINTERS,
    TABLE,
    NozzlesConfig,
    draw_frame,
    draw_nozzles,
    is_faulty,
)
from assay.errors import ConfigError

TINY = NozzlesConfig(height_px=32, num_prints=2, num_frames=3)


def read_table(folder: Path):
    data = DataConfig(
        root=folder / TABLE,
        image="img_path",
        label="has_under_extrusion",
        group=("printer_id", "print_id"),
        domains=("printer_id",),
    )
    return read_manifest(data, folder / "hashes.sqlite")


def test_the_table_reads_as_the_competitions(tmp_path):
    draw_nozzles(tmp_path, TINY)
    manifest = read_table(tmp_path)
    assert len(manifest) == 7 * 2 * 3
    assert set(manifest.column("domain.printer_id")) == set(PRINTERS)
    labels: dict[str, set[str]] = {}
    for group, label in zip(manifest.column("group"), manifest.column("label"), strict=True):
        labels.setdefault(group, set()).add(label)
    assert len(labels) == 14
    assert all(len(of_print) == 1 for of_print in labels.values())
    assert sorted(manifest.column("label")) == ["0"] * 21 + ["1"] * 21
    # the stem of a file is its time, and frames of a print are half a second apart
    times = np.array(sorted(float(Path(p).stem) for p in (tmp_path / "images/021/1").iterdir()))
    np.testing.assert_allclose(np.diff(times), FRAME_S)


def test_a_second_call_draws_nothing_and_another_config_is_refused(tmp_path):
    draw_nozzles(tmp_path, TINY)
    paths = sorted(tmp_path.rglob("*.png"))
    truth = json.loads((tmp_path / "truth.json").read_text())["images"]
    assert set(truth) == {path.relative_to(tmp_path).as_posix() for path in paths}
    frame = draw_frame(TINY, 0, 0, 0)
    assert np.array_equal(cv2.imread(str(paths[0]))[..., ::-1], frame.pixels)
    assert truth[paths[0].relative_to(tmp_path).as_posix()]["lamp"] == frame.lamp
    paths[0].unlink()
    draw_nozzles(tmp_path, TINY)
    assert not paths[0].exists()
    with pytest.raises(ConfigError, match="another config"):
        draw_nozzles(tmp_path, replace(TINY, shortcut=True))


def test_a_frame_depends_on_its_own_key_alone():
    longer = replace(TINY, num_prints=9, num_frames=30)
    first, second = draw_frame(TINY, 3, 1, 2), draw_frame(longer, 3, 1, 2)
    assert np.array_equal(first.pixels, second.pixels)
    assert not np.array_equal(first.pixels, draw_frame(replace(TINY, seed=1), 3, 1, 2).pixels)


def gaps(pixels: np.ndarray) -> float:
    """Contrast along the middle of the printed lines, relative to their own brightness."""
    rows = pixels[40:56].astype(float).mean(2)
    return float(np.mean(np.percentile(rows, 95, axis=1) / np.percentile(rows, 10, axis=1)))


def auc(config: NozzlesConfig, printer: int, index: int) -> float:
    """How well the gaps alone tell prints apart at one time."""
    numbers = range(30)
    scores = [gaps(draw_frame(config, printer, number, index).pixels) for number in numbers]
    return roc_auc_score([is_faulty(printer, number) for number in numbers], scores)


@pytest.mark.parametrize("printer", range(7))
def test_under_extruded_lines_have_gaps_on_every_printer(printer):
    assert auc(NozzlesConfig(), printer, 19) > 0.97


def test_a_fault_shows_only_after_some_time_and_without_a_signal_never():
    slow = NozzlesConfig(rise_s=20.0)
    early, late = (np.mean([auc(slow, p, i) for p in range(7)]) for i in (0, 39))
    assert early < 0.75
    assert late > 0.97
    none = np.mean([auc(NozzlesConfig(signal=0.0), p, 19) for p in range(7)])
    assert abs(none - 0.5) < 0.1


def test_the_truth_is_the_width():
    config = NozzlesConfig()
    widths = {True: [], False: []}
    for printer in range(7):
        for number in range(10):
            widths[is_faulty(printer, number)].append(draw_frame(config, printer, number, 19).width)
    assert np.mean(widths[False]) == pytest.approx(1.0, abs=0.02)
    assert np.mean(widths[True]) == pytest.approx(0.65, abs=0.03)


@pytest.mark.parametrize("shortcut", [True, False])
def test_the_lamp_agrees_with_the_label_where_it_is_a_shortcut(shortcut):
    """Within four standard errors; on the last printer it lies, and without a shortcut it is random everywhere."""
    config = replace(TINY, shortcut=shortcut)
    assert PRINTERS[LAMP_AGREES.index(min(LAMP_AGREES))] == ODD_PRINTER
    assert [share > 0.5 for share in LAMP_AGREES] == [True] * 6 + [False]
    for printer, share in enumerate(LAMP_AGREES):
        keys = [(number, index) for number in range(20) for index in range(10)]
        frames = [draw_frame(config, printer, *key) for key in keys]
        agree = [f.lamp == is_faulty(printer, key[0]) for f, key in zip(frames, keys, strict=True)]
        expected = share if shortcut else 0.5
        error = np.sqrt(expected * (1 - expected) / len(keys))
        assert abs(np.mean(agree) - expected) < 4 * error


def test_the_lamp_is_seen():
    config = replace(TINY, shortcut=True)
    frames = [draw_frame(config, 0, number, 0) for number in range(20)]
    reds = [float(f.pixels[3:6, 3:6, 0].mean()) for f in frames]
    assert min(r for r, f in zip(reds, frames, strict=True) if f.lamp) > 200
    assert max(r for r, f in zip(reds, frames, strict=True) if not f.lamp) < 100
