"""A task on a few images of its embedded data, trained below Ray and measured."""

import importlib.util
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
BATCH = 8
PARTS = ("wait", "cut", "forward", "backward", "update")
SAMPLE_S = 0.05


def prepare_imports() -> None:
    """Let task files be loaded where Ray is not installed: they import their command line."""
    sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]
    if importlib.util.find_spec("ray") is None:
        command_line = types.ModuleType("assay.cli.task")
        command_line.main = lambda path: None  # type: ignore[attr-defined]
        sys.modules["assay.cli.task"] = command_line


class Utilisation:
    """Asks the driver again and again, in a thread, for the share of time in which the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.samples = device, list[tuple[float, float]]()
        self.why_not = "" if device.type == "cuda" else "-"

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample until the end of this block."""
        ended = threading.Event()
        thread = threading.Thread(target=self._sample, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _sample(self, ended: threading.Event) -> None:
        while not (self.why_not or ended.wait(SAMPLE_S)):
            try:
                self.samples.append((time.perf_counter(), torch.cuda.utilization(self.device)))
            except ModuleNotFoundError:
                self.why_not = "not installed"
            except Exception as error:  # NVML's own, of a driver that does not say it
                self.why_not = type(error).__name__

    def mean(self, first: float, last: float) -> str:
        """Return the mean between two times, or why there is none."""
        during = [share for at, share in self.samples if first <= at <= last]
        return self.why_not or (f"{np.mean(during):.0f} %" if during else "too short")


@dataclass
class Trained:
    """A trained task, and what was measured of its updates."""

    task: Any
    lines: list[dict[str, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each update ended."""
    busy: str = "-"
    seconds: float = 0.0
    """Of all, val included."""

    def log(self, kind: str, **values: float) -> None:
        """Take note of an update, as telemetry does."""
        if kind == "step":
            self.lines.append(values)
            self.times.append(time.perf_counter())

    def warn(self, text: str, step: int) -> None:
        """Pass over a doubt."""

    def shares(self) -> list[float]:
        """Return the share of each part in the time of the updates, and the median of what they explain; warm ones alone."""
        warm = self.lines[2:]
        whole = sum(line["step_s"] for line in warm)
        spent = [sum(line.get(f"{part}_s", 0.0) for line in warm) / whole for part in PARTS]
        each = [sum(line.get(f"{part}_s", 0.0) for part in PARTS) / line["step_s"] for line in warm]
        return [*spent, float(np.median(each))]

    def rate(self) -> float:
        """Return images/s: of warm updates, or, where there are none, of all that was done."""
        warm = self.lines[2:]
        if not warm:
            return len(self.task.dataset.train) / self.seconds
        return len(warm) * BATCH / sum(line["step_s"] for line in warm)


class Trial:
    """A task's smoke settings on a few of its images.

    Args:
        name: of the task's file.
        storage: folder for data and runs.
        updates: that are trained, at least.
    """

    def __init__(self, name: str, storage: Path, updates: int) -> None:
        from assay.data.dataset import Dataset
        from assay.data.images.pixels import Pixels
        from assay.data.images.store import Store
        from assay.data.split import draw_split
        from assay.train.source import TaskSource, load_task

        self.storage, self.updates = storage / name, updates
        self.done: dict[str, Trained] = {}
        """By precision."""
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

    def settings(self, precision: str) -> Any:
        """The smoke settings in this arithmetic; what learns before the first update has no epochs."""
        epochs = -(-self.updates * BATCH // len(self.rows["train"]))
        if not self.config.train.epochs:
            epochs = 0
        train = replace(
            self.config.train,
            epochs=epochs,
            batch_size=BATCH,
            precision=precision,
            val_every=max(epochs, 1),
        )
        return replace(self.config, train=train)

    def trained(self, device: torch.device, precision: str) -> Trained:
        """Train for some updates, once."""
        if precision not in self.done:
            self.done[precision] = self.train(device, precision)
        return self.done[precision]

    def train(
        self,
        device: torch.device,
        precision: str,
        change: Callable[[Any], Any] = lambda task: None,
    ) -> Trained:
        """Train for some updates, and look at val once."""
        from assay.train.batches import batches
        from assay.train.loop import Loop

        config, began = self.settings(precision), time.perf_counter()
        torch.manual_seed(0)
        task = self.task_class(config, self.dataset).to(device)
        change(task)
        task.begin(self.rows["train"])
        folder, trained = Path(tempfile.mkdtemp(dir=self.storage)), Trained(task)

        def stream(steps: Any, train: bool) -> Iterator[Any]:
            return batches(self.task_class, config, self.dataset, steps, train)

        used = Utilisation(device)
        with used.sampled():
            Loop(task, task, self.rows, stream, folder, trained).fit()  # type: ignore[arg-type]
        trained.seconds = time.perf_counter() - began
        if trained.times:
            trained.busy = used.mean(trained.times[0], trained.times[-1])
        return trained
