"""Extrusion: the source's recipe against a table, and what judging adds."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assay.config import Settings
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageInput
from assay.metrics.decide import DecideConfig
from assay.nn.optim import lr_factor
from assay.train.source import TaskSource, load_task

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "extrusion.py")
TASK: Any = load_task(SOURCE)
SMOKE: Any = TASK.presets()["smoke"]

# The recipe of seed system 003

RECIPE: Mapping[str, Any] = {
    "model.network": "cifar_resnet10-flat",
    "model.weights": "none",
    "algorithm.name": "dann-source",
    "algorithm.weight": 0.6,
    "algorithm.consistency": "none",
    "domains.order": "uniform",
    "loss.class_weights": "balanced",
    "loss.label_smoothing": 0.0,
    "train.epochs": 5,
    "train.batch_size": 8,
    "train.precision": "fp32",
    "train.patience": 0,
    "optim.optimizer": "adam",
    "optim.lr": 1e-3,
    "optim.weight_decay": 1e-4,
    "optim.decays": "all",
    "optim.schedule": "exponential",
    "optim.warmup": 0.0,
    "optim.grad_clip": 0.0,
    "average.weights": "last",
    "image.height_px": 128,
    "image.width_px": 256,
    "image.fit": "crop",
    "image.normalise": "constants",
    "image.mean": (0.43335, 0.43360, 0.42602),
    "image.std": (0.28486, 0.28320, 0.28700),
    "image.clahe_clip": 0.0,
    "transform.hflip": 0.0,
    "transform.vflip": 0.0,
    "transform.affine": 0.0,
    "transform.brightness": 0.0,
    "transform.contrast": 0.0,
    "transform.saturation": 0.0,
    "transform.hue": 0.0,
    "transform.noise": 0.0,
    "split.unseen_domain": "printer_id",
    "data.image": "img_path",
    "data.label": "has_under_extrusion",
    "data.group": ("printer_id", "print_id"),
    "data.domains": ("printer_id",),
    "frames.time": "stem",
}


def value_of(config: Settings, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_the_sources_recipe_is_true_in_every_parameter():
    recipe = TASK.presets()["source"]
    assert {name: value_of(recipe, name) for name in RECIPE} == dict(RECIPE)
    stated = {name.split(".")[0] for name in RECIPE}
    unstated = {"nozzles", "quantize", "decide", "alarm", "adapt", "robustness"}
    assert {*vars(recipe)} == stated | unstated


def test_the_sources_rate_falls_to_a_tenth_with_each_epoch():
    recipe = TASK.presets()["source"]
    for epoch in range(recipe.train.epochs + 1):
        factor = lr_factor(recipe.optim, epoch / recipe.train.epochs)
        assert factor == pytest.approx(0.1**epoch)


def test_the_source_cuts_the_middle_to_two_by_one():
    """An image of 4:3 loses its upper and lower sixth; the nozzle at its centre stays there."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[:80], image[-80:] = (255, 0, 0), (0, 255, 0)
    image[235:245, 315:325] = 255
    shown = ImageInput(TASK.presets()["source"].image).show(ImagePyramid.of(image))
    assert shown.shape == (128, 256, 3)
    assert not shown[2:-2, :100].any()
    rows, columns = np.nonzero(shown[..., 2])
    assert (rows.mean(), columns.mean()) == pytest.approx((63.5, 127.5), abs=0.6)


# Judging


def predictions(right_after: int) -> pa.Table:
    """Val of two printers and test of a third, frames every second; the fault shows after so many frames."""
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for name, printers in (("val", "ab"), ("test_unseen", "c")):
        for printer in printers:
            for number in range(6):
                for frame in range(20):
                    faulty = number % 2
                    shows = faulty and frame >= right_after
                    vector = np.array([ord(printer) - 98, *np.eye(6)[number]])
                    vector += rng.normal(0, 0.1, 7)
                    rows.append(
                        {
                            "id": f"{printer}/{number}/{frame:02d}",
                            "split": name,
                            "group": f"{printer}/{number}",
                            "domain.printer_id": printer,
                            "truth": faulty,
                            "logits": [0.0, 3.0 if shows else -1.0],
                            "features": vector.tolist(),
                            "seconds": float(frame),
                        }
                    )
    table = pa.Table.from_pylist(rows)
    return table.replace_schema_metadata({b"classes": json.dumps(["0", "1"]).encode()})


def test_probes_alarms_and_early_answers_are_judged():
    judged = TASK.judge(SMOKE, predictions(right_after=5), Path())
    val, unseen = judged.metrics["val"], judged.metrics["test_unseen"]
    assert val["domain_probe"].value > 0.95
    assert val["domain_chance"].value == pytest.approx(0.5)
    assert "domain_probe" not in unseen  # of one printer
    assert unseen["group_probe"].value > 0.95
    assert unseen["group_chance"].value == pytest.approx(1 / 6)
    # the sum rises above 0, and the mean above the -1 of sound prints, at the sixth frame
    assert unseen["cusum_delay_s"].value == pytest.approx(5.0)
    assert unseen["average_delay_s"].value == pytest.approx(5.0)
    assert unseen["cusum_false_per_hour"].value == 0.0
    assert not judged.warnings
    (figure,) = judged.figures
    assert set(figure.series) == {"test_unseen, a frame", "test_unseen, mean until then"}
    assert set(unseen) <= set(judged.measures)


def test_without_times_or_a_named_fault_the_rest_is_judged():
    table = predictions(5)
    no_fault = replace(SMOKE, decide=DecideConfig())
    judged = TASK.judge(no_fault, table, Path())
    assert set(judged.metrics["val"]) == {
        f"{kind}_{key}" for kind in ("domain", "group") for key in ("probe", "chance")
    }
    assert len(judged.figures) == 1
    assert not TASK.judge(SMOKE, table.drop_columns(["seconds"]), Path()).figures
    bare = TASK.judge(no_fault, table.drop_columns(["seconds", "features"]), Path())
    assert not bare.metrics


def test_settings_of_an_alarm_that_cannot_be_judged_have_no_effect():
    alarms = [
        {name for name in config.idle() if name.startswith("alarm.")}
        for config in (SMOKE, replace(SMOKE, decide=DecideConfig()), TASK.presets()["files"])
    ]
    every = {f"alarm.{name}" for name in ("kind", "reference", "window", "false_per_hour")}
    assert alarms == [{"alarm.kind"}, every, every]


def test_erm_stands_beside_any_other_algorithm():
    demo = TASK.presets()["demo"]
    (name, erm), *others = TASK.baselines(demo).items()
    assert (name, erm.algorithm.name, others) == ("erm", "erm", [])
    assert replace(erm, algorithm=demo.algorithm) == demo
    assert TASK.baselines(erm) == {}


def test_a_search_is_over_ranges_for_random_weights_or_pretrained_ones():
    demo = TASK.presets()["demo"]
    scratch, hub = TASK.space(demo), TASK.space(TASK.presets()["files"])
    assert scratch["optim.lr"].high == pytest.approx(10**-2.5)
    assert hub["optim.lr"].high == pytest.approx(10**-3.5)
    assert "algorithm.weight" in scratch
    assert "algorithm.weight" not in hub
