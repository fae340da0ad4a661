"""Memory and arithmetic of an update of the reference's recipes, computed without a device.

python tests/benchmarks/sizes.py
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench import dataset, seconds, table, write
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.nn.blocks import recompute
from assay.train.source import TaskSource, load_task

TASKS = Path(__file__).parents[2] / "tasks"
CLASSES = [str(i) for i in range(21)]
MOMENTS = 2
"""Numbers that lamb and adamw keep of each weight."""
PEAK, REACHED = 989e12, 0.4
"""Dense 16-bit operations of an H100 or H200 in a second by its maker, and the share taken as reached."""


@dataclass
class Update:
    """What one update takes."""

    weights: int
    """Bytes of weights, gradients and the optimiser's moments, in float32."""
    kept: int
    """Bytes kept between forward and backward."""
    operations: int
    """Multiplications and additions."""


def measure(net: nn.Module, run: Callable[[], Tensor]) -> Update:
    """Count what one forward and backward pass keeps and computes; nothing is computed for fake tensors."""
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that no address comes twice
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss = run()
        loss.backward()
    numbers = [p.numel() for p in net.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    weights = 4 * ((2 + MOMENTS) * sum(numbers) + frozen)
    return Update(weights, sum(size for _, size in kept.values()), counter.get_total_flops())


def recipe_update(backbone: str, images: int, recomputes: bool) -> Update:
    """One update of the reference's `main` recipe by another backbone, in 16-bit arithmetic."""
    task_class = load_task(TaskSource.read(TASKS / "fingerprint.py"))
    config: Any = task_class.presets()["main"]
    model = replace(config.model, backbone=backbone, weights="none", scorer_weights="none")
    config = replace(config, model=model)
    data = dataset(Pixels(Store("nowhere"), [f"{i:032x}" for i in range(21)]), CLASSES)
    with torch.device("meta"):
        task: Any = task_class(config, data).train()
    if recomputes:
        recompute(task)
    with FakeTensorMode(allow_non_fake_inputs=True):
        task.to_empty(device="cpu")
        sizes = config.patches
        overviews = torch.zeros(images, 3, sizes.overview_px, sizes.overview_px)
        patches = torch.zeros(images, config.model.k, 3, sizes.patch_px, sizes.patch_px)

        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                scores = task.scorer(overviews).float()
                logits, _ = task.aggregator(task.embed(patches))
            total: Tensor = logits.float().logsumexp(-1).sum() + scores.sum()
            return total

        return measure(task, run)


RECIPES = {
    "EVA02-L, batch 6": ("eva02_large_patch14_448", 6),
    "ConvNeXt-XXL, batch 4": ("convnext_xxlarge", 4),
}


def recipe_rows() -> list[list[str]]:
    """One line for each recipe and way to save memory."""
    rows = []
    for name, (backbone, images) in RECIPES.items():
        for way, part, recomputes in (
            ("as it is", images, False),
            ("--accumulate 2", images // 2, False),
            ("--recompute", images, True),
            (f"--recompute --accumulate {images}", 1, True),
        ):
            update = recipe_update(backbone, part, recomputes)
            seconds_of = update.operations * (images / part) / (PEAK * REACHED)
            rows.append(
                [
                    name,
                    way,
                    f"{update.weights / 1e9:.1f} GB",
                    f"{update.kept / 1e9:.1f} GB",
                    f"{(update.weights + update.kept) / 1e9:.0f} GB",
                    f"{update.operations * (images / part) / 1e12:.0f}",
                    f"{seconds_of:.2f} s",
                ]
            )
    return rows


def small_rows() -> list[list[str]]:
    """Small networks, computed and measured: bytes that are kept, and time by the operations of one of them."""
    import timm

    cases = {"vit_tiny_patch16_224": 8, "resnet18": 8, "vit_small_patch16_224": 8}
    computed, taken = {}, {}
    for name, images in cases.items():
        with torch.device("meta"):
            net = timm.create_model(name)
        with FakeTensorMode(allow_non_fake_inputs=True):
            net.to_empty(device="cpu")
            shown = torch.zeros(images, 3, 224, 224)
            computed[name] = measure(net, lambda n=net, x=shown: n(x).sum())
        real, x = timm.create_model(name), torch.rand(images, 3, 224, 224)
        found = measure(real, lambda n=real, x=x: n(x).sum())
        taken[name] = seconds({"": lambda n=real, x=x: n(x).sum().backward()}, 3)[""], found.kept
    per_second = computed["vit_tiny_patch16_224"].operations / taken["vit_tiny_patch16_224"][0]
    return [
        [
            name,
            f"{computed[name].kept / 1e6:.0f} MB",
            f"{taken[name][1] / 1e6:.0f} MB",
            f"{computed[name].operations / per_second:.2f} s",
            f"{taken[name][0]:.2f} s",
        ]
        for name in cases
    ]


def main() -> None:
    """Compute the recipes and compare small networks with what they take."""
    header = [
        "recipe, one device",
        "how",
        "weights",
        "kept",
        "together",
        "10^12 operations",
        "update",
    ]
    small = ["network, 8 images", "kept, computed", "kept", "update, by operations", "update"]
    rows, smaller = recipe_rows(), small_rows()
    write(
        __file__,
        f"Memory and time of one update of the reference's recipes (8 patches of 448 px, overview 850 px, 16-bit arithmetic, lamb), computed by torch's fake tensors: weights with gradients and moments in float32, what is kept for the backward pass, and the operations at {REACHED:.0%} of an H100's {PEAK / 1e12:.0f} x 10^12 in a second, which is an assumption. Workspaces and the allocator's gaps come on top: leave a tenth free.",
        table(header, rows),
        "The same count for small networks, against what a real pass keeps and takes on this machine; time by the operations of the first.",
        table(small, smaller),
    )


if __name__ == "__main__":
    main()
