"""What was pretrained, behind HTTP: the teacher's embedding, and the classes of a head on it, for images and for units."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.bundle.bundle import Bundle
from assay.bundle.load import load
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.experiment.earlier import find
from assay.experiment.options import parse
from assay.experiment.run import complete, prepare, read_data
from assay.runs.folder import Run
from assay.runs.results import read_predictions, read_result
from assay.train.source import TaskSource, load_task

TASKS = Path(__file__).parents[2] / "tasks"
FEW = {
    "casting": ["--castings.num-train", "20", "--castings.num-test", "8"],
    "pretrain": ["--units.num-units", "16"],
}


def shipped(name: str, storage: Path, *options: str) -> tuple[Run, list[str]]:
    """A run to its bundle, and its images."""
    source = TaskSource.read(TASKS / f"{name}.py")
    task: Any = load_task(source)
    words = ["--preset", "smoke", "--workers", "0", "--train.epochs", "1", *FEW[name], *options]
    config, resources, _ = parse(task, words)
    data = read_data(source, task.manifest(config, storage), config, resources, storage)
    run = find(source, config, data.manifest, storage, stage="bundle")
    with run.lease():
        complete(prepare(data, config, name), run, resources, stage="bundle")
    return run, data.manifest.column("image")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, list[str]]]:
    storage = tmp_path_factory.mktemp("runs")
    pretrained = shipped("pretrain", storage)
    weights = ["--model.network", "32x2x8", "--model.weights", str(pretrained[0].folder)]
    head = shipped("casting", storage, *weights, "--regime.regime", "features")
    return {"pretrain": pretrained, "casting": head}


@pytest.fixture(scope="module")
def started(runs: dict[str, tuple[Run, list[str]]], tmp_path_factory: Any) -> Any:
    """A head of the kind that is asked for on what was pretrained, which learns no further."""
    weights = str(runs["pretrain"][0].folder)

    def start(ship: str) -> tuple[Run, list[str]]:
        words = ["--ship", ship, "--model.weights", weights, "--train.epochs", "0"]
        return shipped("pretrain", tmp_path_factory.mktemp(ship), *words)

    return start


@pytest.fixture(scope="module")
def registry(runs: dict[str, tuple[Run, list[str]]], tmp_path_factory: Any) -> Registry:
    """Takes the place of the one that the application is otherwise tried on."""
    registry = Registry(str(tmp_path_factory.mktemp("serving") / "registry"))
    for run, _ in runs.values():
        promote(registry, run.folder / "bundle", read_predictions(run.folder), "champion")
    return registry


def test_the_teacher_embeds(ask: Any, runs: dict[str, tuple[Run, list[str]]]) -> None:
    run, images = runs["pretrain"]
    opened = Bundle(run.folder / "bundle")
    for image in images[:2]:
        reply = ask("POST", "/v1/pretrain", content=Path(image).read_bytes())
        assert reply.status_code == 200, reply.text
        (view,) = reply.json()["views"]
        np.testing.assert_allclose(view["embedding"], opened.predict(image).embedding, rtol=1e-5)
        assert len(view["embedding"]) == 32


def test_a_head_on_it_names_the_class_of_an_image_and_of_a_unit(
    ask: Any, runs: dict[str, tuple[Run, list[str]]]
) -> None:
    run, images = runs["casting"]
    opened = Bundle(run.folder / "bundle")
    assert opened.classes == ["defect", "sound"]
    files = [
        ("image", (f"{i}.png", Path(image).read_bytes())) for i, image in enumerate(images[:3])
    ]
    reply = ask("POST", "/v1/casting", files=files)
    assert reply.status_code == 200, reply.text
    body, views = reply.json(), [opened.predict(image) for image in images[:3]]
    assert [view["answer"]["label"] for view in body["views"]] == [view.label for view in views]
    together = opened.together(views)
    assert together is not None
    assert body["answer"]["label"] == together.label
    assert body["answer"]["probs"] == pytest.approx(together.probs, abs=1e-5)


@pytest.mark.parametrize("ship", ["logistic", "linear", "attention"])
def test_the_head_that_val_chose_ships_with_the_teacher(
    started: Any, runs: dict[str, tuple[Run, list[str]]], ship: str
) -> None:
    """Every image of val and test has the class and the calibrated probabilities that it was judged by; the vector is the teacher's."""
    run, images = started(ship)
    opened, teacher = load(run.folder), load(runs["pretrain"][0].folder)
    table = read_predictions(run.folder)
    path_of = {Path(image).name: image for image in images}
    assert opened.classes == json.loads(table.schema.metadata[b"classes"])
    for row in table.slice(0, 6).to_pylist():
        answer = opened.predict(path_of[Path(row["id"]).name])
        np.testing.assert_allclose(answer.logits, row["logits"], atol=2e-3)
        np.testing.assert_allclose(answer.embedding, row["embedding"], atol=1e-4)
        same = teacher.predict(path_of[Path(row["id"]).name]).embedding
        np.testing.assert_allclose(answer.embedding, same, atol=1e-4)
    assert opened.card.golden.probs.keys() == set(opened.classes)
    result = read_result(run.folder)
    metrics = result.sets["test"].metrics
    assert metrics["accuracy"] == metrics[f"{ship}_accuracy"]
    assert metrics["group_accuracy"] == metrics[f"{ship}_group_accuracy"]
