"""The suite of an accelerator: run where there is one, silent in a sentence where there is none, and tried on a CPU."""

import ast
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

SUITE = Path(__file__).with_name("suite.py")
sys.path.insert(0, str(SUITE.parent))
import suite  # noqa: E402
from trial import Trained, Utilisation  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_checks_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SUITE)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SUITE), run_name="__main__")
    assert ended.value.code == 0
    assert "No CUDA device" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_it_passes() -> None:
    done = subprocess.run([sys.executable, SUITE], capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cpu_tries_it() -> None:
    """Two processes included; of the tasks one."""
    command = [sys.executable, str(SUITE), "--device", "cpu", "--tasks", "distill"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"two processes .* ok: gradients, DDP .*, FSDP2", done.stdout)
    assert re.search(r"^distill +fp32 +\d+\.\d", done.stdout, re.MULTILINE)
    assert re.search(r"^distill +bf16 .* (9[5-9]|100)%$", done.stdout, re.MULTILINE)


def trained(update_s: float, losses: tuple[float, ...] = (2.0, 1.5, 1.0, 0.5)) -> Trained:
    line = {"step_s": 1.0, "forward_s": 0.5, "update_s": update_s}
    return Trained(None, [line | {"loss": loss} for loss in losses], [0.0])


def fails(error: Exception) -> Trained:
    raise error


def test_what_failed_stays_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report = suite.Report(CPU)
    report.measure("good", "fp32", lambda: trained(0.46))
    report.measure("unexplained", "fp32", lambda: trained(0.4))
    report.measure("infinite", "fp32", lambda: trained(0.46, (1.0, np.inf)))
    report.measure("broken", "fp32", partial(fails, ZeroDivisionError()))
    report.measure("missing", "fp32", partial(fails, ModuleNotFoundError(name="none")))
    suite.print_table(report.rows)
    names = ["good", "unexplained", "infinite", "broken", "missing"]
    header, *lines = capsys.readouterr().out.splitlines()[-6:]
    assert header.split()[-1] == "explained"
    assert [line.split()[0] for line in lines] == names
    assert ["FAILED" in line for line in lines] == [False, True, True, True, False]
    assert lines[1].split()[-2:] == ["90%", "FAILED"]
    assert lines[4].endswith("left out")
    assert report.failed == ["unexplained: fp32", "infinite: fp32", "broken: fp32"]


def test_utilisation_is_sampled_while_it_trains_and_says_why_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = Utilisation(torch.device("cuda"))
    used.samples = [(0.0, 0.0), (1.0, 60.0), (2.0, 80.0), (3.0, 0.0)]
    assert used.mean(0.5, 2.5) == "70 %"
    assert used.mean(5.0, 6.0) == "too short"
    assert Utilisation(CPU).mean(0.0, 1.0) == "-"

    def missing(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    used = Utilisation(torch.device("cuda"))
    monkeypatch.setattr("trial.SAMPLE_S", 0.001)
    with used.sampled():
        while not used.why_not:
            pass
    assert used.mean(0.0, 1.0) == "not installed"


LOADED = """
import sys, importlib.abc
class WithoutRay(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutRay())
sys.path.insert(0, sys.argv[1])
import suite, trial
trial.importlib.util.find_spec = lambda name: None
trial.prepare_imports()
from assay.train.source import TaskSource, load_task
for name in suite.TASKS:
    load_task(TaskSource.read(trial.ROOT / "tasks" / f"{name}.py"))
import assay.bundle.seal, assay.train.loop, assay.train.recipes
files = (getattr(module, "__file__", "") for name, module in sys.modules.items() if name.startswith("assay"))
print(*(file for file in files if file and not file.startswith("<")), sep="\\n")
"""


def test_every_package_that_it_imports_is_named_and_ray_is_none_of_them() -> None:
    command = [sys.executable, "-c", LOADED, str(SUITE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set()
    for file in done.stdout.split():
        for node in ast.walk(ast.parse(Path(file).read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            imported |= {name.partition(".")[0] for name in names}
    ours = imported - sys.stdlib_module_names - {"assay"}
    needed = (suite.__doc__ or "").partition("Needs ")[2].partition("; a check")[0]
    named = set(re.findall(r"\w+", needed))
    assert ours - named == {"wandb"}  # where --track asks for it
    assert named - ours == {"and", "onnxscript"}  # which torch's exporter imports
