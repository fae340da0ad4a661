"""What is had of castings without Assay: frozen features and a logistic regression, and a plain loop of fine-tuning.

python tests/benchmarks/casting_plain.py RUN WEIGHTS

RUN is a run of tests/benchmarks/casting.py, whose images, sets and groups are taken; WEIGHTS its lite0.safetensors. The same network,
size, batch, epochs, flips and turns as there; AdamW at one rate for all (1e-4, the usual one), a cosine, the best epoch of val. Of the
regression val chooses C. Nothing was tuned on test.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from bench import table, write
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torchvision.transforms import v2

from assay.metrics.estimate import interval

SIDE, BATCH, EPOCHS, RATE, SEEDS = 96, 16, 6, 1e-4, (0, 1, 2)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
CHANGE = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(180)])
TURNS = 3
"""Times that each image is turned for the regression on turned images."""


def network(weights: Path, num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with weights of ImageNet and a new head; none of 0 classes."""
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(load_file(weights))
    net.reset_classifier(num_classes)
    return net


def outputs(net: nn.Module, images: Tensor) -> np.ndarray:
    """What it says of all images."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in images.split(64)]).numpy()


def changed(images: Tensor) -> Tensor:
    """Flip and turn each image at random."""
    return torch.stack([CHANGE(image) for image in images])


def regression(
    weights: Path, images: Tensor, truth: np.ndarray, sets: np.ndarray, num_turns: int
) -> np.ndarray:
    """Whether each image is told rightly from frozen features, by the C that val chooses; 0: learnt from images as they are."""
    torch.manual_seed(0)
    net, train, val = network(weights, 0), sets == "train", sets == "val"
    features, of_train = outputs(net, images), images[torch.from_numpy(train)]
    taught = features[train]
    if num_turns:
        taught = np.concatenate([outputs(net, changed(of_train)) for _ in range(num_turns)])
    labels, mean, std = np.tile(truth[train], num_turns or 1), taught.mean(0), taught.std(0) + 1e-6
    fits = [LogisticRegression(C=c, max_iter=2000) for c in STRENGTHS]
    fits = [fit.fit((taught - mean) / std, labels) for fit in fits]
    right = [fit.predict((features - mean) / std) == truth for fit in fits]
    return max(right, key=lambda each: each[val].mean())


def fine_tuned(
    weights: Path, images: Tensor, truth: np.ndarray, sets: np.ndarray, seed: int
) -> np.ndarray:
    """Whether each image is told rightly after fine-tuning, by the best epoch of val."""
    torch.manual_seed(seed)
    net, rows = network(weights, 2), torch.from_numpy(np.flatnonzero(sets == "train"))
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    labels, best = torch.from_numpy(truth), (-1.0, np.zeros(len(truth), bool))
    for _ in range(EPOCHS):
        net.train()
        for part in rows[torch.randperm(len(rows))][: steps // EPOCHS * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(net(changed(images[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        right = outputs(net, images).argmax(1) == truth
        best = max(best, (float(right[sets == "val"].mean()), right), key=lambda pair: pair[0])
    return best[1]


def main(run: Path, weights: Path) -> None:
    """Train both, and write the table."""
    torch.set_num_threads(1)
    split = pq.read_table(run / "split.parquet").to_pydict()
    frames = [
        cv2.resize(cv2.imread(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for path in split["image"]
    ]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    sets, group = np.array(split["split"]), np.array(split["group"])
    truth = np.array([label == "def_front" for label in split["label"]]).astype(np.int64)
    given = (weights, images, truth, sets)
    ways: dict[str, list[Callable[[], np.ndarray]]] = {
        "logistic regression on frozen features": [partial(regression, *given, 0)],
        f"the same, of images turned {TURNS} times": [partial(regression, *given, TURNS)],
        "fine-tuned": [partial(fine_tuned, *given, seed) for seed in SEEDS],
    }
    lines = []
    for name, trainings in ways.items():
        began = time.perf_counter()
        right = [training() for training in trainings]
        seconds = (time.perf_counter() - began) / len(right)
        seeds = [float(each[sets == "test"].mean()) for each in right]
        of_test = np.mean(right, axis=0)[sets == "test"]
        val = float(np.mean([each[sets == "val"].mean() for each in right]))
        span = f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else "-"
        score = str(interval(of_test, group[sets == "test"]))
        lines.append([name, f"{val:.3f}", score, span, f"{seconds:.0f}"])
    header = ["EfficientNet-Lite0", "val", "test", "seeds", "seconds"]
    write(
        __file__,
        f"The same split by photograph, {SIDE} px, {EPOCHS} epochs, batch {BATCH}; mean of {len(SEEDS)} seeds, intervals over photographs.",
        table(header, lines),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
