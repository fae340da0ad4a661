"""Sweeps end to end, on the README's task and one local Ray: what runs, what is chosen, what is left.

Starting Ray and importing torch in two trial processes is most of the time.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from assay.cli import console
from assay.errors import ResourceError
from assay.experiment import resources
from assay.experiment.resources import Resources, cpus_for_data
from assay.files import write_json
from assay.runs.folder import Run
from assay.runs.lease import LEASE, Holder
from assay.runs.results import read_result
from assay.sweep import comparison, generalize, search, tune
from assay.sweep.comparison import ComparisonLaunch
from assay.sweep.generalize import FoldLaunch
from assay.sweep.search import SearchLaunch
from assay.sweep.tune import fit_in

README = (Path(__file__).parents[2] / "README.md").read_text()
CODE = next(c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class Linear" in c)
DYING = """
import os, signal
from pathlib import Path


def _dying(forward):
    def once(self, *args, **kwargs):
        mark = Path(os.environ["ASSAY_TEST_MARK"])
        Path(f"{mark}-trained-{os.getpid()}").touch()
        if self.config.train.seed == 7 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        computed = forward(self, *args, **kwargs)
        if self.config.optim.lr == 10.0:  # as a rate that is far too high comes to
            computed["loss"] = computed["loss"] * float("inf")
        return computed

    return once


def _telling(prepare):
    def prepared(cls, *args):
        Path(f"{os.environ['ASSAY_TEST_MARK']}-prepared-{os.getpid()}").touch()
        return prepare(*args)

    return classmethod(prepared)


Linear.forward = _dying(Linear.forward)
Linear.prepare = _telling(Linear.prepare)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module", autouse=True)
def cluster(root: Path) -> Iterator[None]:
    os.environ["ASSAY_TEST_MARK"] = str(root / "died")
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def task(root: Path) -> Path:
    script = root / "linear.py"
    script.write_text(
        CODE.replace('if __name__ == "__main__"', DYING + '\n\nif __name__ == "__main__"')
    )
    return script


@pytest.fixture(scope="module")
def parts(root: Path) -> Path:
    """Paint a dark or a light spot; on the design "odd" they change places."""
    rng = np.random.default_rng(0)
    for design in ("cube", "ring", "odd"):
        for label, level in (("dark", 60), ("light", 190)):
            for i in range(8):
                path = root / "parts" / label / design / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = rng.integers(110, 140, (64, 64, 3), dtype=np.uint8)
                picture[16:32, 16:32] = 250 - level if design == "odd" else level
                cv2.imwrite(str(path), picture)
    return root / "parts"


def arguments(task: Path, parts: Path, storage: Path, more: str) -> list[str]:
    folders = f"--task {task} --storage {storage} --data.root {parts}"
    data = "--data.patterns {label}/{design}/{name} --data.domains design --data.group label design name"
    train = "--optim.schedule constant --train.batch-size 4 --retries 1"
    return f"{folders} {data} {train} {more}".split()


def code_of(main: object, defaults: object, options: list[str]) -> int:
    try:
        main(defaults, options)  # type: ignore[operator]
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def looked_at(storage: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in storage.glob("linear-*/metrics.jsonl")}


