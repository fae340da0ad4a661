"""How near each estimator comes to the true gradient of the selection, on real scorer outputs.

    python tests/benchmarks/cosines.py --storage runs

Trains the embedded parts once (or finds that run), takes scores, patches and loss gradients of its
val images from the trained scorer and from an untrained one, and compares each estimator's gradient
with a reference of 100,000 samples by their cosine. The score function, which never mixes patches,
has the gradient of another loss, and a reference of its own.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from bench import table, write
from torch import Tensor

from assay.cli.task import experiment
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.split import draw_split
from assay.experiment.resources import Resources
from assay.nn.topk import Estimator, draw_noise, hard_topk, perturbed_topk, score_function_loss
from assay.train.best import load_best
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows, Task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
NUM_IMAGES, NUM_DRAWS, NUM_NOISE, REFERENCE = 6, 8, 500, 100_000
SIGMAS = (0.01, 0.05)
FORMS: tuple[Estimator, ...] = ("plain", "diagonal", "masked_loo")


def main() -> None:
    """Train once, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    storage = parser.parse_args().storage.absolute()
    trained, batch = trained_task(storage)
    fresh = type(trained)(trained.config, trained.dataset).eval()
    rows = []
    for name, scorer in (("trained", trained.scorer), ("untrained", fresh.scorer)):
        trained.scorer = scorer
        for sigma in SIGMAS:
            cosines = compare(trained, batch, sigma)
            rows.append([name, str(sigma), *(f"{mean:.2f}" for mean in cosines.values())])
    header = ["scorer", "sigma", *cosines]
    write(
        __file__,
        f"Mean cosine to a reference of {REFERENCE:,} samples, over {NUM_IMAGES} val images and {NUM_DRAWS} draws each of {NUM_NOISE} samples of noise (score function: 4 and {NUM_NOISE} hard draws), k = 4 of 1024 cells, with the loss gradients of the trained model. "
        "Goal: masked leave-one-out .75 at sigma .01. The last two columns say how far two halves of a reference agree, which bounds what can be found.",
        table(header, rows),
        "A reference whose halves agree to h is itself at about sqrt(2h / (1 + h)) from the truth, which is .80 where h is .47: there, .48 to the reference is about .60 to the truth. So the goal is missed with the trained scorer at sigma .01, where few samples change the selection and so carry the gradient; it is met with the untrained scorer, and at sigma .05.",
    )


