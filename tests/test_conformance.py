"""What every file in tasks/ must satisfy, on its `smoke` settings and its embedded data."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from assay.bundle import seal
from assay.bundle.bundle import KINDS, Bundle
from assay.bundle.card import Card
from assay.config import fingerprint, from_dict, to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.order import Step, entry_keys
from assay.data.split import Split, draw_split
from assay.experiment import resources
from assay.experiment.options import parse
from assay.metrics.decide import Decision
from assay.nn.blocks import recompute
from assay.nn.optim import build_optimizer
from assay.serve.contract import View
from assay.train import checkpoint
from assay.train.accumulate import parts_of
from assay.train.best import load_best
from assay.train.loop import Loop
from assay.train.source import TaskSource, load_task
from assay.train.task import Batch, BatchRows, Task, TaskConfig
from assay.train.worker import Job, work

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tasks").glob("*.py"))
SYSTEMS = sorted((ROOT / "tests" / "systems").glob("*.py"))
"""A toy of each kind of input: with domains, a second label, masks beside labels, alternating phases."""
COUPLED = {"pretrain", "vectors", "masks"}
"""Tasks whose losses compare the images of a batch, or sum over all of them."""
SIZES = {"train": 8, "val": 5}
"""Images taken of each set; of every test set 3."""


@dataclass(frozen=True)
class System:
    """A task on a few images of its embedded data, decoded in a store."""

    source: TaskSource
    task: type[Task]
    config: TaskConfig
    manifest: Manifest
    split: Split
    pixels: Pixels

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.of(self.manifest, self.pixels, self.split.rows("train"))

    def job(self, folder: Path) -> Job:
        folder.mkdir(exist_ok=True)
        return Job(
            self.source,
            to_dict(self.config),
            self.manifest,
            self.split,
            self.pixels,
            folder,
            "cpu",
            "ddp",
            judged=tuple(self.split.tests),
            checkpoint_steps=1,
        )

    def model(self, seed: int = 0) -> Task:
        torch.manual_seed(seed)
        return self.task(self.config, self.dataset)

    def batch(self, rows: np.ndarray, train: bool, first_entry: int = 0) -> Batch:
        entries = np.arange(first_entry, first_entry + len(rows))
        keys = entry_keys(self.config.train.seed, 0, entries)
        return self.task.prepare(self.config, self.dataset, BatchRows(rows, keys, train))

    def loop(self, folder: Path) -> Loop:
        job, task = self.job(folder), self.model()
        rows = {name: self.split.rows(name) for name in SIZES}
        return Loop(task, task, rows, job.stream(), folder)


def read_source(name: str) -> TaskSource:
    """A file's source, or that of the README's own task."""
    if name != "README":
        return TaskSource.read(ROOT / name)
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*class \w+\(Classification\)[^`]*)```", text)
    assert len(code.splitlines()) < 70
    return TaskSource("linear", code.encode())


@pytest.fixture(
    scope="module",
    params=[*(str(path.relative_to(ROOT)) for path in (*FILES, *SYSTEMS)), "README"],
)
def system(request, tmp_path_factory) -> System:
    source = read_source(request.param)
    storage = tmp_path_factory.mktemp(source.name)
    task = load_task(source)
    smoke = task.presets()["smoke"]
    num_epochs = min(smoke.train.epochs, 2)  # none: what is learnt is learnt before the first
    brief = replace(smoke.train, epochs=num_epochs, batch_size=4, eval_batch_size=3)
    config = replace(smoke, train=brief)
    manifest = task.manifest(config, storage)
    drawn = draw_split(manifest, config.split)
    sets = ["unused"] * len(manifest)
    for name in ("train", "val", *drawn.tests):
        rows = drawn.rows(name)
        num = SIZES.get(name, 3)
        for row in rows[np.linspace(0, len(rows) - 1, num).astype(int)]:
            sets[row] = name
            for keys in (manifest.column("content"), *manifest.masks.values()):
                Store(str(storage / "store")).build(keys[row], Path(manifest.files[keys[row]]))
    pixels = Pixels(Store(str(storage / "store")), manifest.column("content"), manifest.masks)
    return System(source, task, config, manifest, Split(sets, {}), pixels)


@pytest.fixture
def learner(system) -> System:
    """A system that learns by updates."""
    if not system.config.train.epochs:
        pytest.skip("what it learns, it learns before the first update")
    return system


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


def golden_image(system: System) -> str:
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


def test_settings_are_named_documented_and_survive_json(system):
    module = sys.modules[system.task.__module__]
    assert module.__doc__
    assert system.task.__doc__
    presets = system.task.presets()
    assert "smoke" in presets
    prints = set()
    for config in presets.values():
        assert type(config) is system.task.Config
        values = json.loads(json.dumps(to_dict(config)))
        again = from_dict(system.task.Config, values)
        assert again == config
        assert to_dict(again) == to_dict(config)
        prints.add(fingerprint(values))
    assert len(prints) == len(presets)
    assert system.model().classes


def options_of(kind: Any, prefix: str = "--") -> Iterator[str]:
    """Every leaf of a configuration as its option."""
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(field.type):
            yield from options_of(field.type, f"{name}.")
        else:
            yield name


def test_help_shows_every_setting(system, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        parse(system.task, ["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    options = [*options_of(system.task.Config), *options_of(resources.Resources)]
    assert len(options) > 25
    for option in options:
        assert f"{option} " in shown or f"{option}," in shown, option
    for preset in system.task.presets():
        assert preset in shown


@pytest.mark.parametrize("train", [True, False])
def test_prepare_depends_on_the_key_and_on_no_batch(system, train):
    rows = system.split.rows("train")
    together = system.batch(rows, train)
    again = system.batch(rows, train)
    alone = [system.batch(rows[i : i + 1], train, first_entry=i) for i in range(len(rows))]
    for name, values in together.items():
        assert len(values) == len(rows)
        assert np.array_equal(again[name], values), name
        assert np.array_equal(np.concatenate([b[name] for b in alone]), values), name
    other = system.batch(rows, train, first_entry=100)
    if train and system.config.train.epochs:
        changed = [name for name in together if not np.array_equal(other[name], together[name])]
        assert set(changed) - {"key"}


def test_the_loss_falls_on_a_few_images(learner, system):
    task = system.model().train()
    optimizer = build_optimizer(task, system.config.optim, task.param_groups(0.0))
    batch = system.batch(system.split.rows("train"), train=True)
    losses = []
    for _ in range(12):
        total = torch.zeros(())
        for phase in task.phases:
            optimizer.zero_grad()
            loss = task(batch, 0.0, phase)["loss"]
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total))
    assert losses[-1] < 0.6 * losses[0], losses


def test_gradients_reach_every_trained_parameter(learner, system):
    task = system.model().train()
    batch = system.batch(system.split.rows("train"), train=True)
    for progress in (0.0, 0.9):
        for phase in task.phases:
            task(batch, progress, phase)["loss"].backward()
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    assert trained
    # a bias before a normalisation has no gradient by nature, a weight always has
    missed = [
        name
        for name, p in trained.items()
        if p.grad is None or (p.ndim > 1 and not p.grad.abs().max() > 0)
    ]
    assert not missed


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


def test_a_checkpoint_gives_back_model_and_optimiser(learner, system, tmp_path):
    """One step further, both stand at the same weights."""
    loops = [system.loop(tmp_path / name) for name in ("saved", "loaded")]
    saved, loaded = loops
    batch = system.batch(system.split.rows("train"), train=True)
    whole = Step(0, 0, batch["row"], np.arange(len(batch["row"])), len(batch["row"]))
    for _ in range(2):
        saved._update(whole, parts_of(batch, 1), None)
    path = checkpoint.save(tmp_path, 2, saved.wrapped, saved.updater.optimizer, {"step": 2})
    assert checkpoint.load(path, loaded.wrapped, loaded.updater.optimizer) == {"step": 2}
    loaded.position.step = 2
    for loop in loops:
        loop._update(whole, parts_of(batch, 1), None)
    for name, tensor in saved.task.state_dict().items():
        assert torch.equal(loaded.task.state_dict()[name], tensor), name


def learnt(loop: Loop, batch: Batch, num: int) -> list[torch.Tensor]:
    """The gradients of a batch in so many parts, late in a run, over all phases."""
    loop.wrapped.train()
    torch.manual_seed(0)
    for phase in loop.task.phases:
        loop.updater.learn(parts_of(batch, num), None, 0.9, phase, 1.0)
    return [p.grad for p in loop.task.parameters() if p.grad is not None]


def test_a_batch_in_parts_teaches_what_it_teaches_whole(learner, system, tmp_path):
    """Twice four images as eight at once, where no image is normalised by or compared with others."""
    loops = [system.loop(tmp_path / name) for name in ("whole", "parts")]
    norms = [m for m in loops[0].task.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms or system.source.name in COUPLED:
        pytest.skip("images of a batch depend on each other")
    batch = system.batch(system.split.rows("train"), train=True)
    pairs = zip(learnt(loops[0], batch, 1), learnt(loops[1], batch, 2), strict=True)
    for whole, parts in pairs:
        assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-5 * max(whole.abs().max(), 1))


def test_recomputed_blocks_teach_the_same(learner, system, tmp_path):
    loops = [system.loop(tmp_path / name) for name in ("kept", "recomputed")]
    if not recompute(loops[1].task):
        pytest.skip("no repeated blocks")
    batch = system.batch(system.split.rows("train")[:4], train=True)
    pairs = zip(learnt(loops[0], batch, 1), learnt(loops[1], batch, 1), strict=True)
    assert all(torch.equal(kept, again) for kept, again in pairs)
    kept, again = (loop.task.state_dict() for loop in loops)
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())


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
    system: System, trained: Path, card: dict[str, Any], answers: list[dict[str, Any]]
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
