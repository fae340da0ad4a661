"""What changes a run's name: each wing and sub-folder of the package is edited in turn, in a copy."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assay.data.manifest import DataConfig, Manifest
from assay.experiment import earlier
from assay.experiment.earlier import find
from assay.experiment.identity import PACKAGE, code_of, content, identity, recipe
from assay.metrics.decide import DecideConfig
from assay.nn.optim import OptimConfig
from assay.runs.folder import Run
from assay.runs.record import Launch
from assay.train.source import TaskSource
from assay.train.task_config import TaskConfig, TrainConfig

TASKS = Path(__file__).parents[2] / "tasks"
SOURCES = {name: TaskSource.read(TASKS / f"{name}.py") for name in ("fingerprint", "segment")}
CONFIG = TaskConfig()
COUNTS = {
    "data",
    "data/images",
    "data/images/formats",
    "data/inputs",
    "data/near",
    "metrics/scores",
    "nn",
    "nn/domains",
    "nn/self_supervised",
    "train",
    "levels.py",
}
COUNTS_NOT = {
    "data/synthetic",
    "metrics",
    "bundle",
    "runs",
    "report",
    "serve",
    "experiment",
    "sweep",
    "cli",
    "cluster",
    "config.py",
    "errors.py",
    "fetch.py",
    "files.py",
    "progress.py",
    "shapes.py",
    "space.py",
    "storage.py",
    "strict_yaml.py",
    "typed.py",
    "__init__.py",
}


def manifest_of(labels: str = "abab") -> Manifest:
    names = [f"{index}" for index in range(len(labels))]
    columns: dict[str, Any] = {name: names for name in ("id", "image", "group", "content")}
    split = pa.nulls(len(labels), pa.string())
    return Manifest(pa.table(columns | {"label": list(labels), "split": split}))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with one file in each folder, and all that lie in none."""
    copy = tmp_path / "assay"
    for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())):
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        for file in files[:1] if folder != PACKAGE else PACKAGE.glob("*.py"):
            target = copy / file.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return copy


def names(package: Path) -> dict[str, str]:
    manifest = manifest_of()
    return {task: identity(SOURCES[task], CONFIG, manifest, package) for task in SOURCES}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {task for task in before if before[task] != after[task]}


def file_in(package: Path, wing: str) -> Path:
    if wing.endswith(".py"):
        return package / wing
    (file,) = (package / wing).glob("*.py")
    return file


def test_every_wing_is_named_here(package: Path) -> None:
    folders = {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")}
    files = {path.name for path in package.glob("*.py")}
    assert folders - {"."} | files == COUNTS | COUNTS_NOT | {"data/masks"}


@pytest.mark.parametrize("wing", sorted(COUNTS | COUNTS_NOT | {"data/masks"}))
def test_an_edit_counts_where_it_decides_what_is_trained(package: Path, wing: str) -> None:
    expected = set(SOURCES) if wing in COUNTS else set()
    if wing == "data/masks":
        expected = {"segment"}  # whose file imports it
    before, file = names(package), file_in(package, wing)
    text = file.read_text()
    file.write_text("# a comment\n" + text.replace("\n\n\n", "\n\n# another\n\n\n\n") + "\n\n")
    assert changed(before, names(package)) == set()
    file.write_text(text + "\nEDITED = 1\n")
    assert changed(before, names(package)) == expected
    file.write_text(text)
    new = file.with_name("added.py")
    new.write_text("ADDED = 1\n")
    # among the files that lie in no folder, levels.py alone counts
    assert changed(before, names(package)) == (set() if wing.endswith(".py") else expected)
    new.unlink()
    if not wing.endswith(".py"):
        deeper = file.parent / "deeper" / "still" / "added.py"
        deeper.parent.mkdir(parents=True)
        deeper.write_text("ADDED = 1\n")
        assert changed(before, names(package)) == (set() if wing == "metrics" else expected)
        shutil.rmtree(file.parent / "deeper")
    assert names(package) == before
    file.unlink()
    if wing != "levels.py":
        assert changed(before, names(package)) == expected


def test_moving_a_file_counts(package: Path) -> None:
    before, file = names(package), file_in(package, "data/inputs")
    file.rename(package / "data" / file.name)
    assert changed(before, names(package)) == set(SOURCES)


def test_the_code_of_the_package_itself_is_seen_whole() -> None:
    code = code_of(SOURCES["segment"])
    for name in ("data/dataset.py", "data/inputs/image.py", "data/masks/rules.py", "train/loop.py"):
        assert name in code
    assert "task" in code
    assert not {name for name in code if name.startswith(("data/synthetic", "bundle"))}
    without = code_of(SOURCES["fingerprint"])
    masks = {name for name in code if name.startswith("data/masks/")}
    assert masks == code.keys() - without.keys()


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("from assay.data.masks.prepare import prepare", True),
        ("from assay.data.masks import rules", True),
        ("from assay.data import masks", True),
        ("import assay.data.masks.rules", True),
        ("import numpy, assay.data.masks.rules as rules", True),
        ("def late():\n    from assay.data.masks.coco import read_coco", True),
        ("import assay.data.manifest", False),
        ("from assay.data.masks_of_others import rules", False),
        ("from . import masks", False),
        ("# from assay.data.masks import rules", False),
    ],
)
def test_masks_count_however_they_are_imported(package: Path, line: str, counts: bool) -> None:
    code = code_of(TaskSource("task", line.encode()), package)
    assert any(name.startswith("data/masks/") for name in code) == counts


