"""Synthetic data: drawn once into a folder, and known by what it was drawn from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.errors import ConfigError
from assay.files import write_whole

TRUTH = "truth.json"


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
        if json.loads(path.read_text())["config"] == config:
            return
        raise ConfigError(
            f"{folder} holds synthetic data drawn from another config; "
            "name another folder, or remove this one."
        )
    truth = {"config": config, **draw()}
    write_whole(path, json.dumps(truth).encode())
