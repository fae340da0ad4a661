"""What bf16 changes in predictions: of the same weights, and of weights that were learnt in it.

python tests/benchmarks/precision.py

Embedded data of frames (a small residual network, ERM) with two seeds, and of castings (LUNA) with one, the demo's settings. A run is judged and shipped by
predictions in float32 whatever it learns in; beside them stand those that bf16 would give of the same weights.
"""

import tempfile
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from bench import table, write

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.split import draw_split
from assay.metrics.estimate import interval
from assay.nn.domains.config import AlgorithmConfig
from assay.train.batches import batches
from assay.train.best import load_best
from assay.train.loop import Loop
from assay.train.predict import Predictor
from assay.train.source import TaskSource, load_task

ROOT = Path(__file__).parents[2]
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


@dataclass
class Answers:
    """Probabilities of the test images by one run's best weights, and the images."""

    probs: dict[str, np.ndarray]
    """By the arithmetic that they are computed in (images classes)."""
    truth: np.ndarray
    group: np.ndarray


def train(name: str, changes: dict[str, Any], precision: str, seed: int, folder: Path) -> Answers:
    """Train the demo of a task in an arithmetic; predict test in both."""
    task_class = load_task(TaskSource.read(ROOT / "tasks" / f"{name}.py"))
    config: Any = replace(task_class.presets()["demo"], **changes)
    config = replace(config, train=replace(config.train, precision=precision, seed=seed))
    manifest = task_class.manifest(config, folder / name)
    split = draw_split(manifest, config.split)
    store = Store(str(folder / name / "store"))
    for content in manifest.column("content"):
        store.build(content, Path(manifest.files[content]))
    data = Dataset.of(manifest, Pixels(store, manifest.column("content")), split.rows("train"))
    torch.manual_seed(seed)
    task = task_class(config, data)
    rows = {part: split.rows(part) for part in ("train", "val")}
    stream = lambda steps, train: batches(task_class, config, data, steps, train)  # noqa: E731
    run = Path(tempfile.mkdtemp(dir=folder))
    Loop(task, task, rows, stream, run).fit()
    load_best(task, run)
    probs: dict[str, np.ndarray] = {}
    test = np.concatenate([split.rows(part) for part in split.tests])
    for arithmetic in PRECISIONS:
        predictor = Predictor(task, stream, test)
        predictor.precision = arithmetic
        logits = torch.from_numpy(predictor.predict()["logits"])
        probs[arithmetic] = logits.float().softmax(1).numpy()
    return Answers(probs, data.truth[test], np.array(manifest.column("group"))[test])


def gap(first: np.ndarray, second: np.ndarray) -> list[str]:
    """How far two predictions of the same images are apart, and how many classes differ."""
    moved = np.abs(first - second).max(1)
    differ = int((first.argmax(1) != second.argmax(1)).sum())
    return [f"{moved.mean():.4f}", f"{moved.max():.3f}", f"{differ} of {len(first)}"]


def compare(name: str, answers: dict[tuple[str, int], Answers]) -> tuple[list[Any], list[Any]]:
    """Lines of how predictions differ, and of scores."""
    whole = {key: each.probs["fp32"] for key, each in answers.items()}
    pairs = [
        (f"{name}, seed {seed}, same weights of {precision}: in float32 and in bf16", each.probs)
        for (precision, seed), each in answers.items()
    ]
    lines = [[what, *gap(probs["fp32"], probs["bf16"])] for what, probs in pairs]
    seeds = sorted({seed for _, seed in answers})
    for seed in seeds:
        what = f"{name}, seed {seed}: learnt in float32 and in bf16"
        lines.append([what, *gap(whole["fp32", seed], whole["bf16", seed])])
    for first, second in combinations(seeds, 2):
        what = f"{name}: learnt in float32 with seeds {first} and {second}"
        lines.append([what, *gap(whole["fp32", first], whole["fp32", second])])
    scores = [
        [
            name,
            precision,
            str(seed),
            str(interval(whole[precision, seed].argmax(1) == a.truth, a.group)),
        ]
        for (precision, seed), a in answers.items()
    ]
    return lines, scores


def main() -> None:
    """Train and compare."""
    torch.set_num_threads(1)
    tasks: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "extrusion": ({"algorithm": AlgorithmConfig()}, (0, 1)),
        "casting": ({}, (0,)),
    }
    differences, scores = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, (changes, seeds) in tasks.items():
            answers: dict[tuple[str, int], Answers] = {
                (precision, seed): train(name, changes, precision, seed, Path(folder))
                for precision in PRECISIONS
                for seed in seeds
            }
            lines, scored = compare(name, answers)
            differences += lines
            scores += scored
    header = ["test images", "mean change of a probability", "largest", "other class"]
    write(
        __file__,
        table(header, differences),
        "Accuracy by predictions in float32, 95 % intervals over groups.",
        table(["task", "learnt in", "seed", "accuracy"], scores),
    )


if __name__ == "__main__":
    main()
