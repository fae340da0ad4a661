"""A bar that follows a run's metrics, wherever the run is computed."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.files import read_bytes
from assay.progress import progress_bar
from assay.runs.metrics import NAMED


@contextmanager
def watch(folder: Path, label: str) -> Iterator[None]:
    """Show a bar and the warnings that some process, wherever it runs, writes to metrics.jsonl from now on."""
    path = folder / "metrics.jsonl"
    # what a killed process left of its last line is cut off before more is written
    skip = read_bytes(path).rfind(b"\n") + 1 if path.exists() else 0
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, skip, label, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(path: Path, offset: int, label: str, ended: threading.Event) -> None:
    bar = progress_bar(1, f"{label}: starting")
    shown: dict[str, str] = {}
    warned: set[str] = set()
    over = False
    while not over:
        over = ended.wait(0.5)  # what was written last is read once more
        if not path.exists():
            continue
        with path.open() as file:
            file.seek(offset)
            for text in iter(file.readline, ""):
                if not text.endswith("\n"):
                    break
                offset += len(text.encode())
                line = json.loads(text)
                if line["kind"] == "start":
                    bar.set_description(label)
                    bar.reset(line["total"])
                elif line["kind"] == "step":
                    shown["loss"] = _text(line["loss"])
                elif line["kind"] == "val":
                    # the main score comes first
                    scores = (v for k, v in line.items() if k not in (*NAMED, "nll"))
                    shown["val"] = _text(next(scores, None))
                elif line["kind"] == "warning" and line["text"] not in warned:
                    warned.add(line["text"])
                    bar.write(f"Warning: {line['text']}", file=sys.stderr)
                bar.set_postfix(shown, refresh=False)
                bar.update(line["step"] - bar.n)
    bar.close()


def _text(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
