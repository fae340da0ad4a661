"""What a run of every file in tasks/ must satisfy: predictions, sharding, resumption, and the bundle that is made of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from assay.bundle import seal
from assay.bundle.bundle import KINDS, Bundle
from assay.bundle.card import Card
from assay.data.order import Step
from assay.metrics.decide import Decision
from assay.serve.contract import View
from assay.train.best import load_best
from assay.train.task import Batch, Task
from assay.train.worker import work


@pytest.fixture(scope="module")
def trained(system, tmp_path_factory) -> Path:
    """A run of the system that nothing disturbed."""
    job = system.job(tmp_path_factory.mktemp("run") / "trained")
    assert work(job, job.stream()).done
    return job.folder


@pytest.fixture(scope="module")
def best(system, trained) -> Task:
    """The run's best weights, ready to predict."""
    task = system.model(seed=1)
    load_best(task, trained)
    return task.eval()


DECISION = Decision(
    temperature=1.5,
    coverage=0.9,
    quantile=0.8,
    costs=None,
    positive=None,
    threshold=None,
    num=9,
    num_groups=9,
)
"""How a bundle that was never judged decides."""


@pytest.fixture(scope="module")
def shipped(system, best, tmp_path_factory) -> Path:
    """The run's bundle; its golden image is the first of val."""
    folder = tmp_path_factory.mktemp("bundle")
    pipeline = best.export(folder, {name: system.split.rows(name) for name in ("train", "val")})
    decides = KINDS[pipeline["kind"]].decides
    card = Card(
        classes=best.classes,
        pipeline=pipeline,
        decision=DECISION if decides else None,
        thresholds=None if decides else [30] * len(best.classes),
    )
    with torch.no_grad():
        expected = best.golden(int(system.split.rows("val")[0]))
    assert decides == (expected is None)  # of classes it follows from the table
    seal.seal(folder, card, Path(golden_image(system)), expected)
    return folder


def golden_image(system: Any) -> str:
    return system.manifest.column("image")[system.split.rows("val")[0]]


def predicted(task: Task, batch: Batch) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in task.predict(batch).items()}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        if np.issubdtype(values.dtype, np.floating):
            assert np.abs(found[name] - values).max() < 1e-4, name
        else:
            assert np.array_equal(found[name], values), name


def test_predictions_depend_on_no_batch_order_or_key(system, best):
    rows = np.concatenate([system.split.rows(name) for name in ("val", *system.split.tests)])
    together = predicted(best, system.batch(rows, train=False))
    assert all(len(values) == len(rows) for values in together.values())
    alone = [predicted(best, system.batch(rows[i : i + 1], train=False)) for i in range(len(rows))]
    assert_close({k: np.concatenate([a[k] for a in alone]) for k in together}, together)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = predicted(best, system.batch(rows[order], train=False, first_entry=50))
    assert_close(shuffled, {k: v[order] for k, v in together.items()})


def test_predicting_is_deterministic_and_leaves_the_mode_alone(system, best):
    batch = system.batch(system.split.rows("val"), train=False)
    first = predicted(best, batch)
    torch.manual_seed(5)
    second = predicted(best, batch)
    for name, values in first.items():
        assert np.array_equal(second[name], values), name
    assert not any(module.training for module in best.modules())


def test_the_table_holds_what_the_best_weights_say(system, trained, best):
    table = pq.read_table(trained / "predictions.parquet")
    names = (*system.task.reference, "val", *system.split.tests)
    assert table["split"].to_pylist() == [n for n in names for _ in system.split.rows(n)]
    rows = np.concatenate([system.split.rows(name) for name in names])
    assert table["id"].to_pylist() == [system.manifest.column("id")[row] for row in rows]
    assert table["truth"].to_pylist() == system.manifest.truth[rows].tolist()
    for name, values in predicted(best, system.batch(rows, train=False)).items():
        assert np.allclose(np.array(table[name].to_pylist()), values, atol=1e-4), name


