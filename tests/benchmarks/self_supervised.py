"""An update of DINOv2's method by `tasks/pretrain.py` and by the modules of the lightly package, from the same weights on the same crops.

uv pip install --target FOLDER --no-deps lightly lightly-utils
PYTHONPATH=platform:FOLDER python tests/benchmarks/self_supervised.py

Two large and eight small crops of each image, hidden places, DINO, iBOT and KoLeo, AdamW and the teacher that follows. Losses are compared
over several updates, so that gradients, teachers and centres are; then updates are timed by turns, on one thread. Crops are noise: no time of either depends on what they show.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from bench import dataset, photo, seconds, table, write
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules import DINOv2ProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.nn.self_supervised.ibot import draw_masks
from assay.train.source import TaskSource, load_task

TASK = Path(__file__).parents[2] / "tasks" / "pretrain.py"
PROGRESS, MOMENTUM, TEMPERATURE, NUM_COMPARED = 0.5, 0.99, 0.07, 5
Step = Callable[[], float]
SIZES = {
    "ViT-Ti/16, 112 and 48 px, 8 images, 4096 prototypes": (
        "vit_tiny_patch16_224",
        112,
        48,
        8,
        4096,
    ),
    "ViT-S/16, 224 and 96 px, 2 images, 65536 prototypes": (
        "vit_small_patch16_224",
        224,
        96,
        2,
        65536,
    ),
}
"""Backbone, sides of large and small crops, images of a batch, prototypes."""


class Lightly(nn.Module):
    """Student or teacher out of lightly's modules, as its page on DINOv2 puts them together."""

    def __init__(self, backbone: str, side: int, num_prototypes: int) -> None:
        super().__init__()
        vit = timm.create_model(
            backbone, num_classes=0, img_size=side, dynamic_img_size=True, global_pool="token"
        )
        self.backbone = MaskedVisionTransformerTIMM(vit, pos_embed_initialization="learn")
        self.head = DINOv2ProjectionHead(vit.embed_dim, 2048, 256, num_prototypes)

    def forward(self, images: Tensor, mask: Tensor | None = None, hide: bool = False) -> Any:
        """Return class tokens, their logits, and the logits at the places of the mask."""
        whole = None
        if mask is not None:  # the class token is never hidden
            whole = torch.cat([mask.new_zeros(len(mask), 1), mask], dim=1)
        tokens = self.backbone.encode(images, mask=whole if hide else None)
        places = None if mask is None else self.head(tokens[whole])
        return tokens[:, 0], self.head(tokens[:, 0]), places


