"""The presets of tasks/fingerprint.py: the baseline beside them, evidence by deletion, and weights of others."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest

from assay.cli.task import main
from assay.experiment.earlier import find
from assay.experiment.options import parse
from assay.experiment.run import complete, prepare, read_data
from assay.runs.results import read_result
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
SOURCE = TaskSource.read(SCRIPT)


def test_the_baseline_differs_in_nothing_but_where_it_looks() -> None:
    task = load_task(SOURCE)
    for name, config in task.presets().items():
        (baseline,) = task.baselines(config).values()
        assert baseline.model.mode == "random", name
        inert = {n: getattr(config.model, n) for n in baseline.model.idle()}
        assert replace(baseline, model=replace(baseline.model, mode="dps", **inert)) == config
        assert task.baselines(baseline) == {}


def test_evidence_is_what_deletion_costs_beyond_random_deletion(tmp_path: Path) -> None:
    task = load_task(SOURCE)
    config: Any = task.presets()["readme"]
    config = replace(config, data=replace(config.data, root=tmp_path))
    sure, wrong = [1.0, 0.0], [0.0, 1.0]
    ids = list("abcdef")
    columns = {
        "id": ids,
        "split": ["test"] * 6,
        "group": ids,
        "truth": [0] * 6,
        "logits_without_chosen": [wrong] * 5 + [sure],
        "logits_without_random": [sure] * 5 + [wrong],
    }
    table = pa.table(columns)
    estimates = task.judge(config, table, tmp_path).metrics["test"]
    values = {name: round(estimate.value, 6) for name, estimate in estimates.items()}
    assert values == {
        "accuracy_without_chosen": round(1 / 6, 6),
        "accuracy_without_random": round(5 / 6, 6),
        "evidence": round(4 / 6, 6),
    }
    assert estimates["evidence"].low < values["evidence"] < estimates["evidence"].high


@pytest.mark.parametrize("preset", ["parts", "files"])
def test_weights_that_cannot_be_had_are_said_before_an_image_is_decoded(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "*")
    for label, view in itertools.product("ab", range(9)):
        path = tmp_path / "parts" / label / f"d{view % 3}" / f"P{view}_azimuth_0_polar_{view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8), 10 * view + ord(label), np.uint8))
    patterns = ["--data.patterns", "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}"]
    runs = ["--workers", "0", "--storage", str(tmp_path / "runs")]
    options = ["--preset", preset, "--data.root", str(tmp_path / "parts"), *patterns, *runs]
    with pytest.raises(SystemExit) as ended:
        main(str(SCRIPT), options)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "hub cannot be reached" in error
    assert "--model.weights none with --model.norm group" in error
    assert "decoded" not in error


def test_a_pretrained_preset_learns_with_weights_of_a_file(
    lite0: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real ImageNet weights in backbone and scorer: two kinds of stripes are told apart in a few updates."""
    rng = np.random.default_rng(0)
    for label, step in (("fine", 4), ("coarse", 16)):
        for i in range(12):
            stripes = 110 + 60 * (np.arange(96) // step % 2)[:, None, None]
            image = stripes + rng.normal(0, 12, (96, 96, 3))
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
    options = (
        f"--preset files --data.root {tmp_path}/images --workers 0 --storage {tmp_path}/runs "
        f"--model.backbone tf_efficientnet_lite0 --model.weights {lite0} --model.trunk tf_efficientnet_lite0 "
        f"--model.scorer-weights {lite0} --patches.normalise constants --patches.image-px 96 "
        "--patches.overview-px 96 --patches.patch-px 64 --model.trainable-blocks 0 --train.epochs 5"
    )
    task = load_task(SOURCE)
    config, resources, _ = parse(task, options.split())
    storage = tmp_path / "runs"
    manifest = task.manifest(config, storage)
    data = read_data(SOURCE, manifest, config, resources, storage)
    run = find(SOURCE, config, manifest, storage, stage="val")
    with run.lease():
        complete(prepare(data, config, "files"), run, resources, stage="val")
    [estimate] = [read_result(run.folder).sets["val"].metrics["accuracy"]]
    assert estimate is not None
    assert estimate.value == 1.0
    assert not any("never had a gradient" in text for text in run.record.warnings)
    assert "no effect" not in capsys.readouterr().err
