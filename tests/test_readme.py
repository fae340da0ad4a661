"""The commands and code of the README and its pages are run, as a new user would run them."""

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

from assay.bundle.bundle import Bundle
from assay.experiment.options import parse, parse_with
from assay.sweep.comparison import ComparisonLaunch
from assay.sweep.generalize import FoldLaunch, plan_folds
from assay.sweep.search import SearchLaunch
from assay.train.source import TaskSource, load_task

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("tasks/*.md")),
    ROOT / "sweeps" / "README.md",
    *(ROOT / "cluster" / f"{name}.md" for name in ("faults", "accelerator")),
    *sorted(ROOT.glob("platform/assay/*/README.md")),
]


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for code in blocks for line in code.strip().splitlines()]


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands_of(page)))


def test_platform_is_no_package_and_shadows_nothing() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
    code = "import platform, uuid; print(platform.system())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "Linux" or found.returncode == 0
    names = {p.stem for folder in ("tasks", "sweeps") for p in (ROOT / folder).glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


def test_the_first_commands_are_the_two_that_are_promised() -> None:
    assert COMMANDS[:2] == ["pip install uv && uv run tasks/fingerprint.py", "uv run pytest"]


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("cluster/*.md"))], ids=str)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, part = target.partition("#")
        if "://" not in path:
            assert (page.parent / path).exists(), target
            assert not part or part in headings, target


def test_the_house_has_every_floor_from_the_top_down() -> None:
    [house] = re.findall(r"## The house\n\n```\n(.*?)```", TEXT, re.DOTALL)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floors = project["tool"]["importlinter"]["contracts"][0]["layers"]
    lines = [line[:26].replace("/", " ").split() for line in house.splitlines()]
    drawn = [name for line in lines for name in line if name not in ("tasks", "sweeps")]
    depth = {
        name.removeprefix("assay."): number
        for number, floor in enumerate(floors)
        for name in floor.split(" | ")
    }
    assert sorted(drawn) == sorted(depth)
    depths = [depth[name] for name in drawn]
    assert depths == sorted(depths)


def test_every_task_has_its_page_and_the_readme_names_each() -> None:
    named = set(re.findall(r"\]\(((?:tasks|sweeps|cluster|platform)/[^)#]+\.md)\)", TEXT))
    assert named == {str(page.relative_to(ROOT)) for page in PAGES[1:]} | {"cluster/README.md"}
    told = {word for page in PAGES for c in commands_of(page) for word in c.split()}
    assert {f"tasks/{path.name}" for path in ROOT.glob("tasks/*.py")} <= told


@pytest.mark.parametrize("command", [c for c in COMMANDS if "tasks/" in c and "sweeps/" not in c])
def test_every_command_parses(command: str) -> None:
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.startswith("tasks/"))
    task = load_task(TaskSource.read(ROOT / words[at]))
    config, resources, _ = parse(task, words[at + 1 :])
    is_judged_alone = "--train.epochs 0" in command
    # tasks/anomaly.py learns in one pass
    assert config.train.epochs > 0 or is_judged_alone or "tasks/anomaly.py" in command
    assert resources.workers == (8 if "--workers 8" in command else 1)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "sweeps/" in c])
def test_every_sweep_parses(command: str) -> None:
    script, *words = shlex.split(command)[1:]
    assert (ROOT / script).exists()
    kinds = {"design_generalization": FoldLaunch, "comparison": ComparisonLaunch}
    kind = kinds.get(Path(script).stem, SearchLaunch)
    named = words[words.index("--task") + 1] if "--task" in words else "tasks/fingerprint.py"
    task = load_task(TaskSource.read(ROOT / named))
    _, resources, launch = parse_with(task, words, kind())
    assert resources.workers == 1
    assert launch.task == Path(named)


def test_the_sweep_over_ones_own_parts_finds_its_folds(tmp_path: Path) -> None:
    """On the layout that the README shows, each design is left out in turn."""
    layout = re.search(r"```\nparts/.*?```", TEXT, re.DOTALL)
    assert layout is not None
    names = re.findall(r"parts/[^/]+/[^/]+/(\S+?)\.\w+", layout[0])
    assert len(names) == 2
    folders = itertools.product(("A", "B"), ("Connector", "Knob", "Gear"), names)
    for number, (label, design, name) in enumerate(folders):
        path = tmp_path / "parts" / label / design / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8), number, np.uint8))
    [command] = [c for c in COMMANDS if "sweeps/" in c and "--data.root parts/" in c]
    words = command.replace("parts/ ", f"{tmp_path}/parts ").split()[2:]
    task = load_task(TaskSource.read(ROOT / "tasks" / "fingerprint.py"))
    # what the script itself asks for where nothing else is said
    script = FoldLaunch(preset="designs", train_on=(1, 3, 6), choices=2)
    config, _, launch = parse_with(task, words, script)
    manifest = task.manifest(config, tmp_path)
    folds = plan_folds({"dps": [config]}, manifest, launch)
    assert [fold.tested for fold in folds] == [("Knob",), ("Gear",), ("Connector",)]


def test_the_first_command_runs_and_runs_again(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tasks" / "fingerprint.py"), "--preset", "smoke"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert "test_unseen" in first.stdout
    assert "fingerprint - random" in first.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.stdout == first.stdout
    assert "Traceback" not in first.stderr + again.stderr


def test_the_sixth_task_is_one_file(tmp_path: Path) -> None:
    code = next(
        code for kind, code in BLOCKS if kind == "python" and "class Linear(Classification)" in code
    )
    script = tmp_path / "linear.py"
    script.write_text(code)
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        for i in range(8):
            path = tmp_path / "parts" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # a light or dark spot on the same ground
            picture = rng.integers(110, 140, (64, 64, 3), dtype=np.uint8)
            picture[16:32, 16:32] = level
            cv2.imwrite(str(path), picture)
    command = [sys.executable, str(script), "--data.root", "parts", "--workers", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"linear +accuracy +1\.000 ", done.stdout)
    run = next((tmp_path / "runs").glob("linear-*"))
    snippet = next(code for kind, code in BLOCKS if kind == "python" and "import Bundle" in code)
    names = {"bundle": str(run / "bundle"), "image": str(tmp_path / "parts" / "dark" / "0.png")}
    exec(compile(snippet, "README.md", "exec"), names)
    assert Bundle(run / "bundle").predict(Path(names["image"])).label == "dark"
    snippet = next(code for kind, code in BLOCKS if kind == "python" and "import load" in code)
    names = {"run": str(run), "image": str(tmp_path / "parts" / "light" / "0.png")}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["answer"].label == "light"
