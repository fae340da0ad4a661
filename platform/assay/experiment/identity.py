"""What a run computes, as one short name; and the versions that it was computed with.

A run's name follows from its settings, its data and the code that decides what is trained: the task's
file and the wings below. What judges, reports, serves, schedules or draws synthetic data is stamped
and not counted, so that an edit there trains nothing anew.
"""

import ast
import platform
import socket
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import assay
from assay.config import fingerprint, to_dict
from assay.data.manifest import Manifest
from assay.train.source import TaskSource
from assay.train.task_config import TaskConfig

COUNTED = ("data", "levels.py", "metrics/scores", "nn", "train")
"""What decides what is trained, the choice of the best epoch included."""
DRAWS = "data/synthetic"
"""Draws images, which count by their content."""
MARKS = "data/masks"
"""Makes masks, which count by their content; its code counts where a task's file imports it."""
PACKAGE = Path(assay.__file__).parent


def identity(
    source: TaskSource, config: TaskConfig, manifest: Manifest, package: Path = PACKAGE
) -> str:
    """Name what a run computes, as 12 hex digits; paths, workers, comments and judging do not count."""
    what = {"config": _settings(config), "data": manifest.fingerprint}
    return fingerprint(what | {"code": code_of(source, package)})


def content(config: TaskConfig, manifest: Manifest) -> str:
    """Name what runs have in common that differ in code alone, as 12 hex digits."""
    return fingerprint({"config": _settings(config), "data": manifest.fingerprint})


def recipe(source: TaskSource, config: TaskConfig, manifest: Manifest) -> str:
    """Name what runs have in common that differ in train.seed alone, as 12 hex digits."""
    settings = _settings(config)
    settings["train"].pop("seed")
    what = {"config": settings, "data": manifest.fingerprint}
    return fingerprint(what | {"code": code_of(source)})


def code_of(source: TaskSource, package: Path = PACKAGE) -> dict[str, str]:
    """Digest each file that decides what is trained; the task's own is called `task`."""
    left_out = [DRAWS] if _imports_masks(source) else [DRAWS, MARKS]
    paths = [
        path
        for name in COUNTED
        for path in ([package / name] if name.endswith(".py") else (package / name).rglob("*.py"))
    ]
    code = {path.relative_to(package).as_posix(): path for path in sorted(paths)}
    counted = {
        name: digest_syntax(path.read_bytes())
        for name, path in code.items()
        if not name.startswith(tuple(f"{folder}/" for folder in left_out))
    }
    return counted | {"task": digest_syntax(source.code)}


def _settings(config: TaskConfig) -> dict[str, Any]:
    settings = to_dict(config)
    settings["data"].pop("root")
    settings.pop("decide", None)  # how a run is judged does not change what is trained
    # nor how many images are judged at a time, which memory says
    settings["train"].pop("eval_batch_size")
    return settings | config.digests()


def _imports_masks(source: TaskSource) -> bool:
    names: list[str] = []
    for node in ast.walk(ast.parse(source.code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    package = f"assay.{MARKS.replace('/', '.')}."
    return any(f"{name}.".startswith(package) for name in names)


@lru_cache(maxsize=1024)
def digest_syntax(source: bytes) -> str:
    """Digest the syntax of a source file, which comments and formatting do not change."""
    return fingerprint(ast.dump(ast.parse(source)))


def stamp() -> dict[str, Any]:
    """Say versions and machine, for the record."""
    names = ("ray", "torch", "timm", "numpy", "opencv-python-headless")
    return {
        "assay": assay.__version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
    } | {n: version(n) for n in names}
