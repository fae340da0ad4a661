"""Distillation: a student learns the answers of a finished run beside the truth (Hinton et al. 2015)."""

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Settings, from_dict
from assay.data.dataset import Dataset
from assay.errors import ConfigError, RunError
from assay.files import reading
from assay.metrics.predictions import class_names
from assay.runs.folder import Run
from assay.runs.results import read_config, read_predictions
from assay.shapes import Float
from assay.train.best import load_best
from assay.train.classification import Classification
from assay.train.source import TaskSource, load_task
from assay.train.task import Batch, BatchRows, Task


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings, section="distill"):
    """Whose answers are learnt beside the truth."""

    teacher: Path | None = None
    """Folder of a finished run that classifies whole images into the same classes; none: nobody's."""
    weight: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Weight of the teacher's answers, beside 1 for the truth."""
    temperature: Annotated[float, Interval(ge=1e-4, le=100)] = 4.0
    """What logits of both are divided by, so that small probabilities count."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names = ("weight", "temperature")
        return {} if self.teacher else dict.fromkeys(names, "distill.teacher is none")


@dataclass(frozen=True)
class SavedRun:
    """A finished run: its task and settings, to be loaded with its best weights."""

    folder: Path
    task: type[Task]
    config: Any
    classes: list[str]

    @classmethod
    def open(cls, folder: Path) -> "SavedRun":
        """Read what a run is of.

        Raises:
            RunError: there is no run, it is not finished, or a file of it is missing or damaged.
        """
        if not (folder / "run.json").is_file():
            raise RunError(f"{folder} is no run; give the folder of one, as assay show names it.")
        record = Run(folder).record
        if record.state != "finished":
            raise RunError(f"The run {folder} is {record.state}; run it to the end first.")
        with reading(folder / "task.py"):
            code = (folder / "task.py").read_bytes()
        # by another name, so that its code does not take the place of the task's own
        task = load_task(TaskSource(f"{record.task}_of_{folder.name.replace('-', '_')}", code))
        classes = class_names(read_predictions(folder, ()))
        return cls(folder, task, from_dict(task.Config, read_config(folder)), classes)

    def load(self, dataset: Dataset) -> Task:
        """Build the task with the run's best weights, ready to predict rows of these images."""
        task = self.task(self.config, dataset, self.classes)
        load_best(task, self.folder)
        return task.eval().requires_grad_(False)


@lru_cache(maxsize=8)
def open_teacher(folder: Path) -> SavedRun:
    """Open a run to learn from.

    Raises:
        ConfigError: it cannot be opened, or does not answer with a class of whole images.
    """
    try:
        teacher = SavedRun.open(folder)
    except RunError as error:
        raise ConfigError(f"--distill.teacher: {error}") from None
    if not issubclass(teacher.task, Classification) or not hasattr(teacher.config, "image"):
        raise ConfigError(
            f"--distill.teacher {folder} does not classify whole images, so nothing can be learnt from its answers; give a run that does."
        )
    return teacher


def refuse_classes(teacher: SavedRun, classes: list[str]) -> None:
    """Refuse a teacher that answers with other classes.

    Raises:
        ConfigError: it does.
    """
    if teacher.classes != classes:
        raise ConfigError(
            f"--distill.teacher {teacher.folder} answers with {', '.join(teacher.classes)}, the images are of "
            f"{', '.join(classes)}; give a run with these classes."
        )


def digest_weights(folder: Path) -> str:
    """Digest a run's best weights, which say what it is whatever its folder is called."""
    path = folder / "best" / "weights.safetensors"
    with reading(path):
        return sha256(path.read_bytes()).hexdigest()


def prepare_teacher(teacher: SavedRun, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
    """Prepare the same views as the student's, in the frame and by the statistics of the teacher."""
    settings = replace(teacher.config, transform=config.transform)
    views = Classification.prepare(settings, dataset, samples)
    return {f"teacher_{name}": views[name] for name in ("image", "mean", "std")}


def answer(teacher: Classification, batch: Batch) -> Tensor:
    """Return the teacher's logits of what `prepare_teacher` prepared."""
    return teacher.predict({name: batch[f"teacher_{name}"] for name in ("image", "mean", "std")})[
        "logits"
    ]


def divergence(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"], temperature: float
) -> Float[Tensor, ""]:
    """Return T^2 KL(teacher || student) of probabilities at temperature T, mean over rows.

    The factor keeps the gradient's size when T changes (Hinton et al. 2015, section 2).
    """
    log_student = (student.float() / temperature).log_softmax(1)
    log_teacher = (teacher.float() / temperature).log_softmax(1)
    kl = nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    scaled: Tensor = temperature**2 * kl
    return scaled
