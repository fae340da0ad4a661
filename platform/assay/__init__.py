"""Assay: distributed experiments for manufacturing vision on Ray."""

import os

__version__ = "0.1.0"

# read as Ray is imported: its workers use this environment as it is, also under `uv run`
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
