"""The castings: the source's recipes against a table, and teachers, good and bad."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.cli.task import experiment
from assay.config import Settings
from assay.data.dataset import Dataset
from assay.errors import ConfigError
from assay.experiment.earlier import find
from assay.experiment.identity import identity
from assay.experiment.options import parse
from assay.experiment.places import absolute
from assay.experiment.run import StoredImages, complete, prepare, read_data
from assay.metrics.decide import DecideConfig
from assay.runs.folder import Run
from assay.runs.results import read_predictions
from assay.train.distill import SavedRun, divergence, open_teacher
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "casting.py")
TASK: Any = load_task(SOURCE)
SMOKE = ["--preset", "smoke", "--workers", "0", "--train.epochs", "1"]

# Recipes

BOTH: dict[str, Any] = {
    "split.val": 0.1,
    "split.seed": 42,
    "train.seed": 42,
    "train.batch_size": 16,
    "train.precision": "fp32",
    "train.patience": 0,
    "optim.optimizer": "adam",
    "optim.weight_decay": 2.5e-4,
    "optim.decays": "all",
    "optim.schedule": "constant",
    "optim.grad_clip": 0.0,
    "loss.label_smoothing": 0.0,
    "loss.class_weights": "none",
    "image.height_px": 300,
    "image.width_px": 300,
    "image.fit": "stretch",
    "image.box": (0.0, 0.0, 1.0, 1.0),
    "image.normalise": "constants",
    "image.mean": (0.5643, 0.5643, 0.5643),
    "image.std": (0.2386, 0.2386, 0.2386),
    "image.clahe_clip": 0.0,
    "transform.hflip": 0.5,
    "transform.vflip": 0.3,
    "transform.degrees": 2.5,
    "transform.translate": 0.05,
    "transform.scale": 0.05,
    "transform.affine": 1.0,
    "transform.brightness": 0.2 * 0.5643 / 0.2386,
    "transform.contrast": 0.2,
    "transform.saturation": 0.0,
    "transform.hue": 0.2,
    "transform.noise": 0.0,
    "model.norm": "batch",
    "model.dropout": 0.0,
    "distill.teacher": None,
}
TABLE: dict[str, dict[str, Any]] = {
    "source": BOTH
    | {
        "train.epochs": 6,
        "optim.lr": 2e-5,
        "model.network": "resnet18",
        "model.weights": "hub",
        "regime.regime": "full",
        "regime.body_lr": 1.0,
        "regime.statistics": "moved",
    },
    "source-luna": BOTH
    | {
        "train.epochs": 50,
        "optim.lr": 1e-3,
        "model.network": "luna",
        "model.weights": "none",
        "regime.regime": "scratch",
    },
}
FREE = {"train.eval_batch_size", "train.select", "train.val_every"}
"""Of the judging alone."""


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_the_sources_in_every_parameter(name: str) -> None:
    recipe = TASK.presets()[name]
    values = {
        f"{section}.{field.name}": getattr(getattr(recipe, section), field.name)
        for section in ("train", "optim", "loss", "image", "transform", "model", "regime")
        for field in fields(getattr(recipe, section))
    }
    values |= {f"split.{key}": getattr(recipe.split, key) for key in ("val", "seed")}
    values["distill.teacher"] = recipe.distill.teacher
    stated = {key: value for key, value in values.items() if key not in FREE | recipe.idle().keys()}
    assert stated == TABLE[name]


# Baselines


def test_beside_a_clean_split_stands_the_published_one_and_beside_luna_two_others() -> None:
    assert TASK.baselines(TASK.presets()["demo"]).keys() == {"resnet", "efficientnet"}
    demo, _, _ = parse(TASK, ["--preset", "demo", "--castings.leak"])
    assert TASK.baselines(demo).keys() == {"published", "resnet", "efficientnet"}
    for name, other in TASK.baselines(demo).items():
        changed = {f.name for f in fields(demo) if getattr(demo, f.name) != getattr(other, f.name)}
        assert changed == ({"split"} if name == "published" else {"model", "optim", "train"})
        assert replace(other.train, epochs=demo.train.epochs) == demo.train
    short, _, _ = parse(TASK, ["--preset", "demo", "--train.epochs", "2"])
    assert {other.train.epochs for other in TASK.baselines(short).values()} == {2}
    own, _, _ = parse(TASK, ["--preset", "demo", "--data.root", "parts"])
    assert TASK.baselines(own).keys() == {"published"}
    kept, _, _ = parse(TASK, ["--preset", "source", "--data.root", "parts"])
    assert TASK.baselines(kept) == {}


def test_copies_across_the_published_split_are_left_out_of_the_clean_one(tmp_path: Path) -> None:
    """With the planted leak, both are judged on the same test images."""
    sizes = ["--castings.num-train", "80", "--castings.num-test", "24", "--castings.size-px", "96"]
    options = [*SMOKE, "--castings.leak", *sizes]
    config, resources, _ = parse(TASK, options)
    manifest = TASK.manifest(config, tmp_path)
    data = read_data(SOURCE, manifest, config, resources, tmp_path)
    clean = prepare(data, config, "casting")
    published = prepare(data, TASK.baselines(config)["published"], "published")
    np.testing.assert_array_equal(clean.split.rows("test"), published.split.rows("test"))
    assert published.split.report["near_duplicates_test"] > 6
    assert clean.split.report["near_duplicates_test"] == 0
    assert len(clean.split.rows("train")) < len(published.split.rows("train"))


# Teachers


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(storage: Path) -> StoredImages:
    config, resources, _ = parse(TASK, SMOKE)
    manifest = TASK.manifest(config, storage)
    return read_data(SOURCE, manifest, config, resources, storage)


def trained(data: StoredImages, *options: str) -> Run:
    config, resources, _ = parse(TASK, [*SMOKE, *options])
    run = find(SOURCE, config, data.manifest, data.storage, stage="test")
    with run.lease():
        complete(prepare(data, config, "casting"), run, resources, stage="test")
    return run


@pytest.fixture(scope="module")
def teacher(data: StoredImages) -> Path:
    """A run on images of another size and normalisation than the student's."""
    return trained(
        data,
        *("--image.height-px", "48", "--image.width-px", "48"),
        *("--image.normalise", "imagenet", "--train.seed", "4"),
    ).folder


