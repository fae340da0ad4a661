"""What was pretrained, behind HTTP: the teacher's embedding, and the classes of a head on it, for images and for units."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.experiment.earlier import find
from assay.experiment.options import parse
from assay.experiment.run import complete, prepare, read_data
from assay.runs.folder import Run
from assay.runs.results import read_predictions
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