def test_the_tasks_own_file_counts_by_its_syntax(package: Path) -> None:
    manifest, source = manifest_of(), TaskSource("task", b"x = 1\ny = (2, 3)\n")
    before = identity(source, CONFIG, manifest, package)
    same = TaskSource("renamed", b"# said\nx = 1  # said\n\ny = (\n    2,\n    3,\n)")
    assert identity(same, CONFIG, manifest, package) == before
    other = TaskSource("task", b"x = 1\ny = (2, 4)\n")
    assert identity(other, CONFIG, manifest, package) != before


def test_settings_and_data_count_and_where_they_lie_does_not(package: Path) -> None:
    manifest, source = manifest_of(), SOURCES["fingerprint"]

    def name(config: TaskConfig = CONFIG, data: Manifest = manifest) -> str:
        return identity(source, config, data, package)

    same = [
        replace(CONFIG, data=DataConfig(root=Path("elsewhere"))),
        replace(CONFIG, decide=DecideConfig(coverage=0.7)),
        replace(CONFIG, train=TrainConfig(eval_batch_size=1)),
    ]
    others = [
        replace(CONFIG, optim=OptimConfig(lr=0.123)),
        replace(CONFIG, train=TrainConfig(seed=7)),
        replace(CONFIG, data=DataConfig(keep=("batch",))),
    ]
    assert {name(config) for config in same} == {name()}
    assert len({name(), *map(name, others), name(data=manifest_of("abba"))}) == 5
    # runs of one recipe differ in their seed alone; of one content, in their code alone
    assert recipe(source, others[1], manifest) == recipe(source, CONFIG, manifest)
    assert recipe(source, others[0], manifest) != recipe(source, CONFIG, manifest)
    assert recipe(SOURCES["segment"], CONFIG, manifest) != recipe(source, CONFIG, manifest)
    assert len({content(config, manifest) for config in (CONFIG, *same)}) == 1
    assert len({content(config, manifest) for config in (CONFIG, *others)}) == 4


# Finding runs

SOURCE = TaskSource("spots", b"x = 1\n")
MANIFEST = manifest_of()


@pytest.fixture(autouse=True)
def say_again() -> None:
    """What is said once is said once in each test."""
    earlier._say_what_changed.cache_clear()


def older_run(
    storage: Path, ending: str = "0" * 12, changes: dict[str, str] | None = None, **fields: Any
) -> Run:
    """A finished run whose code differed in what is named."""
    run = Run(storage / f"spots-{ending}")
    run.folder.mkdir(parents=True)
    code = code_of(SOURCE) | (changes or {"nn/optim.py": "f" * 12})
    record = {
        "state": "finished",
        "content": content(CONFIG, MANIFEST),
        "code": code,
        "launches": (Launch(time=1.0),),
    }
    run.note(**record | fields)
    return run


def lookup(storage: Path, **options: Any) -> Run:
    return find(SOURCE, CONFIG, MANIFEST, storage, **options)


def named(storage: Path) -> Path:
    return storage / f"spots-{identity(SOURCE, CONFIG, MANIFEST)}"


def test_a_run_of_other_code_is_named_with_what_changed_and_trained_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = older_run(tmp_path)
    for _ in range(3):
        assert lookup(tmp_path).folder == named(tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"{older.folder.name} has these settings and images, but nn/optim.py changed since it was "
        "trained, so it is trained anew; --reuse takes it as it is.\n"
    )


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_run_of_other_code_that_ended_early_is_named_before_its_training_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    older = older_run(tmp_path, state=state)
    (older.folder / "checkpoints").mkdir()
    for reuse in (False, True):
        assert lookup(tmp_path, reuse=reuse).folder == named(tmp_path)
    assert capsys.readouterr().err == (
        f"{older.folder.name} has these settings and images, but nn/optim.py changed since it was "
        "begun, so it is trained anew; it is not at its end, and goes on once they are as they were.\n"
    )
    whole = older_run(tmp_path, "1" * 12)  # before which it says nothing
    assert lookup(tmp_path, reuse=True).folder == whole.folder
    assert capsys.readouterr().err == ""


