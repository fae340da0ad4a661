"""Checks of an accelerator, below Ray: what ran, what failed and why, and a table of rates.

    PYTHONPATH=platform python tests/gpu/suite.py                  # on CUDA; says so and ends where there is none
    PYTHONPATH=platform python tests/gpu/suite.py --device cpu     # the same checks, as far as a CPU has them

Needs torch, torchvision, timm, numpy, cv2, PIL, imagecodecs, simplejpeg, tifffile, pyarrow, scipy, pydantic, annotated_types,
jaxtyping, xxhash, safetensors, huggingface_hub, tqdm, albumentations, segmentation_models_pytorch, onnx, onnxscript and
onnxruntime; a check that lacks one is named and left out. Ray is not needed. onnxruntime's build for CUDA opens bundles on
the device, and pynvml (`assay[nvml]`) says how busy that is.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import two_processes
from trial import PARTS, Trained, Trial, prepare_imports

TASKS = ("fingerprint", "segment", "casting", "extrusion", "pretrain", "distill", "anomaly")
SHIPPED = ("fingerprint", "segment")
PRECISIONS = ("fp32", "bf16", "fp16")
UPDATES = {"cpu": 12, "cuda": 100}
"""A device is done with some before its driver has looked once."""
EXPLAINED = 0.95
"""Share of an update, in the median, that its named parts explain."""
SAMPLED = 4
"""Grey levels by which host and device may differ in what is sampled of a rough image: OpenCV rounds places to 1/32 of a pixel."""
GOLDEN = 1e-3
HEADER = ("task", "precision", "images/s", "device", "memory", *PARTS, "explained")


@dataclass
class Report:
    """Lines of what ran, and of the table."""

    device: torch.device
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def check(self, name: str, run: Callable[[], str]) -> None:
        """Run one check and say how it went; what is missing is left out, anything else is a failure."""
        began = time.perf_counter()
        try:
            said = f"ok: {run()}"
        except ModuleNotFoundError as missing:
            self.left_out.append(name)
            said = f"left out: {missing.name} is not installed"
        except Exception as error:  # whatever is raised is the finding
            self.failed.append(name)
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name:<28} {time.perf_counter() - began:6.1f} s  {said}", flush=True)

    def measure(self, task: str, precision: str, train: Callable[[], Trained]) -> None:
        """Check a training; its line of the table says what was measured, or that it failed."""
        name, row = f"{task}: {precision}", [task, precision]
        self.rows.append(row)
        self.check(name, partial(self._measured, row, train))
        if name in self.failed + self.left_out:
            outcome = "FAILED" if name in self.failed else "left out"
            row += [*["-"] * (len(HEADER) - len(row)), outcome]

    def _measured(self, row: list[str], train: Callable[[], Trained]) -> str:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trained = train()
        row += [f"{trained.rate():.1f}", trained.busy, memory(self.device)]
        if not trained.lines:
            row += ["-"] * (len(PARTS) + 1)
            return "remembered, and looked at val"
        *spent, explained = trained.shares()
        row += [f"{share:.0%}" for share in (*spent, explained)]
        losses = [line["loss"] for line in trained.lines]
        assert np.isfinite(losses).all(), f"losses are {losses}"
        assert explained >= EXPLAINED, f"the named parts explain {explained:.1%} of an update"
        return f"loss {losses[0]:.3f} to {losses[-1]:.3f}"


def memory(device: torch.device) -> str:
    """Peak memory of the device."""
    return (
        f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB" if device.type == "cuda" else "-"
    )


def same_patches(report: Report) -> str:
    """The reference presets, cut on the device and by the host."""
    import cv2

    from assay.data.images.pyramid import ImagePyramid
    from assay.data.inputs.augment import draw_augment
    from assay.data.inputs.patches import Canvas, cell_corners
    from assay.train.cutting import Cut, PatchCutter
    from assay.train.recipes import reference_recipes

    rng, worst = np.random.default_rng(0), 0
    noise = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
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
    """Recomputed blocks, images held on the device, and there compiled blocks, learn what is learnt without."""
    from assay.nn.blocks import compile_blocks, recompute

    ways: dict[str, Callable[[Any], Any]] = {
        "plain": lambda task: None,
        "recomputed": recompute,
        "held": lambda task: task.hold(trial.rows["train"]),
    }
    if (
        report.device.type == "cuda"
    ):  # a CPU's compiler takes minutes, and tests/nn/test_blocks.py tries it
        ways["compiled"] = compile_blocks
    losses = {
        name: np.array([line["loss"] for line in trial.train(report.device, "fp32", way).lines])
        for name, way in ways.items()
    }
    gaps = {name: float(np.abs(each - losses["plain"]).max()) for name, each in losses.items()}
    assert max(gaps.values()) < 0.05, f"losses differ: {gaps}"
    return ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items() if name != "plain")


@contextmanager
def one_worker(backend: str, folder: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(report: Report, folder: Path) -> str:
    """An update of sharded blocks against a plain one: NCCL has one rank on a device."""
    device, backend = report.device, "nccl" if report.device.type == "cuda" else "gloo"
    images = two_processes.shown(device)
    expected = two_processes.gradients(two_processes.network("whole").to(device), images)
    with one_worker(backend, folder):
        net = two_processes.shard(two_processes.network("whole").to(device), device)
        found = two_processes.gradients(net, images)
    gap = two_processes.gap(found, expected)
    assert gap < two_processes.GAP, f"gradients differ by {gap:.1e}"
    return f"gradients {gap:.1e} apart over {backend}"


def shipped(report: Report, trial: Trial, precision: str) -> str:
    """A run in this arithmetic ships: its bundle repeats what the device predicts in float32."""
    import onnxruntime

    from assay.bundle.bundle import Bundle
    from assay.bundle.card import Card
    from assay.bundle.providers import PROVIDERS
    from assay.bundle.seal import seal

    task = trial.trained(report.device, precision).task.eval()
    row = int(trial.rows["val"][0])
    expected, decision = golden(task, row)
    folder, image = Path(tempfile.mkdtemp(dir=trial.storage)), Path(trial.images[row])
    if hasattr(task.config, "quantize"):  # another check's
        unquantized = replace(task.config.quantize, variant="none")
        task.config = replace(task.config, quantize=unquantized)
    pipeline = task.cpu().export(folder, trial.rows)
    thresholds = None if decision else [50] * len(task.classes)
    card = Card(classes=task.classes, pipeline=pipeline, decision=decision, thresholds=thresholds)
    seal(folder, card, image, expected)
    is_there = PROVIDERS[report.device.type] in onnxruntime.get_available_providers()
    bundle = Bundle(folder, provider=report.device.type if is_there else "cpu")  # type: ignore[arg-type]
    repeated = bundle.predict(image).golden()
    gap = max(abs(repeated[name] - value) for name, value in expected.items())
    assert gap < GOLDEN, f"probabilities differ by {gap:.1e}"
    taken = {session.get_providers()[0] for session in bundle.graphs.values()}
    return f"{gap:.1e} apart by {', '.join(taken)}"


def golden(task: Any, row: int) -> tuple[dict[str, float], Any]:
    """What the bundle must repeat for a row's image, and how a class is decided on, where there is one."""
    from assay.metrics.decide import Decision
    from assay.train.predict import whole_float32
    from assay.train.task import BatchRows

    with torch.no_grad(), whole_float32():
        grid = task.golden(row)
        if grid is not None:
            return grid, None
        samples = BatchRows(np.array([row]), np.zeros(1, np.uint64), False)
        batch = type(task).prepare(task.config, task.dataset, samples)
        probs = task.predict(batch)["logits"][0].float().softmax(0).tolist()
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
    return dict(zip(task.classes, probs, strict=True)), decision


