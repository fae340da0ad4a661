"""Checks of an accelerator, below Ray: what ran, what failed and why, and a table of rates.

    PYTHONPATH=platform python tests/gpu/suite.py                  # on CUDA; says so and ends where there is none
    PYTHONPATH=platform python tests/gpu/suite.py --device cpu     # the same checks, as far as a CPU has them

Needs torch, timm, OpenCV and what a task file imports; a check whose package is missing is named
and left out. Ray is not needed.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
TASKS = ("fingerprint", "segment", "casting", "extrusion", "pretrain")
PRECISIONS = ("fp32", "bf16", "fp16")
UPDATES, BATCH = 12, 8
PARTS = ("wait", "cut", "forward", "backward", "update")
SAMPLED = 4
"""Grey levels by which host and device may differ in what is sampled of a rough image: OpenCV rounds places to 1/32 of a pixel."""
GOLDEN = 1e-3


@dataclass
class Report:
    """Lines of what ran, and of the table."""

    device: torch.device
    failed: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def check(self, name: str, run: Callable[[], str]) -> None:
        """Run one check and say how it went; what is missing is left out, anything else is a failure."""
        began = time.perf_counter()
        try:
            said = f"ok: {run()}"
        except ModuleNotFoundError as missing:
            said = f"left out: {missing.name} is not installed"
        except Exception as error:  # whatever is raised is the finding
            self.failed.append(name)
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name:<28} {time.perf_counter() - began:6.1f} s  {said}", flush=True)


def prepare_imports() -> None:
    """Let task files be loaded where Ray is not installed: they import their command line."""
    sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]
    if importlib.util.find_spec("ray") is None:
        command_line = types.ModuleType("assay.cli.task")
        command_line.main = lambda path: None  # type: ignore[attr-defined]
        sys.modules["assay.cli.task"] = command_line


class Trial:
    """A task on a few images of its embedded data.

    Args:
        name: of the task's file.
        storage: folder for data and runs.
    """

    def __init__(self, name: str, storage: Path) -> None:
        from assay.data.dataset import Dataset
        from assay.data.images.pixels import Pixels
        from assay.data.images.store import Store
        from assay.data.split import draw_split
        from assay.train.source import TaskSource, load_task

        self.storage = storage / name
        self.task_class = load_task(TaskSource.read(ROOT / "tasks" / f"{name}.py"))
        self.config: Any = self.task_class.presets()["smoke"]
        manifest = self.task_class.manifest(self.config, self.storage)
        split = draw_split(manifest, self.config.split)
        self.rows = {"train": split.rows("train")[:16], "val": split.rows("val")[:4]}
        store = Store(str(self.storage / "store"))
        self.images = manifest.column("image")
        for row in np.concatenate([*self.rows.values()]).tolist():
            for keys in (manifest.column("content"), *manifest.masks.values()):
                store.build(keys[row], Path(manifest.files[keys[row]]))
        pixels = Pixels(store, manifest.column("content"), manifest.masks)
        self.dataset = Dataset.of(manifest, pixels, self.rows["train"])

    def settings(self, precision: str, epochs: int) -> Any:
        """The smoke settings in this arithmetic, for so many epochs."""
        train = replace(
            self.config.train,
            epochs=epochs,
            batch_size=BATCH,
            precision=precision,
            val_every=epochs,
        )
        return replace(self.config, train=train)

    def train(
        self,
        device: torch.device,
        precision: str,
        change: Callable[[Any], None] = lambda task: None,
    ) -> tuple[Any, list[dict[str, float]]]:
        """Train for some updates; return the task and the lines of its updates."""
        from assay.train.batches import batches
        from assay.train.loop import Loop

        config = self.settings(precision, -(-UPDATES * BATCH // len(self.rows["train"])))
        torch.manual_seed(0)
        task = self.task_class(config, self.dataset).to(device)
        change(task)
        folder = Path(tempfile.mkdtemp(dir=self.storage))
        lines: list[dict[str, float]] = []

        class Lines:
            def log(self, kind: str, **values: float) -> None:
                if kind == "step":
                    lines.append(values)

            def warn(self, text: str, step: int) -> None:
                pass

        def stream(steps: Any, train: bool) -> Iterator[Any]:
            return batches(self.task_class, config, self.dataset, steps, train)

        Loop(task, task, self.rows, stream, folder, Lines()).fit()  # type: ignore[arg-type]
        return task, lines


def train_and_note(report: Report, trial: Trial, name: str, precision: str) -> str:
    """Train, and put rates and parts into the table."""
    if report.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _, lines = trial.train(report.device, precision)
    losses = [line["loss"] for line in lines]
    assert np.isfinite(losses).all(), f"losses are {losses}"
    warm = lines[2:]
    whole = float(np.sum([line["step_s"] for line in warm]))
    shares = [sum(line.get(f"{part}_s", 0.0) for line in warm) / whole for part in PARTS]
    assert sum(shares) > 0.9, f"the named parts explain {sum(shares):.0%} of the updates"
    rate = len(warm) * BATCH / whole
    cells = [f"{share:.0%}" for share in (*shares, sum(shares))]
    report.rows.append(
        [name, precision, f"{rate:.1f}", utilisation(report.device), memory(report.device), *cells]
    )
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}"


def utilisation(device: torch.device) -> str:
    """Share of the last second in which the device computed, where its driver says so."""
    if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        return "-"
    return f"{torch.cuda.utilization(device)} %"


def memory(device: torch.device) -> str:
    """Peak memory of the device."""
    return (
        f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB" if device.type == "cuda" else "-"
    )


def same_patches(report: Report) -> str:
    """The reference presets, cut on the device and by the host."""
    from assay.data.images.pyramid import ImagePyramid
    from assay.data.inputs.augment import draw_augment
    from assay.data.inputs.patches import Canvas, cell_corners
    from assay.train.cutting import Cut, PatchCutter
    from assay.train.recipes import reference_recipes

    rng, worst = np.random.default_rng(0), 0
    noise = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    import cv2

    entry = ImagePyramid.of(cv2.resize(noise, (1300, 1300), interpolation=cv2.INTER_CUBIC))
    for recipe in reference_recipes().values():
        draws = [draw_augment(recipe.augment, recipe.patches.image_px, rng) for _ in range(2)]
        canvases = [Canvas(entry, recipe.patches, drawn) for drawn in draws]
        cells = np.stack([rng.choice(52 * 52, 2) for _ in canvases])
        corners = cell_corners(cells.ravel(), 52, recipe.patches).reshape(*cells.shape, 2)
        cut = Cut(np.arange(2), canvases, corners, np.ones(cells.shape, bool))
        held, host = PatchCutter(range(2)), PatchCutter()
        ours = held.finish(held.begin(cut, report.device), report.device).cpu().int()
        theirs = host.finish(host.begin(cut, report.device), report.device).cpu().int()
        worst = max(worst, int((ours - theirs).abs().max()))
    assert worst <= SAMPLED, f"patches differ by {worst} grey levels"
    return f"at most {worst} grey levels apart, {len(reference_recipes())} recipes"


def same_training(report: Report, trial: Trial) -> str:
    """Recomputed blocks, compiled ones, and images held on the device learn what is learnt without."""
    from assay.nn.blocks import compile_blocks, recompute

    ways: dict[str, Callable[[Any], Any]] = {
        "plain": lambda task: None,
        "recomputed": recompute,
        "compiled": compile_blocks,
        "held": lambda task: task.hold(trial.rows["train"]),
    }
    losses = {
        name: np.array([line["loss"] for line in trial.train(report.device, "fp32", way)[1]])
        for name, way in ways.items()
    }
    gaps = {name: float(np.abs(each - losses["plain"]).max()) for name, each in losses.items()}
    assert max(gaps.values()) < 0.05, f"losses differ: {gaps}"
    return ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items() if name != "plain")


@contextmanager
def one_worker(device: torch.device, folder: Path) -> Iterator[None]:
    """A group of one process, over NCCL where the device has it."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def distributed(report: Report, folder: Path) -> str:
    """An update with synchronised batch norm, and one of sharded blocks, against a plain one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from assay.nn.blocks import blocks_of

    def network() -> torch.nn.Module:
        import timm

        torch.manual_seed(0)
        return timm.create_model("resnet18", num_classes=4).to(report.device)

    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(report.device)
    plain = network()
    expected = plain(images).square().mean()
    gaps = {}
    with one_worker(report.device, folder):
        if report.device.type == "cuda":
            synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network())
            wrapped = torch.nn.parallel.DistributedDataParallel(synced, device_ids=[report.device])
            gaps["SyncBatchNorm"] = wrapped(images).square().mean() - expected
        sharded, mesh = network(), init_device_mesh(report.device.type, (1,))
        for block in blocks_of(sharded):
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        loss = sharded(images).square().mean()
        loss.backward()
        gaps["FSDP2"] = loss - expected
    moves = {name: abs(gap.item()) for name, gap in gaps.items()}
    assert max(moves.values()) < 1e-3 * abs(expected.item()), f"losses differ: {moves}"
    return ", ".join(f"{name} {move:.1e}" for name, move in moves.items())


def shipped(report: Report, trial: Trial, precision: str) -> str:
    """A run in this arithmetic ships: its bundle repeats what the device predicts in float32."""
    import onnxruntime

    from assay.bundle.bundle import Bundle
    from assay.bundle.card import Card
    from assay.bundle.seal import seal
    from assay.metrics.decide import Decision
    from assay.train.predict import whole_float32

    task, _ = trial.train(report.device, precision)
    task.eval()
    first = trial.rows["val"][:1]
    from assay.train.task import BatchRows

    samples = BatchRows(first, np.zeros(1, np.uint64), False)
    batch = trial.task_class.prepare(task.config, trial.dataset, samples)
    with torch.no_grad(), whole_float32():
        logits = task.predict(batch)["logits"][0].float().cpu()
    probs = dict(zip(task.classes, logits.softmax(0).tolist(), strict=True))
    folder = Path(tempfile.mkdtemp(dir=trial.storage))
    pipeline = task.cpu().export(folder, trial.rows)
    names = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
    provider = report.device.type
    if names[provider] not in onnxruntime.get_available_providers():
        provider = "cpu"
    decision = Decision(
        temperature=1.0,
        coverage=0.9,
        quantile=1.0,
        costs=None,
        positive=None,
        threshold=None,
        num=4,
        num_groups=4,
    )
    card = Card(classes=task.classes, pipeline=pipeline, decision=decision)
    seal(folder, card, Path(trial.images[int(first[0])]), probs)
    golden = Bundle(folder, provider=provider).predict(Path(trial.images[int(first[0])])).golden()  # type: ignore[arg-type]
    gap = max(abs(golden[name] - value) for name, value in probs.items())
    assert gap < GOLDEN, f"probabilities differ by {gap:.1e}"
    return f"{gap:.1e} apart by onnxruntime on {provider}"


def check_task(report: Report, name: str, folder: Path) -> None:
    """Check what a task does on the device."""
    trials: list[Trial] = []

    def draw() -> str:
        trials.append(Trial(name, folder))
        return "drawn and decoded"

    report.check(f"{name}: data", draw)
    if not trials:
        return
    (trial,) = trials
    # float16 scales its loss on CUDA alone
    for precision in PRECISIONS if report.device.type == "cuda" else PRECISIONS[:2]:
        report.check(
            f"{name}: {precision}", partial(train_and_note, report, trial, name, precision)
        )
    if name == "fingerprint":
        report.check(f"{name}: ways to train", partial(same_training, report, trial))
        report.check(f"{name}: ships", partial(shipped, report, trial, "bf16"))


def print_table(rows: list[list[str]]) -> None:
    """Print rates, utilisation, memory and shares of time."""
    header = ["task", "precision", "images/s", "device", "memory", *PARTS, "explained"]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    for line in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> int:
    """Run every check; 0 where all went well, or there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is here: nothing was checked (--device cpu tries what a CPU has).")
        return 0
    prepare_imports()
    report, began = Report(torch.device(asked.device)), time.perf_counter()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else f"{os.cpu_count()} CPUs"
    print(f"{name}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as storage:
        folder = Path(storage)
        report.check("device tier", lambda: same_patches(report))
        report.check("NCCL, one device", lambda: distributed(report, folder))
        for task in asked.tasks:
            check_task(report, task, folder)
    print_table(report.rows)
    print(f"{time.perf_counter() - began:.0f} s; failed: {', '.join(report.failed) or 'nothing'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