def losses_of(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_a_sharded_run_learns_as_one_that_is_whole(learner, system, trained, tmp_path):
    """By one worker, whose weights are shards all the same: nothing may enter a part of the task by its side."""
    if getattr(system.config, "average", None) and system.config.average.weights != "last":
        pytest.skip("sharded weights are not averaged, which a sentence says")
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        job = replace(system.job(tmp_path / "sharded"), strategy="fsdp")
        assert work(job, job.stream()).done
    finally:
        torch.distributed.destroy_process_group()
    # other layouts in memory round otherwise, which an update of Adam may make larger
    np.testing.assert_allclose(losses_of(job.folder), losses_of(trained), rtol=2e-2)
    tables = [pq.read_table(f / "predictions.parquet") for f in (trained, job.folder)]
    assert tables[0].select(["id", "split"]).equals(tables[1].select(["id", "split"]))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_equals_one_never_stopped(learner, system, trained, tmp_path, stop):
    """Stopped by a stream that breaks off, early and late."""
    job = system.job(tmp_path / "stopped")
    served = job.stream()

    def breaking(steps: list[Step], train: bool) -> Iterator[Batch]:
        for index, batch in enumerate(served(steps, train)):
            if train and index == stop:
                raise ConnectionError
            yield batch

    with pytest.raises(ConnectionError):
        work(job, breaking)
    assert work(job, job.stream()).done
    expected = load_file(trained / "best" / "weights.safetensors")
    found = load_file(job.folder / "best" / "weights.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    tables = [pq.read_table(f / "predictions.parquet") for f in (trained, job.folder)]
    assert tables[0].equals(tables[1])


def comparable(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Counts of pixels as cumulative shares: rounding moves single pixels over the edge of a level."""
    shares = {}
    for name, values in columns.items():
        if name.startswith(("pixels_", "levels_")):
            values = np.cumsum(values, axis=1) / values.sum(1, keepdims=True) / 20
        shares[name] = values
    return shares


@pytest.mark.parametrize("batch_size", [1, 5])
def test_exported_graphs_answer_like_the_task(system, best, shipped, batch_size):
    """One and several images at a time, each against the columns that judging is made of."""
    rows = system.split.rows("val")[:batch_size].tolist()
    columns = predicted(best, system.batch(np.array(rows), train=False))
    opened = Bundle(shipped)
    answers = opened.predict_each([system.pixels[row] for row in rows])
    implied = [best.answer_columns(answer, row) for answer, row in zip(answers, rows, strict=True)]
    stacked = {name: np.stack([answer[name] for answer in implied]) for name in implied[0]}
    assert stacked
    assert_close(comparable(stacked), comparable({name: columns[name] for name in stacked}))


def test_exported_graphs_are_valid_and_free_of_the_machines_paths(shipped):
    for path in shipped.glob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))
        assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()


LINE_SIDE = """
import json, sys
ALLOWED = {"numpy", "cv2", "PIL", "imagecodecs", "simplejpeg", "onnxruntime", "annotated_types", "assay"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name, name=top)

sys.meta_path.insert(0, Refuse())
from pathlib import Path
from assay.bundle.bundle import Bundle
opened = Bundle(Path(sys.argv[1]))
answers = [opened.predict(Path(image)) for image in sys.argv[2:]]
strangers = {m.partition(".")[0] for m in sys.modules} & {"torch", "ray", "timm", "jaxtyping"}
assert not strangers, strangers
print(json.dumps([{"golden": a.golden(), "form": a.form("rle")} for a in answers]))
"""


def test_a_bundle_opens_and_answers_where_there_is_no_torch(
    system, trained, best, shipped, tmp_path
):
    """With numpy, an image decoder and onnxruntime alone it says what it says here, and what was predicted."""
    copied = tmp_path / "elsewhere"
    shutil.copytree(shipped, copied)
    images = [system.manifest.column("image")[row] for row in system.split.rows("val")]
    command = [sys.executable, "-W", "error", "-c", LINE_SIDE, str(copied), *images]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    card = json.loads((copied / "bundle.json").read_text())
    # torch made the golden output: a pixel between two levels may fall to the other side
    assert card["golden"]["probs"] == pytest.approx(answers[0]["golden"], abs=1e-4)
    here = [Bundle(shipped).predict(Path(image)) for image in images]
    for answer, expected in zip(answers, here, strict=True):
        assert answer["golden"] == pytest.approx(expected.golden(), abs=1e-6)
        assert answer["form"].keys() == expected.form("rle").keys()
    if KINDS[card["pipeline"]["kind"]].decides:
        check_classes(system, trained, card, answers)


def check_classes(
    system: Any, trained: Path, card: dict[str, Any], answers: list[dict[str, Any]]
) -> None:
    """Softmax of the table's logits over the card's temperature, computed here."""
    table = pq.read_table(trained / "predictions.parquet")
    rows = table.filter(pc.equal(table["split"], "val")).to_pylist()
    for record, answer in zip(rows, answers, strict=True):
        scaled = np.exp(np.array(record["logits"]) / card["decision"]["temperature"])
        expected = dict(zip(system.manifest.classes, scaled / scaled.sum(), strict=True))
        assert answer["golden"] == pytest.approx(expected, abs=1e-4)
        assert answer["form"]["answer"]["label"] == max(expected, key=expected.__getitem__)


def test_an_answer_has_a_form_over_http_a_row_and_a_picture(system, shipped):
    opened = Bundle(shipped)
    pyramid = system.pixels[int(system.split.rows("val")[0])]
    (answer,) = opened.predict_each([pyramid])
    height, width = pyramid.size
    assert View(height=height, width=width, **answer.form("png")).model_dump()
    cells = answer.cells(opened.classes)
    assert cells
    assert all(isinstance(value, str | int | float | bool) for value in cells.values())
    small = pyramid.small(64)
    before = small.copy()
    answer.draw(small, np.divide(small.shape[1::-1], pyramid.size[::-1]))
    assert small.shape == before.shape