def check_task(report: Report, name: str, folder: Path) -> None:
    """Check what a task does on the device."""
    trials: list[Trial] = []

    def draw() -> str:
        trials.append(Trial(name, folder, UPDATES[report.device.type]))
        return "drawn and decoded"

    report.check(f"{name}: data", draw)
    if not trials:
        return
    (trial,) = trials
    # float16 scales its loss on CUDA alone
    precisions = PRECISIONS if report.device.type == "cuda" else PRECISIONS[:2]
    for precision in precisions:
        report.measure(name, precision, partial(trial.trained, report.device, precision))
    if name == "fingerprint":
        report.check(f"{name}: ways to train", partial(same_training, report, trial))
    for precision in precisions[1:] if name in SHIPPED else ():
        report.check(f"{name}: ships {precision}", partial(shipped, report, trial, precision))


def print_table(rows: list[list[str]]) -> None:
    """Print rates, utilisation, memory and shares of time; what failed has its line too."""
    lines = [[*HEADER, ""], *([*row, ""][: len(HEADER) + 1] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER) + 1)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


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
    print(f"{name}, torch {torch.__version__}, load {os.getloadavg()[0]:.0f}")
    with tempfile.TemporaryDirectory() as storage:
        folder = Path(storage)
        report.check("device tier", partial(same_patches, report))
        report.check("sharded, one process", partial(sharded, report, folder))
        report.check("two processes", partial(two_processes.compare, report.device, folder))
        for task in asked.tasks:
            check_task(report, task, folder)
    print_table(report.rows)
    print(f"{time.perf_counter() - began:.0f} s; failed: {', '.join(report.failed) or 'nothing'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
