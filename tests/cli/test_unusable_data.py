"""Data that a run cannot use or has no room for: each is told in a sentence, or skipped where that is asked for."""

import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from assay.runs.folder import Run


def test_images_may_be_of_any_size_up_to_a_limit(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    rng = np.random.default_rng(1)
    files = sorted(parts.rglob("*.png"))
    shapes = [(30, 300), (300, 30), (700, 500), (97, 96), (1, 1), (2000, 8)]
    for file, shape in zip(files[1:], shapes, strict=False):
        cv2.imwrite(str(file), rng.integers(40, 200, (*shape, 3), dtype=np.uint8))
    head = struct.pack(">II5B", 20_001, 20_000, 8, 2, 0, 0, 0)
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in body
    ]
    files[0].write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    given = ["--data.root", str(parts)]
    _, err = run_script(capsys, tmp_path / "runs", *given, code=2)
    assert "20001 x 20000 = 400020000 pixels, the limit is 400000000" in err
    _, err = run_script(capsys, tmp_path / "runs", *given, "--data.on-error", "skip")
    assert "1 of 20 images are quarantined" in err
    found = list((tmp_path / "runs").glob("fingerprint-*/predictions.parquet"))
    assert len(found) == 2  # chosen and random patches
    for path in found:
        assert np.isfinite(pq.read_table(path)["logits"].to_pylist()).all()


def test_a_truncated_image_is_named_and_can_be_skipped(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    victim = parts / "a" / "King" / "Device_0_Print_002_001.png"
    victim.write_bytes(victim.read_bytes()[:2000])
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), code=2)
    assert "Device_0_Print_002_001.png" in err
    assert "--data.on-error skip" in err
    _, err = run_script(
        capsys, tmp_path / "runs", "--data.root", str(parts), "--data.on-error", "skip"
    )
    assert "1 of 20 images are quarantined" in err
    record = next(
        r
        for f in (tmp_path / "runs").glob("fingerprint-*")
        if (r := Run(f).record).state == "finished"
    )
    assert len(record.quarantined) == 1
    assert "Device_0_Print_002_001.png" in record.quarantined[0].reason


def test_too_few_groups_is_said_with_numbers(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    draw_folder: Callable[..., Path],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root = draw_folder(tmp_path / "few", groups=2)
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(root), code=2)
    assert "SplitError" in err


def test_a_full_disk_is_refused_with_figures_before_anything_is_decoded(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run_script: Callable[..., tuple[str, str]],
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7_000_000))
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), code=2)
    assert re.search(r"needs about \d+ MB for \d+ images, .* 7 MB free, of which 1,074 are", err)
    assert not list((tmp_path / "runs" / "store").glob("*/*"))
