"""Memory and arithmetic of the reference's recipes, to learn and to judge, computed without a device.

python tests/benchmarks/sizes.py
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import dataset, seconds, table, write
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

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


def convolution_backward(
    grad_shape: Any, x_shape: Any, w_shape: Any, *rest: Any, **names: Any
) -> int:
    """Count a gradient of the input and one of the weights; torch's own count forgets groups.

    Shapes come first, then bias, stride, padding, dilation, whether it is transposed, output
    padding, groups, and which gradients are computed.
    """
    transposed, wanted = rest[4], rest[7]
    return sum(wanted[:2]) * conv_flop_count(x_shape, w_shape, grad_shape, transposed)


COUNTS = {torch.ops.aten.convolution_backward: convolution_backward}


def measure(net: nn.Module, run: Callable[[], Tensor]) -> Update:
    """Count what one forward and backward pass keeps and computes; nothing is computed for fake tensors."""
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that no address comes twice
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=COUNTS)
    with counter:
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss = run()
        loss.backward()
    numbers = [p.numel() for p in net.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    weights = 4 * ((2 + MOMENTS) * sum(numbers) + frozen)
    return Update(weights, sum(size for _, size in kept.values()), counter.get_total_flops())


class Peak(TorchDispatchMode):
    """Adds up the bytes that operations take and let go of; `bytes` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: set[int] = set()
        self.now = self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return
        self.live.add(key)
        self.now += size
        self.bytes = max(self.bytes, self.now)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size


def recipe_task(backbone: str) -> Any:
    """Build the reference's `main` recipe by another backbone, without memory for its weights."""
    task_class = load_task(TaskSource.read(TASKS / "fingerprint.py"))
    config: Any = task_class.presets()["main"]
    model = replace(config.model, backbone=backbone, weights="none", scorer_weights="none")
    config = replace(config, model=model)
    data = dataset(Pixels(Store("nowhere"), [f"{i:032x}" for i in range(21)]), CLASSES)
    with torch.device("meta"):
        return task_class(config, data).train()


def shown(config: Any, images: int) -> tuple[Tensor, Tensor]:
    """Return fake overviews and patches."""
    sizes = config.patches
    overviews = torch.zeros(images, 3, sizes.overview_px, sizes.overview_px)
    return overviews, torch.zeros(images, config.model.k, 3, sizes.patch_px, sizes.patch_px)


def recipe_update(task: Any, images: int, recomputes: bool) -> Update:
    """One update in 16-bit arithmetic."""
    if recomputes:
        recompute(task)
    with FakeTensorMode(allow_non_fake_inputs=True):
        task.to_empty(device="cpu")
        overviews, patches = shown(task.config, images)

        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                scores = task.scorer(overviews).float()
                logits, *_ = task.aggregator(task.embed(patches))
            total: Tensor = logits.float().logsumexp(-1).sum() + scores.sum()
            return total

        return measure(task, run)


def recipe_look(task: Any, images: int) -> Update:
    """One batch of judging in float32, beside the weights and gradients of what was trained."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        task.to_empty(device="cpu").eval().requires_grad_(False)
        overviews, patches = shown(task.config, images)
        with FlopCounterMode(display=False, custom_mapping=COUNTS) as counter, Peak() as peak:
            task.scorer(overviews)
            task.aggregator(task.embed(patches))
    own = overviews.untyped_storage().nbytes() + patches.untyped_storage().nbytes()
    weights = 3 * 4 * sum(p.numel() for p in task.parameters())
    return Update(weights, peak.bytes + own, counter.get_total_flops())


JUDGED_BEFORE = 144
"""Images that the recipes judged at a time until it was seen what that takes."""
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
            update = recipe_update(recipe_task(backbone), part, recomputes)
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
        for judged in (images, JUDGED_BEFORE):
            look = recipe_look(recipe_task(backbone), judged)
            figures = [f"{size / 1e9:.1f} GB" for size in (look.weights, look.kept)]
            together = f"{(look.weights + look.kept) / 1e9:.0f} GB"
            operations = f"{look.operations / 1e12:.0f}"
            rows.append([name, f"judged, {judged} at a time", *figures, together, operations, "-"])
    return rows


def summed(net: nn.Module, images: Tensor) -> Tensor:
    """Forward, to one number."""
    total: Tensor = net(images).sum()
    return total


def passes(net: nn.Module, images: Tensor) -> None:
    """Forward and backward."""
    summed(net, images).backward()


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
            computed[name] = measure(net, partial(summed, net, shown))
        real, x = timm.create_model(name), torch.rand(images, 3, 224, 224)
        found = measure(real, partial(summed, real, x))
        taken[name] = (
            seconds({"": partial(passes, real, x)}, 3, time.process_time)[""],
            found.kept,
        )
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
    torch.set_num_threads(1)
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
        f"Memory and time of one update of the reference's recipes (8 patches of 448 px, overview 850 px, 16-bit arithmetic, lamb), computed by torch's fake tensors: weights with gradients and moments in float32, what is kept for the backward pass, and the operations at {REACHED:.0%} of an H100's {PEAK / 1e12:.0f} x 10^12 in a second, which is an assumption. Of judging (float32, nothing kept) the most that is there at a time, beside weights and gradients of what was trained and the weights that are judged. Workspaces and the allocator's gaps come on top: leave a tenth free.",
        table(header, rows),
        "The same count for small networks, against what a real pass keeps and takes of one processor of this machine; time by the operations of the first.",
        table(small, smaller),
    )


if __name__ == "__main__":
    main()
