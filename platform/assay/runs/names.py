"""Names of run directories: TASK-ID, and TASK-ID-2 and so on for further attempts.

People copy a run's directory beside it (ID-backup, ID.old, "copy of ID"). Such a copy is read where it
is named in full, and is no run of its own elsewhere.
"""

import re
from pathlib import Path

_ID = r"-[0-9a-f]{12}"


_ATTEMPT = r"(?:-([2-9]|[1-9][0-9]{1,2}))?"


def is_run_name(name: str, task: str) -> bool:
    """Tell whether Assay itself would give a run of this task such a name; of any task where it is ""."""
    return re.fullmatch((re.escape(task) or r"[\w.-]+") + _ID + _ATTEMPT, name) is not None


def is_copy(name: str, task: str) -> bool:
    """Tell whether a name holds that of a run and says more; a name that a person chose alone is no copy."""
    return re.search(_ID, name) is not None and not is_run_name(name, task)


def attempts(storage: Path, name: str) -> dict[int, Path]:
    """Find the directories of a run and of its further attempts, by their numbers."""
    pattern = re.compile(re.escape(name) + _ATTEMPT)
    matches = [(pattern.fullmatch(path.name), path) for path in storage.glob(f"{name}*")]
    return {int(match[1] or 1): path for match, path in matches if match and path.is_dir()}