class LightlyUpdate:
    """An update by lightly's modules."""

    def __init__(self, student: Lightly, teacher: Lightly, num_prototypes: int) -> None:
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.dino, self.ibot = DINOLoss(num_prototypes), IBOTPatchLoss(num_prototypes)
        self.koleo = KoLeoLoss()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum DINO, iBOT and KoLeo as DINOv2 weighs them."""
        (large, num), small = crops_of(batch["global"]), crops_of(batch["local"])[0]
        mask = batch["mask"].transpose(0, 1).flatten(0, 1)
        with torch.no_grad():
            _, teacher, teacher_places = self.teacher(large, mask)
        classes, logits, places = self.student(large, mask, hide=True)
        every = [*logits.chunk(num), *self.student(small)[1].chunk(batch["local"].shape[1])]
        side = int(mask.shape[1] ** 0.5)
        dino = self.dino(list(teacher.chunk(num)), every, teacher_temp=TEMPERATURE)
        ibot = self.ibot(
            teacher_places, places, mask.view(-1, side, side), teacher_temp=TEMPERATURE
        )
        return dino + ibot + 0.1 * sum(self.koleo(half) for half in classes.chunk(num))

    def follow(self) -> None:
        """Let the teacher follow."""
        update_momentum(self.student, self.teacher, MOMENTUM)


def crops_of(crops: Tensor) -> tuple[Tensor, int]:
    """Return crops (n c 3 h w) by kind after each other, and how many each image has."""
    return crops.transpose(0, 1).flatten(0, 1), crops.shape[1]


def build(backbone: str, side: int, small: int, num_prototypes: int, folder: Path) -> Any:
    """Return the task as its preset `official` has it, at this size, with nothing drawn at random in the network."""
    store, keys = Store(str(folder / "store")), ["a", "b"]
    for key in keys:
        cv2.imwrite(str(folder / "image.png"), photo(side))
        store.build(key, folder / "image.png")
    task_class = load_task(TaskSource.read(TASK))
    official: Any = task_class.presets()["official"]
    config = replace(
        official,
        image=replace(official.image, height_px=side, width_px=side),
        views=replace(official.views, global_px=side, local_px=small),
        model=replace(official.model, backbone=backbone, drop_path=0.0, layer_scale=None),
        head=replace(official.head, num_prototypes=num_prototypes),
        teacher=replace(official.teacher, momentum=MOMENTUM, final_momentum=MOMENTUM),
        train=replace(official.train, precision="fp32"),
    )
    return task_class(config, dataset(Pixels(store, keys), keys))


def share_weights(ours: Any, theirs: Lightly) -> None:
    """Give one of lightly's branches the weights of the task's."""
    state = ours.backbone.vit.state_dict()
    theirs.backbone.vit.load_state_dict(state)
    theirs.backbone.mask_token.data.copy_(ours.backbone.mask_token[None])
    layers = [module for module in theirs.head.layers if isinstance(module, nn.Linear)]
    linear = [module for module in ours.head.layers if isinstance(module, nn.Linear)]
    for target, source in zip(layers, linear, strict=True):
        target.load_state_dict(source.state_dict())
    theirs.head.last_layer.weight_v.data.copy_(ours.head.prototypes.direction)
    theirs.head.last_layer.weight_g.data.copy_(ours.head.prototypes.length)


def draw_batch(side: int, small: int, num: int) -> dict[str, Tensor]:
    """Draw crops of noise, and which places are hidden."""
    rng, grid = np.random.default_rng(0), side // 16
    masks = [draw_masks(2, (grid, grid), 0.5, (0.1, 0.5), rng) for _ in range(num)]
    return {
        "global": torch.randn(num, 2, 3, side, side),
        "local": torch.randn(num, 8, 3, small, small),
        "mask": torch.from_numpy(np.stack(masks).reshape(num, 2, -1)),
    }


def updates(module: nn.Module, loss: Callable[[], Tensor], follow: Callable[[], None]) -> Step:
    """Return what makes an update and gives its loss."""
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=0.04)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(learnt, 3.0)
        optimizer.step()
        follow()
        return value.item()

    return step


def compare(name: str, folder: Path) -> list[str]:
    """Compare losses, then times."""
    backbone, side, small, num, num_prototypes = SIZES[name]
    task = build(backbone, side, small, num_prototypes, folder)
    student, teacher = (Lightly(backbone, side, num_prototypes) for _ in range(2))
    share_weights(task.student, student)
    share_weights(task.student, teacher)
    theirs, batch = LightlyUpdate(student, teacher, num_prototypes), draw_batch(side, small, num)
    arrays = {name: crops.numpy() for name, crops in batch.items()}
    steps = {
        "assay": updates(
            task, lambda: task(arrays, PROGRESS)["loss"], lambda: task.after_step(PROGRESS)
        ),
        "lightly": updates(student, lambda: theirs.loss(batch), theirs.follow),
    }
    losses = [(steps["assay"](), steps["lightly"]()) for _ in range(NUM_COMPARED)]
    apart = max(abs(a - b) for a, b in losses)
    took = seconds(steps, 7, time.process_time)
    rates = [f"{num / took[side]:.2f}" for side in steps]
    return [name, f"{apart:.1e}", *rates, f"{took['lightly'] / took['assay']:.2f}"]


def main() -> None:
    """Compare at each size, and write the table."""
    torch.set_num_threads(1)
    header = ["backbone, crops, batch", "losses apart", "assay, images/s", "lightly", "times"]
    rows = []
    for name in SIZES:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(name, Path(folder)))
    first = f"Largest difference of the loss in {NUM_COMPARED} updates from the same weights; images/s of processor time, medians of 7 turns."
    write(__file__, first, table(header, rows))


if __name__ == "__main__":
    main()