def test_a_student_learns_from_the_teachers_view(data: StoredImages, teacher: Path) -> None:
    """Its views are prepared as the teacher's own, and its answers are those of the best weights."""
    student = trained(
        data,
        "--distill.teacher",
        str(teacher),
        "--distill.weight",
        "0.5",
        "--distill.temperature",
        "2",
    )
    saved = SavedRun.open(student.folder)
    dataset = Dataset.of(data.manifest, data.pixels, np.arange(8))
    task: Any = saved.load(dataset)
    assert not any("teacher" in name for name in task.state_dict())
    rows = np.arange(8)
    samples = BatchRows(rows, np.arange(8, dtype=np.uint64), True)
    batch = TASK.prepare(saved.config, dataset, samples)
    master = open_teacher(teacher)
    config = replace(master.config, transform=saved.config.transform)
    view = master.task.prepare(config, dataset, samples)
    assert view["image"].shape == (8, 48, 48, 3)
    for name in ("image", "mean", "std"):
        np.testing.assert_array_equal(batch[f"teacher_{name}"], view[name])
    taught = master.load(dataset).predict(view)["logits"]
    outputs = task(batch, 0.5)
    logits = task.predict(batch)["logits"]
    expected = 0.5 * divergence(logits, taught, 2.0)
    assert outputs["distill_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    entropy = torch.nn.functional.cross_entropy(logits, task.truth(batch))
    assert outputs["loss"].item() == pytest.approx((entropy + expected).item(), rel=1e-4)
    assert "teacher_image" not in TASK.prepare(saved.config, dataset, replace(samples, train=False))


def test_a_saved_run_predicts_what_it_predicted(data: StoredImages, teacher: Path) -> None:
    saved = SavedRun.open(teacher)
    table = read_predictions(teacher).slice(0, 6)
    ids = data.manifest.column("id")
    rows = np.array([ids.index(name) for name in table["id"].to_pylist()])
    task = saved.load(Dataset.of(data.manifest, data.pixels))
    batch = saved.task.prepare(
        saved.config, task.dataset, BatchRows(rows, np.zeros(6, np.uint64), False)
    )
    with torch.no_grad():
        logits = task.predict(batch)["logits"].numpy()
    np.testing.assert_allclose(logits, np.array(table["logits"].to_pylist()), atol=1e-4)


def test_a_student_is_named_by_its_teachers_weights_and_not_by_its_place(
    data: StoredImages, teacher: Path, tmp_path: Path
) -> None:
    names = {}
    copied = tmp_path / "elsewhere"
    for name, folder in (("none", None), ("here", teacher), ("there", copied)):
        if name == "there":
            (copied / "best").mkdir(parents=True)
            for file in ("run.json", "task.py", "config.json", "predictions.parquet"):
                (copied / file).write_bytes((teacher / file).read_bytes())
            weights = (teacher / "best" / "weights.safetensors").read_bytes()
            (copied / "best" / "weights.safetensors").write_bytes(weights)
        options = ["--distill.teacher", str(folder)] if folder else []
        config, _, _ = parse(TASK, [*SMOKE, *options])
        names[name] = identity(SOURCE, config, data.manifest)
    assert names["here"] == names["there"] != names["none"]
    (copied / "best" / "weights.safetensors").write_bytes(weights[:-4] + b"\0\0\0\0")
    config, _, _ = parse(TASK, [*SMOKE, "--distill.teacher", str(copied)])
    assert identity(SOURCE, config, data.manifest) != names["here"]


def test_a_teachers_place_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers have other working directories."""
    monkeypatch.chdir(tmp_path)
    config, _, _ = parse(TASK, [*SMOKE, "--distill.teacher", "runs/a", "--data.root", "parts"])
    placed = absolute(config)
    assert placed.distill.teacher == tmp_path / "runs" / "a"
    assert placed.data.root == tmp_path / "parts"
    assert absolute(placed) == placed
    plain = TASK.presets()["smoke"]
    assert absolute(plain) == plain


def test_a_teacher_with_other_classes_is_refused(data: StoredImages, teacher: Path) -> None:
    config, _, _ = parse(TASK, [*SMOKE, "--distill.teacher", str(teacher)])
    config = replace(config, decide=DecideConfig())
    dataset = replace(Dataset.of(data.manifest, data.pixels), classes=("crack", "sound"))
    words = "answers with defect, sound, the images are of crack, sound; give a run with these"
    with pytest.raises(ConfigError, match=words):
        TASK(config, dataset)


def test_a_teacher_of_another_kind_is_refused(teacher: Path, tmp_path: Path) -> None:
    task = (Path(__file__).parents[1] / "toy.py").read_bytes()
    (tmp_path / "task.py").write_bytes(task)
    (tmp_path / "config.json").write_text('{"data": {}, "split": {}, "train": {}}')
    (tmp_path / "predictions.parquet").write_bytes((teacher / "predictions.parquet").read_bytes())
    Run(tmp_path).note(state="finished", task="toy")
    config, _, _ = parse(TASK, [*SMOKE, "--distill.teacher", str(tmp_path)])
    with pytest.raises(ConfigError, match="does not classify whole images"):
        TASK.fetch(config)


# Weights


def test_files_begins_from_weights_of_a_file(lite0: Path, data: StoredImages) -> None:
    """Real ImageNet weights, the head first and then all."""
    run = trained(
        data,
        *("--preset", "files", "--train.epochs", "3", "--model.network", "tf_efficientnet_lite0"),
        *("--model.weights", str(lite0), "--image.height-px", "64", "--image.width-px", "64"),
        *("--image.normalise", "constants", "--image.mean", "0.5", "0.5", "0.5"),
        *("--image.std", "0.5", "0.5", "0.5"),
    )
    costs = run.record.measured
    assert costs is not None
    published, classifier = 4_652_008, 1281 * 1000
    assert costs["num_trainable"] == costs["num_params"] == published - classifier + 1281 * 2
    assert costs["train_s"] > 0


def test_no_preset_doubts_itself() -> None:
    """No preset sets what has no effect beside the rest, or doubts itself; but the source normalises by its own images."""
    for name, config in TASK.presets().items():
        assert bool(config.doubts()) == (name == "source")
        for key in config.idle():
            section, field = key.split(".")
            default: Any = type(getattr(config, section))()
            assert isinstance(default, Settings)
            assert getattr(getattr(config, section), field) == getattr(default, field), (name, key)


@pytest.mark.parametrize("leak", [False, True], ids=["no copy", "copies"])
def test_the_given_split_is_trained_on_too_only_where_copies_lie_across_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: bool
) -> None:
    sizes = ["--castings.num-train", "80", "--castings.num-test", "24", "--castings.size-px", "96"]
    drawn, _, _ = parse(TASK, [*SMOKE, *sizes, *["--castings.leak"] * leak])
    TASK.manifest(drawn, tmp_path / "drawn")
    (root,) = tmp_path.glob("drawn/**/images")
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def finish(prepared: Any, run: Run, _: Any) -> None:
        trained.append(prepared.name)
        run.note(state="finished", stage="bundle", leaks=prepared.leaks)
        (run.folder / "bundle").mkdir()
        (run.folder / "bundle" / "bundle.json").write_text("{}")

    monkeypatch.setattr("assay.cli.task.complete", finish)
    monkeypatch.setattr("assay.cli.task.is_decided", lambda *_: True)
    shown: list[Any] = []
    monkeypatch.setattr("assay.cli.task._write_reports", lambda *_: None)
    monkeypatch.setattr("assay.cli.task.print_run", shown.append)
    short = [
        "--preset",
        "files",
        "--workers",
        "0",
        "--train.epochs",
        "1",
        "--model.weights",
        "none",
    ]
    config, resources, _ = parse(TASK, [*short, "--data.root", str(root)])
    for _ in range(2):
        experiment(SOURCE, config, resources)
    assert trained == ["casting"] + ["published"] * leak
    assert all(len(folders) == 1 + leak for folders in shown)