def test_folds_find_the_design_that_fails_and_run_only_what_is_missing(
    task: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(task, parts, tmp_path, "--train.epochs 6 --fold-column design")
    options += ["--optim.lr", "0.003", "--train-on", "1", "2"]
    assert code_of(generalize.main, FoldLaunch(), options) == 0
    printed = capsys.readouterr()
    assert "6 trainings (3 on 1, 3 on 2), 0 of them there already" in printed.err
    folder = next((tmp_path / "sweeps").iterdir())
    record = json.loads((folder / "sweep.json").read_text())
    best = record["standings"][0]
    # trained on the others it answers odd just the other way
    assert record["by_value"]["linear"]["odd"]["value"] == best["lowest"]["value"] == 0.0
    # from one design: cube and ring answer each other, odd answers neither and neither answers odd
    assert record["by_size"]["linear"]["1"]["value"] == pytest.approx(2 / 6)
    page = (folder / "report.html").read_text()
    assert "worst design never seen" in page
    assert "linear, on val" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    table = pq.read_table(folder / "trials.parquet")
    assert table["state"].to_pylist() == ["finished"] * 6
    before = looked_at(tmp_path)
    assert len(before) == 6
    lost = next(tmp_path.glob("linear-*"))
    shutil.rmtree(lost)
    assert code_of(generalize.main, FoldLaunch(), options) == 0
    assert "5 of them there already" in capsys.readouterr().err
    after = looked_at(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {lost.name}


def test_a_comparison_finds_the_better_setting_and_runs_only_what_is_missing(
    task: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(task, parts, tmp_path, "--train.epochs 4 --seeds 2 --split.test 0.3")
    options += ["--variants", "idle: optim.lr=1e-7", "learns: optim.lr=3e-3"]
    assert code_of(comparison.main, ComparisonLaunch(), options) == 0
    printed = capsys.readouterr()
    assert "4 trainings, 0 of them there already" in printed.err
    folder = next((tmp_path / "sweeps").iterdir())
    record = json.loads((folder / "sweep.json").read_text())
    assert [s["setting"] for s in record["standings"]] == ["learns", "idle"]
    by_seed = [s["tests"]["test"]["by_seed"] for s in record["standings"]]
    shown = [scores[str(seed)] for seed in (0, 1) for scores in reversed(by_seed)]
    results = [read_result(tmp_path / name) for name in record["trials"]]
    assert shown == pytest.approx([result.sets["test"].main[1].value for result in results])
    before = looked_at(tmp_path)
    assert len(before) == 4
    shutil.rmtree(tmp_path / record["trials"][0])
    options += ["--latency"]
    assert code_of(comparison.main, ComparisonLaunch(), options) == 0
    assert "4 trainings, 0 of them there already" in capsys.readouterr().err  # none had shipped
    after = looked_at(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {record["trials"][0]}
    record = json.loads((folder / "sweep.json").read_text())
    assert all(s["costs"]["latency_ms"] > 0 for s in record["standings"])
    assert "latency (ms)" in (folder / "report.html").read_text()
    assert code_of(comparison.main, ComparisonLaunch(), options) == 0
    assert "4 trainings, 4 of them there already" in capsys.readouterr().err


def test_val_selects_test_is_scored_once_and_more_trials_go_on(
    task: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(task, parts, tmp_path, "--train.epochs 4 --eta 2 --sampling grid")
    options += ["--space", "optim.lr=1e-6|1e-2|1e-5|10", "optim.weight_decay=0.0"]
    assert code_of(search.main, SearchLaunch(), [*options, "--trials", "2"]) == 0
    assert len(before := looked_at(tmp_path)) == 2
    assert code_of(search.main, SearchLaunch(), [*options, "--trials", "9"]) == 1  # one failed
    capsys.readouterr()
    after = looked_at(tmp_path)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    runs = {f.name: Run(f) for f in tmp_path.glob("linear-*")}
    by_rate = {}
    for run in runs.values():
        config = json.loads((run.folder / "config.json").read_text())
        by_rate[config["optim"]["lr"]] = run
    failed = by_rate[10.0]
    assert failed.state == "failed"
    assert "not finite" in failed.record.reason
    folder = next((tmp_path / "sweeps").iterdir())
    record = json.loads((folder / "sweep.json").read_text())
    assert runs[record["selected"]] == by_rate[1e-2]
    assert record["tried"] == 4
    line = next(t for t in record["trials"] if t["state"] == "failed")
    assert line["score"] is None
    for run in runs.values():
        path = run.folder / "result.json"
        sets = json.loads(path.read_text())["sets"] if path.exists() else {}
        assert any(name.startswith("test") for name in sets) == (run == by_rate[1e-2])
    result = json.loads((by_rate[1e-2].folder / "result.json").read_text())
    assert result["tried"] == 4
    assert (by_rate[1e-2].folder / "bundle" / "bundle.json").exists()
    assert (folder / "optuna.log").exists()
    page = (folder / "report.html").read_text()
    assert '<td class="l words">failed: The loss' in page
    assert '<th class="r">accuracy</th>' in page
    console.runs(str(tmp_path))
    assert "not finite" in capsys.readouterr().out


def test_early_stopping_stops_and_a_killed_trial_goes_on(
    task: Path, parts: Path, tmp_path: Path, root: Path
) -> None:
    options = arguments(task, parts, tmp_path, "--train.epochs 8 --train.seed 7 --eta 2 --trials 6")
    options += ["--space", "optim.lr=1e-7..1e-2,log", "optim.weight_decay=0.0"]
    assert code_of(search.main, SearchLaunch(), options) == 0
    assert (root / "died").exists()
    states = [Run(f).state for f in tmp_path.glob("linear-*")]
    assert set(states) == {"finished", "stopped"}
    record = json.loads(next((tmp_path / "sweeps").glob("*/sweep.json")).read_text())
    assert record["tried"] == 6
    assert record["budget"]["spent"] < record["budget"]["full"] == 48
    stopped = next(t for t in record["trials"] if t["state"] == "stopped")
    assert not (tmp_path / stopped["run"] / "predictions.parquet").exists()


def test_what_does_not_fit_is_refused_with_figures_before_it_hangs() -> None:
    assert fit_in(Resources(), 1.0, 0) == ({"CPU": 1.0}, 2)
    with pytest.raises(ResourceError, match=r"3 CPUs.*has 2 .*--parallel 2"):
        fit_in(Resources(), 1.0, 3)
    with pytest.raises(ResourceError, match=r"3\.1 CPUs.*has 2 .*lower --workers"):
        fit_in(Resources(workers=2), 1.0, 1)
    with pytest.raises(ResourceError, match=r"Data need 2 GPUs and 2 CPUs.*has 1 GPUs and 2 CPUs"):
        fit_in(Resources(gpus=True), 2.0, 1)
    with pytest.raises(ResourceError, match=r"1 GPUs and 4 CPUs.*--parallel 1"):
        fit_in(Resources(gpus=True), 0.5, 2)  # each is fed on a CPU of its own


def test_trials_at_once_leave_each_other_the_cpus_that_feed_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "up", lambda: {"CPU": 64.0})
    assert cpus_for_data(1.0, workers=2, trials=1) is None
    assert cpus_for_data(1.0, workers=1, trials=4) == 15.0
    assert cpus_for_data(2.0, workers=2, trials=4) == 6.0
    assert cpus_for_data(1.0, workers=1, trials=64) == 1.0  # with less nothing is prepared


def test_a_trial_that_another_process_trains_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "linear-1")
    other = Holder("another-host", 1)
    run.folder.mkdir()
    write_json(run.folder / LEASE, vars(other))
    looks = iter([None, None, (run.folder / LEASE).unlink])

    def sleep(seconds: float) -> None:
        assert seconds == tune.AWAIT_S
        (next(looks) or (lambda: None))()

    monkeypatch.setattr(tune.time, "sleep", sleep)
    tune._await_writer(run, "lr 0.1")
    assert not list(looks)
    assert capsys.readouterr().err.count("another process trains") == 1
    with run.lease():  # its own lease is no other's
        tune._await_writer(run, "lr 0.1")


def processes(root: Path, what: str) -> set[str]:
    return {path.name.rsplit("-", 1)[1] for path in root.glob(f"died-{what}-*")}


def test_a_trial_with_a_gpu_is_fed_by_ray_data_and_learns_the_same(
    task: Path, parts: Path, tmp_path: Path, root: Path
) -> None:
    learnt = []
    for storage, gpus in (("without", ""), ("with", "--gpus --device cpu")):
        for mark in root.glob("died-*"):
            mark.unlink()
        words = f"--train.epochs 2 --parallel 1 --split.test 0.3 --seeds 1 {gpus}"
        options = arguments(task, parts, tmp_path / storage, words)
        options += ["--settings", "optim.lr=1e-3|3e-3"]
        assert code_of(comparison.main, ComparisonLaunch(), options) == 0
        trained, prepared = processes(root, "trained"), processes(root, "prepared")
        assert trained.isdisjoint(prepared) == bool(gpus)
        looks = (tmp_path / storage).glob("linear-*/predictions.parquet")
        learnt.append({path.parent.name: pq.read_table(path) for path in looks})
    assert len(learnt[0]) == 2
    assert learnt[0] == learnt[1]


@pytest.mark.parametrize(
    ("main", "defaults", "wrong", "phrase"),
    [
        (search.main, SearchLaunch(), "--space split.seed=0..3", "not searched"),
        (search.main, SearchLaunch(), "--space optim.lr=1 optim.weight_decay=0", "more than one"),
        (search.main, SearchLaunch(), "--space optim.lr=1e-4:1e-2", "has '1e-4:1e-2' for optim.lr"),
        (search.main, SearchLaunch(), "--workers 0", "need Ray"),
        (search.main, SearchLaunch(), "--workers 1..2 --gpus", "is a range"),
        (search.main, SearchLaunch(), "--grace 99", "grace"),
        (search.main, SearchLaunch(), "--warm-start nowhere", "nowhere"),
        (generalize.main, FoldLaunch(), "--fold-column printer", "printer"),
        (generalize.main, FoldLaunch(), "--train-on 3", "1 to 2"),
        (
            generalize.main,
            FoldLaunch(),
            "--train-on 2 --decide.positive odd",
            "None of 3 trainings came to its end (decide names the class 'odd'",
        ),
        (
            generalize.main,
            FoldLaunch(),
            "--train-on 3 --split.unseen odd",
            "--split.unseen has no effect: the folds hold out values of design",
        ),
        (
            generalize.main,
            FoldLaunch(),
            "--choices 2 --leave-out 3",
            "--choices has no effect: --leave-out holds out every choice",
        ),
        (generalize.main, FoldLaunch(), "--settings split.val=0.1|0.2", "not searched"),
        (comparison.main, ComparisonLaunch(), "", "one setting (linear)"),
        (comparison.main, ComparisonLaunch(), "--again", "--again has no effect"),
        (comparison.main, ComparisonLaunch(), "--train-shares 0.5 1.5", "at most 1"),
        (comparison.main, ComparisonLaunch(), "--settings optim.rate=1|2", "no setting"),
        (
            comparison.main,
            ComparisonLaunch(),
            "--settings optim.lr=1e-3|1e-3",
            "value 0.001 twice",
        ),
        (
            comparison.main,
            ComparisonLaunch(),
            "--variants a:optim.lr=1 b:optim.lr=1",
            "compute the same",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    main: object,
    defaults: object,
    wrong: str,
    phrase: str,
    task: Path,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = arguments(task, parts, tmp_path, wrong)
    assert code_of(main, defaults, options) == 2
    out, err = capsys.readouterr()
    assert phrase in err
    assert "Traceback" not in err
    assert "_run_trial" not in out  # Tune's own lines