def trained_task(storage: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The demo's task with its best weights, and a batch of val images."""
    source = TaskSource.read(SCRIPT)
    task_class = load_task(source)
    config: Any = task_class.presets()["demo"]
    run = experiment(source, config, Resources(workers=0, storage=str(storage)))
    manifest = task_class.manifest(config, storage)
    pixels = Pixels(Store(str(storage / "store")), manifest.column("content"))
    dataset = Dataset.of(manifest, pixels)
    task: Task = task_class(config, dataset)
    load_best(task, run.folder)
    rows = draw_split(manifest, config.split).rows("val")[:: max(1, 78 // NUM_IMAGES)][:NUM_IMAGES]
    samples = BatchRows(rows, np.arange(len(rows), dtype=np.uint64), train=False)
    return task.eval(), task_class.prepare(config, dataset, samples)


def compare(task: Any, batch: dict[str, np.ndarray], sigma: float) -> dict[str, float]:
    """Mean cosine of each form."""
    sums: dict[str, list[float]] = {}
    for i in range(len(batch["row"])):
        one = {name: values[i : i + 1] for name, values in batch.items()}
        with torch.no_grad():
            scores = task.scores(one)
            patches = task.cut(one, np.arange(scores.shape[1])[None])[0]
            features = task.embed(patches[None])[0]
        for name, value in of_image(task, one, scores, patches, features, sigma).items():
            sums.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sums.items()}


def of_image(
    task: Any,
    one: dict[str, np.ndarray],
    scores: Tensor,
    patches: Tensor,
    features: Tensor,
    sigma: float,
) -> dict[str, float]:
    """Cosines of one image."""
    truth = torch.from_numpy(one["truth"])
    upstream = mixture_gradient(task, scores, patches, truth, sigma)
    halves = [
        mixed(scores, upstream, sigma, 10**6 + half, REFERENCE // 2, "loo") for half in (0, 1)
    ]
    cosines: dict[str, list[float]] = {form: [] for form in FORMS}
    for draw in range(NUM_DRAWS):
        for form in FORMS:
            gradient = mixed(scores, upstream, sigma, draw, NUM_NOISE, form)
            cosines[form].append(cosine(gradient, halves[0] + halves[1]))
    loss = hard_loss(task, features, truth)
    hard = [hard_gradient(loss, scores, sigma, 10**6 + half, REFERENCE // 2) for half in (0, 1)]
    whole = hard[0] + hard[1]
    for num in (4, NUM_NOISE):
        draws = [hard_gradient(loss, scores, sigma, draw, num) for draw in range(NUM_DRAWS)]
        cosines[f"score function, {num} draws"] = [cosine(drawn, whole) for drawn in draws]
    cosines["halves (mixing)"], cosines["halves (hard)"] = [cosine(*halves)], [cosine(*hard)]
    return {name: float(np.mean(values)) for name, values in cosines.items()}


def mixture_gradient(
    task: Any, scores: Tensor, patches: Tensor, truth: Tensor, sigma: float
) -> Tensor:
    """Gradient of the loss for the weight of each cell in each mixture (k d)."""
    cells, weights = perturbed_topk(scores, task.k, sigma, [99], NUM_NOISE)
    mixtures = torch.einsum("km,mchw->kchw", weights[0], patches[cells[0]]).requires_grad_()
    loss = task.row_losses(task.classify(mixtures[None])[0], truth).sum()
    (gradient,) = torch.autograd.grad(loss, mixtures)
    return gradient.flatten(1) @ patches.flatten(1).T


def mixed(
    scores: Tensor,
    upstream: Tensor,
    sigma: float,
    key: int,
    num: int,
    form: Estimator | Literal["loo"],
) -> Tensor:
    """A gradient of <upstream, weights>; "loo" is unbiased with little noise, for references."""
    if form != "loo":
        leaf = scores.clone().requires_grad_()
        cells, weights = perturbed_topk(leaf, upstream.shape[0], sigma, [key], num, form)
        (weights[0] * upstream[:, cells[0]]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad[0]
    total = torch.zeros_like(scores[0])
    for part in range(num // 5000):
        noise = draw_noise([key + 7919 * part], 5000, scores.shape[1])[0]
        picked = hard_topk(scores[0] + sigma * noise, upstream.shape[0])
        returns = upstream.gather(1, picked.T).sum(0)
        total += (returns - returns.mean()) @ noise
    return total


def hard_loss(task: Any, features: Tensor, truth: Tensor) -> Any:
    """The loss of sets of whole patches, from features computed once."""

    @torch.no_grad()
    def loss(cells: Tensor) -> Tensor:
        logits, *_ = task.aggregator(features[cells])
        losses: Tensor = task.row_losses(logits, truth.expand(len(cells)))
        return losses

    return loss


def hard_gradient(loss: Any, scores: Tensor, sigma: float, key: int, num: int) -> Tensor:
    """The score function's gradient from hard draws."""
    total = torch.zeros_like(scores[0])
    for part in range(-(-num // 5000)):
        size = min(5000, num)
        noise = draw_noise([key + 7919 * part], size, scores.shape[1])
        cells = hard_topk(scores[:, None] + sigma * noise, 4)
        leaf = scores.clone().requires_grad_()
        score_function_loss(leaf, noise, sigma, cells, loss(cells[0])[None]).sum().backward()
        assert leaf.grad is not None
        total += leaf.grad[0]
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two gradients."""
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


if __name__ == "__main__":
    main()
