"""The layout of MVTec AD, as segment.py and anomaly.py learn from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from assay.data.masks import account
from assay.data.split import draw_split
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "segment.py"
TASK = load_task(TaskSource.read(SCRIPT))


def mvtec(root: Path) -> Path:
    """Draw a product in MVTec AD's layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png."""
    rng = np.random.default_rng(0)
    for kind in ("train/good", "test/good", "test/broken", "test/dirt"):
        for name in ("000", "001", "002"):
            image, mask = rng.normal(150, 9, (64, 64, 3)).clip(0, 255), np.zeros((64, 64), np.uint8)
            if "good" not in kind:
                mask[8:24, 30:50] = 255
                image[mask > 0] = 20
            paths = {root / kind / f"{name}.png": image.astype(np.uint8)}
            if "good" not in kind:
                paths[root / "ground_truth" / kind[5:] / f"{name}_mask.png"] = mask
            for path, pixels in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    return root


def test_the_layout_of_mvtec_ad(tmp_path):
    base: Any = TASK.presets()["mvtec"]
    config = replace(base, data=replace(base.data, root=mvtec(tmp_path / "bottle")))
    manifest = TASK.manifest(config, tmp_path / "runs")
    marked = [
        int((cv2.imread(path, cv2.IMREAD_UNCHANGED) > 0).sum())
        for path in manifest.column("mask.label")
    ]
    kinds = manifest.column("domain.kind")
    assert marked == [0 if kind == "good" else 320 for kind in kinds]
    assert sorted(set(kinds)) == ["broken", "dirt", "good"]
    counts = account.of_table(manifest.table)["label"]
    assert (counts.given, counts.without, counts.unused_files) == (6, 6, 0)
    sets = draw_split(manifest, config.split)
    assert any(marked[row] for row in sets.rows("train"))
    assert any(marked[row] for row in sets.rows("test"))
    assert counts.passed_over == 0
    (tmp_path / "bottle/ground_truth/dirt/001_mask.png").unlink()
    manifest = TASK.manifest(config, tmp_path / "runs")
    counts = account.of_table(manifest.table)["label"]
    assert (counts.without, counts.passed_over) == (7, 1)
    assert counts.first["passed_over"].endswith("test/dirt/001.png")


def test_good_parts_of_mvtec_ad_teach_and_its_test_judges(tmp_path):
    task = load_task(TaskSource.read(SCRIPT.with_name("anomaly.py")))
    base: Any = task.presets()["mvtec"]
    config = replace(base, data=replace(base.data, root=mvtec(tmp_path / "bottle")))
    manifest = task.manifest(config, tmp_path / "runs")
    sets = draw_split(manifest, config.split)
    folders = [name.rpartition("/")[0] for name in manifest.column("id")]
    names = {name: sorted(folders[row] for row in sets.rows(name)) for name in set(sets.sets)}
    assert names == {
        "train": 2 * ["train/good"],
        "val": ["train/good"],
        "test": 3 * ["test/broken"] + 3 * ["test/dirt"] + 3 * ["test/good"],
    }
