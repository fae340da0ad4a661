"""Where runs are kept, and paths that hold wherever workers run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.config import Settings
from assay.data.objects import local
from assay.errors import ConfigError
from assay.experiment.resources import Resources
from assay.runs.mirror import needs_record
from assay.runs.remote import open_storage
from assay.train.task_config import TaskConfig


def storage_of(resources: Resources) -> Path:
    """Return the absolute folder of the runs; of those on object storage the one that mirrors them, with their records.

    Raises:
        ConfigError: it is relative and this is an uploaded copy of the working directory, which
            Ray deletes after the job.
        RunError: object storage cannot be used.
    """
    uploaded = "runtime_resources" in Path.cwd().parts
    if not resources.storage:
        return Path.home() / "assay" / "runs" if uploaded else Path.cwd() / "runs"
    folder = open_storage(resources.storage, needs=needs_record)
    if uploaded and not folder.is_absolute():
        raise ConfigError(
            f"--storage {resources.storage} is relative, and this job runs in a temporary copy of your folder; give an absolute path that outlives the job."
        )
    return folder.absolute()


def absolute(config: TaskConfig) -> TaskConfig:
    """Make every path of the settings absolute, since workers have other working directories.

    What is on object storage is copied to this machine.

    Raises:
        ManifestError: it cannot be had.
    """
    changed: dict[str, Any] = {}
    for name, section in vars(config).items():
        if isinstance(section, Settings):
            paths: dict[str, Any] = {
                k: local(v) for k, v in vars(section).items() if isinstance(v, Path)
            }
            if name in ("model", "teacher"):
                paths |= {k: _placed(v) for k, v in vars(section).items() if k.endswith("weights")}
            changed[name] = replace(section, **paths)
    return replace(config, **changed)


def _placed(weights: str) -> str:
    """Make absolute what names a file or a run; words and URIs stay."""
    is_path = weights not in ("none", "hub") and Path(weights).exists()
    return str(Path(weights).absolute()) if is_path else weights
