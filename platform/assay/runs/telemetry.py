"""What a run says while it works: metrics.jsonl always, progress bars, W&B and TensorBoard on top.

One schema for every line of metrics.jsonl (absent fields were not measured, null: not finite):

    kind          "start" (a launch) | "step" | "val" | "epoch" | "warning"
    step          updates done          epoch      the pass, from 0 (-1: before any)
    total         updates of the whole run (start)
    threads       that rank 0 computes with on the CPU (start)
    loss          mean over the global batch; other scalars of the task's forward by their names,
                  of rank 0; on "epoch" lines means over the epoch's updates (step, epoch)
    lr            base learning rate    grad_norm  before clipping (step, epoch)
    accuracy, nll of val                val_s      seconds (val)
    samples_per_s global                data_wait  share of the time spent waiting for data (0..1)
    step_s        seconds (step)        epoch_s    seconds since the epoch or the launch began
    wait_s, cut_s, forward_s, backward_s, update_s  parts of these that do not overlap: waiting for
                  data; for patches that are cut; computing without that; clipping, optimiser and
                  what follows each update
    memory_mb     peak resident memory of rank 0, or of its CUDA device (step, epoch)
    text          the sentence of a monitor (warning)
    time          seconds since 1970

A resumed run repeats the lines after its last checkpoint: of equal kind and step the last counts,
of warnings each text once.
"""

import errno
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.errors import ConfigError
from assay.files import read_bytes, reading


class Telemetry:
    """Writes one rank's metrics; only rank 0 of a run should hold one.

    Args:
        folder: the run's directory.
        sinks: further sinks by name: "wandb" (offline unless logged in), "tensorboard".
        config: the run's settings, for sinks that show them.
        keep: takes each warning, to be kept beyond the metrics.
    """

    def __init__(
        self,
        folder: Path,
        sinks: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
        keep: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.keep = folder, keep
        self.wandb: Any = _start_wandb(folder, config or {}) if "wandb" in sinks else None
        self.board: Any = _start_tensorboard(folder) if "tensorboard" in sinks else None
        self.path = folder / "metrics.jsonl"
        _drop_torn_line(self.path)
        self.file = self.path.open("ab", buffering=0)

    def log(self, kind: str, **fields: float | int) -> None:
        """Write one line; floats are rounded to six significant digits."""
        self._write(kind, {k: _short(v) for k, v in fields.items()})
        values = {f"{kind}/{k}": v for k, v in fields.items() if k not in ("step", "epoch")}
        if self.wandb is not None:
            self.wandb.log(values, step=int(fields["step"]))
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, int(fields["step"]))

    def warn(self, text: str, step: int) -> None:
        """Write a monitor's sentence; `watch` shows it."""
        self._write("warning", {"step": step, "text": text})
        self.keep(text)

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        line = {"kind": kind} | fields | {"time": round(time.time(), 3)}
        content = json.dumps(line).encode() + b"\n"
        try:
            num = self.file.write(content)
        except OSError as error:
            error.filename = str(self.path)
            raise
        if num < len(content):  # a disk takes what it has room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Flush and end every sink."""
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.board is not None:
            self.board.close()


def _short(value: float | int) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left of its last line."""
    content = read_bytes(path) if path.exists() else b""
    if not content.endswith(b"\n") and content:
        os.truncate(path, content.rfind(b"\n") + 1)


def _start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    import wandb  # slow to import, and wanted by few runs

    logged_in = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
    with reading(
        folder / "wandb",
        ConfigError,
        "mend that, set WANDB_MODE=offline, or leave out --track wandb",
    ):
        return wandb.init(
            project="assay",
            name=folder.name,
            id=folder.name,
            resume="allow",
            dir=folder,
            config=config,
            mode=mode,
        )


def _start_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an optional dependency
    except ImportError:
        raise ConfigError(
            "--track tensorboard was asked for and tensorboard is not installed; "
            "run pip install 'assay[tensorboard]', or leave it out."
        ) from None
    return SummaryWriter(log_dir=str(folder / "tensorboard"))
