"""Task files by their bytes, and how they are loaded."""

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from assay.errors import ConfigError
from assay.train.task import Task


@dataclass(frozen=True)
class TaskSource:
    """A task file by its bytes, which travel to the workers and are what identity hashes."""

    name: str
    code: bytes

    @classmethod
    def read(cls, path: str | Path) -> "TaskSource":
        """Read a task file.

        Raises:
            ConfigError: there is no such file.
        """
        file = Path(path)
        if not file.is_file():
            raise ConfigError(
                f"The task file {file} does not exist; give a file such as tasks/fingerprint.py."
            )
        return cls(file.stem, file.read_bytes())


def load_task(source: TaskSource) -> type[Task]:
    """Execute a task file's bytes as module `assay_task_<name>` and return its Task class.

    Raises:
        ConfigError: the file is no Python, or defines no subclass of `Task`, or several.
    """
    module_name = f"assay_task_{source.name}"
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__source__", None) != source.code:
        module = ModuleType(module_name)
        file = f"<task {source.name}.py>"
        try:
            compiled = compile(source.code, file, "exec")
            text = source.code.decode()
        except (SyntaxError, ValueError) as error:  # a ValueError of null bytes, or of no UTF-8
            raise ConfigError(
                f"The task file {source.name}.py is no Python ({error}); mend it."
            ) from None
        module.__dict__.update(__source__=source.code, __file__=file)
        # tracebacks and the help text of settings read the source by this name
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        sys.modules[module_name] = module
        exec(compiled, module.__dict__)
    tasks = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module_name
    ]
    if len(tasks) != 1:
        raise ConfigError(
            f"The task file {source.name}.py defines {len(tasks)} subclasses of Task; it must define one."
        )
    return tasks[0]