def test_reuse_takes_it_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = older_run(tmp_path)
    before = (older.folder / "run.json").read_text()
    assert lookup(tmp_path, reuse=True).folder == older.folder
    assert (older.folder / "run.json").read_text() == before
    assert capsys.readouterr().err == ""


def test_again_trains_anew_whatever_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older_run(tmp_path)
    for reuse in (False, True):
        assert lookup(tmp_path, again=True, reuse=reuse).folder == named(tmp_path)
    assert capsys.readouterr().err == ""


def test_many_changed_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = {f"data/gone{index}.py": "f" * 12 for index in range(6)}
    older_run(tmp_path, changes=gone | {"task": "f" * 12})
    lookup(tmp_path)
    first = ", ".join(sorted(gone)[:5])
    assert f"but {first} and 2 more changed since" in capsys.readouterr().err


def test_the_newest_of_several_is_taken(tmp_path: Path) -> None:
    for number, time in enumerate((3.0, 9.0, 5.0)):
        older_run(tmp_path, f"{number}" * 12, launches=(Launch(time=0.0), Launch(time=time)))
    assert lookup(tmp_path, reuse=True).folder.name == f"spots-{'1' * 12}"


@pytest.mark.parametrize(
    "fields", [{"state": "failed"}, {"state": "running"}, {"content": "e" * 12}, {"content": ""}]
)
def test_what_did_not_end_or_is_of_other_settings_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, str]
) -> None:
    older_run(tmp_path, **fields)
    assert lookup(tmp_path, reuse=True).folder == named(tmp_path)
    assert lookup(tmp_path).folder == named(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_run_is_taken_as_far_as_it_came(tmp_path: Path) -> None:
    """Where more of it is wanted, other code would go on with it."""
    older = older_run(tmp_path, stage="test")
    for stage, is_taken in (("val", True), ("test", True), ("bundle", False)):
        run = lookup(tmp_path, reuse=True, stage=stage)
        assert run.folder == (older.folder if is_taken else named(tmp_path))


def test_a_damaged_record_of_another_run_stands_in_nobodys_way(tmp_path: Path) -> None:
    older = older_run(tmp_path)
    for number, text in enumerate(("{", '{"schema": 99}', '{"schema": 1, "state": 3}')):
        folder = tmp_path / f"spots-{number + 1:012d}"
        folder.mkdir()
        (folder / "run.json").write_text(text)
    assert lookup(tmp_path, reuse=True).folder == older.folder


def test_a_run_of_this_code_comes_before_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older_run(tmp_path)
    ending = named(tmp_path).name.removeprefix("spots-")
    current = older_run(tmp_path, ending)
    for reuse in (False, True):
        assert lookup(tmp_path, reuse=reuse).folder == current.folder
    assert lookup(tmp_path, again=True).folder == named(tmp_path).with_name(
        f"{named(tmp_path).name}-2"
    )
    for number in (2, 10):  # the tenth attempt is newer than the second
        (tmp_path / f"{named(tmp_path).name}-{number}").mkdir()
    assert lookup(tmp_path).folder.name.endswith("-10")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("copy", ["{}-backup", "{}.old", "copy of {}", "{} (1)", "{}-20261128"])
def test_a_copy_of_a_runs_folder_disturbs_nothing(tmp_path: Path, copy: str) -> None:
    ending = named(tmp_path).name.removeprefix("spots-")
    current, older = older_run(tmp_path, ending), older_run(tmp_path)
    for run in (current, older):
        shutil.copytree(run.folder, tmp_path / copy.format(run.folder.name))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "spots-empty").mkdir()
    assert lookup(tmp_path).folder == current.folder
    assert lookup(tmp_path, again=True).folder.name == f"{current.folder.name}-2"
    shutil.rmtree(current.folder)
    assert lookup(tmp_path, reuse=True).folder == older.folder
    shutil.rmtree(older.folder)
    assert lookup(tmp_path, reuse=True).folder == named(tmp_path)


def test_another_attempt_never_takes_a_number_that_is_there(tmp_path: Path) -> None:
    for number in ("", "-2", "-5"):
        (tmp_path / f"{named(tmp_path).name}{number}").mkdir()
    (tmp_path / f"{named(tmp_path).name}-2").rmdir()
    assert lookup(tmp_path, again=True).folder.name.endswith("-6")
