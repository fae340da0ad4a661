"""What a user of a task script meets: help, presets, replay, states, and sentences instead of tracebacks."""

import itertools
import json
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli import console
from assay.cli.task import main
from assay.errors import ConfigError, ResourceError, RunError
from assay.experiment.identity import identity
from assay.experiment.options import parse
from assay.experiment.places import storage_of
from assay.experiment.resources import Resources, worker_resources
from assay.runs.folder import Run
from assay.runs.record import SCHEMA
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
QUICK = shlex.split(
    "--preset smoke --workers 0 --train.epochs 1 --model.num-noise 10 --model.warmup-k 4 "
    "--patches.image-px 96 --patches.overview-px 32 --patches.patch-px 16"
)


def draw_folder(
    root: Path, groups: int = 5, classes: tuple[str, ...] = ("a", "b"), suffix: str = ".png"
) -> Path:
    """Noise images of two machines, two views per part, in the seed's layout."""
    rng = np.random.default_rng(0)
    for number, label in enumerate(classes):
        for part in range(groups):
            for view in (1, 2):
                path = (
                    root / label / "King" / f"Device_{number}_Print_{part:03d}_{view:03d}{suffix}"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                image = rng.integers(80, 200, (96, 96, 3), dtype=np.uint8)
                cv2.imwrite(str(path), image // (number + 1))
    return root


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "parts")


def run_script(
    capsys: pytest.CaptureFixture[str], storage: Path, *arguments: str, code: int = 0
) -> tuple[str, str]:
    """Run the task in this process; returns what it printed."""
    try:
        main(
            str(SCRIPT),
            [*QUICK, "--storage", str(storage), "--split.unseen-domain", "", *arguments],
        )
        found = 0
    except SystemExit as left:
        found = int(left.code or 0)
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run on a small folder, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    root = draw_folder(folder / "parts")
    main(
        str(SCRIPT),
        [
            *QUICK,
            "--storage",
            str(folder / "runs"),
            "--split.unseen-domain",
            "",
            "--data.root",
            str(root),
        ],
    )
    return root, folder / "runs"


def test_a_run_leaves_its_directory(finished: tuple[Path, Path]) -> None:
    _, storage = finished
    runs = sorted(storage.glob("fingerprint-*"))
    assert len(runs) == 2  # the method and its baseline
    for folder in runs:
        names = {p.name for p in folder.iterdir()}
        records = {"run.json", "config.json", "result.json", "metrics.jsonl", "report.html"}
        tables = {"split.parquet", "predictions.parquet"}
        assert records | tables | {"checkpoints", "best", "bundle", "task.py", "samples"} <= names
        assert "lease.json" not in names
        assert Run(folder).state == "finished"


def test_a_finished_run_is_recognised_and_not_trained_again(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, storage = finished
    before = {p: p.stat().st_mtime_ns for p in storage.glob("fingerprint-*/metrics.jsonl")}
    printed, _ = run_script(capsys, storage, "--data.root", str(root))
    assert "test: " in printed
    assert "fingerprint - random" in printed
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_other_settings_of_decide_judge_a_finished_run_again_and_train_nothing(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, found = finished
    storage = shutil.copytree(found, tmp_path / "runs")
    before = {p: p.stat().st_mtime_ns for p in storage.glob("fingerprint-*/metrics.jsonl")}
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    arguments = ("--data.root", str(root), "--decide.coverage", "0.6")
    run_script(capsys, storage, *arguments)
    result = json.loads((method / "result.json").read_text())
    assert [s["decide"]["coverage"] for s in result["scorings"] if not s["graph"]] == [0.9, 0.6]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    card = json.loads((method / "bundle" / "bundle.json").read_text())
    assert card["decision"]["coverage"] == 0.6
    assert "60" in (method / "report.html").read_text()
    _, errors = run_script(capsys, storage, *arguments)  # now it is known
    assert json.loads((method / "result.json").read_text()) == result
    assert "scoring 2 of the test sets" in errors


def test_the_report_is_made_again_from_the_directory_alone(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    _, storage = finished
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    alone = shutil.copytree(method, tmp_path / method.name)
    expected = (alone / "report.html").read_text()
    (alone / "report.html").unlink()
    console.main(["report", str(alone)])
    assert (alone / "report.html").read_text() == expected
    assert "random" in expected
    assert len(expected) < 5_000_000


def test_a_run_begun_on_another_split_is_not_resumed(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An image that could not be read at the first launch, and now can, would move others."""
    root, found = finished
    storage = shutil.copytree(found, tmp_path / "runs")
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    table = pq.read_table(method / "split.parquet")
    pq.write_table(table.slice(1), method / "split.parquet")
    Run(method).note(state="stopped")
    _, errors = run_script(capsys, storage, "--data.root", str(root), code=2)
    assert "begun on another split (1 entries differ" in errors


def test_moved_data_and_more_workers_are_the_same_run(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    root, _ = finished
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    source = TaskSource.read(SCRIPT)
    task = load_task(source)
    names = []
    for folder, workers in ((root, "0"), (moved, "2")):
        arguments = [
            *QUICK,
            "--split.unseen-domain",
            "",
            "--data.root",
            str(folder),
            "--workers",
            workers,
        ]
        config, _, _ = parse(task, arguments)
        names.append(identity(source, config, task.manifest(config, tmp_path)))
    assert names[0] == names[1]


def test_what_is_computed_changes_the_identity(finished: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = finished
    source = TaskSource.read(SCRIPT)
    task = load_task(source)
    arguments = [*QUICK, "--split.unseen-domain", "", "--data.root", str(root)]
    config, _, _ = parse(task, arguments)
    manifest = task.manifest(config, tmp_path)
    first = identity(source, config, manifest)
    other, _, _ = parse(task, [*arguments, "--optim.lr", "0.5"])
    commented = TaskSource(source.name, source.code + b"\n# only a comment\n")
    changed = TaskSource(source.name, source.code + b"\nEXTRA = 1\n")
    assert identity(source, other, manifest) != first
    assert identity(commented, config, manifest) == first
    assert identity(changed, config, manifest) != first
    assert identity(source, config, manifest.take(range(len(manifest) - 1))) != first


def test_a_saved_config_replays_the_run(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, storage = finished
    for saved in sorted(storage.glob("fingerprint-*/config.json")):
        if json.loads(saved.read_text())["model"]["mode"] == "dps":
            main(str(SCRIPT), ["--config", str(saved), "--workers", "0", "--storage", str(storage)])
    printed = capsys.readouterr().out
    assert "fingerprint - random" in printed
    assert len(list(storage.glob("fingerprint-*"))) == 2


def test_again_makes_a_second_attempt(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    # what has no effect on the baseline is at its default
    baseline = ["--model.mode", "random", "--model.num-noise", "4", "--model.warmup", "0.5"]
    run_script(capsys, copy, "--data.root", str(root), *baseline, "--again")
    assert len(list(copy.glob("fingerprint-*-2"))) == 1


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(str(SCRIPT), ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--data.root",
        "--model.backbone",
        "--optim.lr",
        "--train.epochs",
        "--workers",
        "--strategy",
        "--preset",
        "--again",
        "--config",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.root", "/nowhere"], "does not exist"),
        (["--data.root", ""], "--data.root is empty"),
        (["--data.root=", "--workers", "0"], "--data.root is empty"),
        (["--store", " "], "--store is empty"),
        (["--preset", "nope"], "allowed: demo"),
        (["--preset", ""], "--preset is ''; allowed: demo"),
        (["--storage", "s3:/bucket"], "--storage is s3:/bucket; allowed"),
        (
            ["--data.group", "a", "--workers", "0", "--data.group", "b"],
            "--data.group is given twice",
        ),
        (["--model.backbone", "resnet1"], "resnet1"),
        (["--model.k", "10000"], "grid"),
        (["--model.weights", "/no/such.safetensors"], "such.safetensors"),
        (["--train.precision", "fp16"], "CUDA"),
        (["--device", "mps"], "Apple"),
        (["--config", "/nowhere.json"], "both name all settings"),
        (["--split.unseen-domain", "colour"], "colour"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), *arguments, code=2)
    sentence = err.strip().splitlines()[-1]
    assert "Error: " in sentence
    assert expected in sentence
    assert "Traceback" not in err


def test_a_config_that_is_not_there_is_said() -> None:
    task = load_task(TaskSource.read(SCRIPT))
    with pytest.raises(ConfigError, match=r"nowhere\.json is missing or damaged"):
        parse(task, ["--config", "/nowhere.json"])


def test_the_last_of_two_numbers_counts_and_none_of_two_lists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = load_task(TaskSource.read(SCRIPT))
    assert parse(task, ["--train.epochs", "3", "--train.epochs=4"])[0].train.epochs == 4
    said = "--train.epochs is given twice, and its last value, 4, counts."
    assert said in capsys.readouterr().err.splitlines()
    assert not parse(task, ["--gpus", "--no-gpus"])[1].gpus
    assert "--gpus is given twice, and its last value, False" in capsys.readouterr().err
    for twice in (["--track", "wandb", "--track=tensorboard"], ["--data.keep", "a", "--data.keep"]):
        with pytest.raises(ConfigError, match="is given twice, and the second"):
            parse(task, twice)


@pytest.mark.parametrize(
    ("script", "words", "names"),
    [
        (
            "anomaly.py",
            ["--optim.lr", "1e-2", "--train.patience", "3"],
            ("optim.lr", "train.patience"),
        ),
        ("pretrain.py", ["--train.epochs", "0", "--optim.warmup", "0.2"], ("optim.warmup",)),
        (
            "pretrain.py",
            ["--supervised", "--loss.dino", "2", "--teacher.warmup", "0.5"],
            ("loss.dino", "teacher.warmup"),
        ),
        ("casting.py", ["--split.num-unseen", "2"], ("split.num-unseen",)),
        ("casting.py", ["--explain.masks", "{name}.png"], ("explain.masks",)),
        ("segment.py", ["--layers.channels", "triplet"], ("layers.channels",)),
        ("segment.py", ["--data.root", ".", "--bed.seed", "3"], ("bed.seed",)),
        ("distill.py", ["--data.root", ".", "--units.contrast", "2"], ("units.contrast",)),
    ],
)
def test_what_nothing_follows_is_said(
    capsys: pytest.CaptureFixture[str], script: str, words: list[str], names: tuple[str, ...]
) -> None:
    task = load_task(TaskSource.read(SCRIPT.with_name(script)))
    parse(task, ["--preset", "smoke", *words])
    said = capsys.readouterr().err
    for name in names:
        assert f"--{name} has no effect: " in said


def test_a_mistyped_option_exits_with_2() -> None:
    with pytest.raises(SystemExit) as left:
        main(str(SCRIPT), ["--model.backbon", "x"])
    assert left.value.code == 2


def test_images_may_be_of_any_size_up_to_a_limit(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    files = sorted(parts.rglob("*.png"))
    shapes = [(30, 300), (300, 30), (700, 500), (97, 96), (1, 1), (2000, 8)]
    for file, shape in zip(files[1:], shapes, strict=False):
        cv2.imwrite(str(file), rng.integers(40, 200, (*shape, 3), dtype=np.uint8))
    head = struct.pack(">II5B", 20_001, 20_000, 8, 2, 0, 0, 0)
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in body
    ]
    files[0].write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    given = ["--data.root", str(parts)]
    _, err = run_script(capsys, tmp_path / "runs", *given, code=2)
    assert "20001 x 20000 = 400020000 pixels, the limit is 400000000" in err
    _, err = run_script(capsys, tmp_path / "runs", *given, "--data.on-error", "skip")
    assert "1 of 20 images are quarantined" in err
    found = list((tmp_path / "runs").glob("fingerprint-*/predictions.parquet"))
    assert len(found) == 2  # chosen and random patches
    for path in found:
        assert np.isfinite(pq.read_table(path)["logits"].to_pylist()).all()


def test_a_truncated_image_is_named_and_can_be_skipped(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = parts / "a" / "King" / "Device_0_Print_002_001.png"
    victim.write_bytes(victim.read_bytes()[:2000])
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), code=2)
    assert "Device_0_Print_002_001.png" in err
    assert "--data.on-error skip" in err
    _, err = run_script(
        capsys, tmp_path / "runs", "--data.root", str(parts), "--data.on-error", "skip"
    )
    assert "1 of 20 images are quarantined" in err
    record = next(
        r
        for f in (tmp_path / "runs").glob("fingerprint-*")
        if (r := Run(f).record).state == "finished"
    )
    assert len(record.quarantined) == 1
    assert "Device_0_Print_002_001.png" in record.quarantined[0].reason


def test_too_few_groups_is_said_with_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_folder(tmp_path / "few", groups=2)
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(root), code=2)
    assert "SplitError" in err


def test_a_run_of_a_newer_schema_is_refused(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    for record in copy.glob("fingerprint-*/run.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": SCHEMA + 1}))
    _, err = run_script(capsys, copy, "--data.root", str(root), code=2)
    assert "newer Assay" in err


def test_a_damaged_file_of_a_finished_run_costs_nothing_and_is_made_again_or_named(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    for comparison in copy.glob("fingerprint-*/comparison.json"):
        before = comparison.read_bytes()
        for content in (before[: len(before) // 2], b"{}"):
            comparison.write_bytes(content)
            run_script(capsys, copy, "--data.root", str(root))
            assert comparison.read_bytes() == before
    for record in copy.glob("fingerprint-*/run.json"):
        before = record.read_bytes()
        for content in (before[: len(before) // 2], b"{}"):
            record.write_bytes(content)
            _, err = run_script(capsys, copy, "--data.root", str(root), code=2)
            assert "run.json is" in err
            assert len(err.splitlines()) == 1
        record.write_bytes(before)


def test_a_run_in_use_is_refused_and_a_dead_holder_is_not(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    import socket

    lease = run.folder / "lease.json"
    lease.write_text(json.dumps({"host": socket.gethostname(), "pid": holder.pid}))
    with pytest.raises(RunError, match="being written"), run.lease():
        pass
    holder.kill()
    holder.wait()
    with run.lease():
        assert lease.exists()
    assert not lease.exists()


def test_predictions_table_is_complete(finished: tuple[Path, Path]) -> None:
    _, storage = finished
    for folder in storage.glob("fingerprint-*"):
        table = pq.read_table(folder / "predictions.parquet")
        split = pq.read_table(folder / "split.parquet")
        judged = [r["id"] for r in split.to_pylist() if r["split"] in ("val", "test")]
        assert sorted(table["id"].to_pylist()) == sorted(judged)
        logits = np.array(table["logits"].to_pylist())
        attn = np.array(table["attn"].to_pylist())
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(attn.sum(1), 1, atol=1e-5)
        assert pa.types.is_string(table["domain.design"].type)


def test_relative_storage_is_refused_in_an_uploaded_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="outlives the job"):
        storage_of(Resources(storage="runs"))
    assert storage_of(Resources()) == tmp_path / "home" / "assay" / "runs"
    monkeypatch.chdir(tmp_path)
    assert storage_of(Resources()) == tmp_path / "runs"


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        (Resources(workers=1), 2, 0, {"CPU": 1.0}),
        (Resources(workers=2), 2, 0, {"CPU": 0.5}),
        (Resources(workers=4), 64, 4, {"CPU": 1.0}),
        (Resources(workers=4, gpus=True), 64, 4, {"CPU": 1.0, "GPU": 1.0}),
        (Resources(workers=3), 2, 0, None),
        (Resources(workers=1), 1, 0, None),
        (Resources(workers=2, gpus=True), 8, 1, None),
        (Resources(workers=2, cpus_per_worker=1.0), 2, 0, None),
    ],
)
def test_workers_leave_a_cpu_for_ray_data_or_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    resources: Resources,
    cpus: int,
    gpus: int,
    expected: dict[str, float] | None,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus}}])
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    if expected is None:
        with pytest.raises(ResourceError, match=str(cpus)):
            worker_resources(resources)
    else:
        assert worker_resources(resources) == expected


@pytest.mark.parametrize(
    ("sizes", "workers", "given", "expected"),
    [
        ([4, 4], 8, 0.0, 0.8),  # of 7/8 each node would hold four, and have a half left
        ([4, 4], 4, 0.0, 1.0),
        ([1, 1, 1], 2, 0.0, 1.0),
        ([1, 1], 2, 0.0, 0.5),
        ([0, 2, 2], 4, 0.0, 2 / 3),
        ([4, 4], 8, 0.875, None),
        ([4, 3], 3, 2.0, 2.0),  # one that is full has a CPU left
    ],
)
def test_a_whole_cpu_of_a_node_is_left_whichever_nodes_the_workers_fill(
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    workers: int,
    given: float,
    expected: float | None,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(sizes))})
    nodes = [{"Alive": True, "Resources": {"CPU": size} if size else {}} for size in sizes]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    resources = Resources(workers=workers, cpus_per_worker=given)
    if expected is None:
        with pytest.raises(ResourceError, match=r"4, 4 CPUs.*take --cpus-per-worker 0\.8,"):
            worker_resources(resources)
        return
    each = worker_resources(resources)["CPU"]
    assert each == pytest.approx(expected)
    for order in itertools.permutations(sizes):  # filled node after node, as Ray packs them
        free, left = [], workers
        for size in order:
            held = min(left, int(size / each + 1e-9))
            free.append(size - held * each)
            left -= held
        assert left == 0
        assert max(free) >= 1 - 1e-9


def test_a_full_disk_is_refused_with_figures_before_anything_is_decoded(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), code=2)
    assert "0.0 GB to spare" in err
    assert not list((tmp_path / "runs" / "store").glob("*/*"))


def test_an_absent_tracker_is_said(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ["--data.root", str(parts), "--model.mode", "random", "--track", "tensorboard"]
    _, err = run_script(capsys, tmp_path / "runs", *arguments, code=2)
    assert "assay[tensorboard]" in err
