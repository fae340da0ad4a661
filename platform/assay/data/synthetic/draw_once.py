"""Synthetic data: drawn once into a folder, and known by what it was drawn from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from assay.config import fingerprint
from assay.errors import ConfigError
from assay.files import read_json, write_whole
from assay.shapes import UInt8

TRUTH = "truth.json"


def folder_of(storage: Path, name: str, config: Any) -> Path:
    """Say where below the folder of the runs a set is drawn by these settings."""
    return storage / "embedded" / f"{name}-{fingerprint(asdict(config))}"


def draw_once(
    folder: Path, config: Mapping[str, Any], draw: Callable[[], Mapping[str, Any]]
) -> None:
    """Let `draw` fill the folder, and write `truth.json` last: the config and what `draw` returns.

    A folder that was filled from the same config is left as it is; one whose drawing was broken off
    is drawn again.

    Raises:
        ConfigError: The folder holds what was drawn from another config.
    """
    path = folder / TRUTH
    if path.exists():
        truth = read_json(path, ConfigError, "remove its folder, which is then drawn anew")
        if truth.get("config") == config:
            return
        raise ConfigError(
            f"{folder} holds synthetic data drawn from another config; "
            "name another folder, or remove this one."
        )
    write_whole(path, json.dumps({"config": config, **draw()}).encode())


def write_image(path: Path, pixels: UInt8[np.ndarray, "h w *c"]) -> None:
    """Write grey or RGB pixels as PNG, whole or not at all; an OSError comes through, which cv2.imwrite leaves out."""
    ordered = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., ::-1])
    encoded = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    write_whole(path, encoded.tobytes())
