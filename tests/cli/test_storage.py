"""A task whose runs are on a real S3 server, from machines that share nothing else."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.fs as pafs
import pytest

from assay.cli import console
from assay.cli.task import main
from assay.runs.remote import folder_of
from assay.storage import reach
from assay.train import checkpoint

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
QUICK = shlex.split(
    "--preset smoke --workers 0 --train.epochs 1 --model.num-noise 10 --model.warmup-k 4 "
    "--patches.image-px 96 --patches.overview-px 32 --patches.patch-px 16 --split.unseen-domain"
)

TWO = ("--train.epochs", "2", "--model.mode", "random")


def draw(root: Path) -> None:
    """Noise images of two machines, two views per part."""
    rng = np.random.default_rng(0)
    for number, label in enumerate("ab"):
        (root / label / "King").mkdir(parents=True)
        for part in range(5):
            for view in (1, 2):
                image = rng.integers(80, 200, (96, 96, 3), dtype=np.uint8) // (number + 1)
                name = f"Device_{number}_Print_{part:03d}_{view:03d}.png"
                assert cv2.imwrite(str(root / label / "King" / name), image)


def train(root: Path | str, storage: str, *more: str) -> None:
    arguments = [*QUICK, "", "--data.root", str(root), "--storage", storage, *more]
    main(str(SCRIPT), arguments)


def names_below(address: str) -> set[str]:
    """Names of all objects."""
    files, root = reach(address)
    infos = files.get_file_info(pafs.FileSelector(root, recursive=True))
    return {info.path.removeprefix(f"{root}/") for info in infos if info.is_file}


def read_object(address: str, name: str) -> bytes:
    files, root = reach(address)
    with files.open_input_file(f"{root}/{name}") as file:
        return file.read()


@pytest.fixture(scope="module")
def finished(
    s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """Images, and the address of their finished run and its baseline, trained on another machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("first")))
        files = pafs.S3FileSystem(
            endpoint_override=s3_server, scheme="http", allow_bucket_creation=True
        )
        files.create_dir("finished")
        root = tmp_path_factory.mktemp("images") / "parts"
        draw(root)
        storage = f"s3://finished/runs?endpoint_override={s3_server}&scheme=http"
        train(root, storage)
        yield root, storage


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine: a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def test_a_run_leaves_its_files_on_the_storage(finished):
    _, storage = finished
    names = names_below(storage)
    runs = {name.partition("/")[0] for name in names}
    assert len(runs) == 2  # the method and its baseline
    for run in runs:
        files = {name.partition("/")[2] for name in names if name.startswith(run)}
        records = {"run.json", "config.json", "result.json", "metrics.jsonl", "report.html"}
        tables = {"split.parquet", "predictions.parquet", "bundle/bundle.json"}
        assert records | tables | {"best/weights.safetensors", "index.json"} <= files
        assert any(name.endswith("checksums.json") for name in files)
        assert not [name for name in files if name.startswith(("claims", "lease", ".", "ray"))]
        assert json.loads(read_object(storage, f"{run}/run.json"))["state"] == "finished"
        assert set(json.loads(read_object(storage, f"{run}/index.json"))["files"]) == files - {
            "index.json"
        }


def test_another_machine_reads_compares_reports_and_promotes(finished, elsewhere, capsys):
    _, storage = finished
    where = ["--storage", storage]
    console.main(["runs", *where])
    printed = capsys.readouterr().out
    runs = sorted({name.partition("/")[0] for name in names_below(storage)})
    assert all(run[-12:] in printed for run in runs), printed
    folder = folder_of(storage)
    assert not list(folder.glob("*/checkpoints"))
    assert not list(folder.glob("*/bundle"))
    console.main(["show", runs[0], *where])
    assert "finished" in capsys.readouterr().out
    console.main(["compare", *runs, *where])
    assert "95 % intervals" in capsys.readouterr().out
    before = read_object(storage, f"{runs[0]}/index.json")
    console.main(["report", runs[0], *where])
    page = folder / runs[0] / "report.html"
    assert read_object(storage, f"{runs[0]}/report.html") == page.read_bytes()
    assert read_object(storage, f"{runs[0]}/index.json") != before
    registry = storage.replace("/runs", "/registry")
    console.main(["promote", runs[0], *where, "--registry", registry, "--force", "a test"])
    assert "is champion" in capsys.readouterr().out
    console.main(["registry", "--registry", registry])
    assert f"run {runs[0]}" in capsys.readouterr().out
    assert not list(folder.glob("*/checkpoints"))


def test_another_machine_recognises_what_is_finished(finished, elsewhere, capsys):
    root, storage = finished
    names = [name for name in names_below(storage) if name.endswith(("index.json", ".jsonl"))]
    before = {name: read_object(storage, name) for name in names}
    train(root, storage)
    assert "test: " in capsys.readouterr().out
    assert {name: read_object(storage, name) for name in names} == before


def test_a_run_goes_on_where_its_machine_was_lost(
    s3: Callable[[str], str], finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, _ = finished
    storage, saved = s3("runs"), checkpoint.save

    def lost(folder, step, *others):
        if list(folder.glob("step-*")):
            (tmp_path / "home").rename(tmp_path / "lost")
            raise SystemExit("the machine is gone")
        return saved(folder, step, *others)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lost)
        with pytest.raises(SystemExit, match="gone"):
            train(root, storage, *TWO)
    names = names_below(storage)
    [run] = {name.partition("/")[0] for name in names}
    assert json.loads(read_object(storage, f"{run}/run.json"))["state"] == "running"
    assert any(name.endswith("checksums.json") for name in names)
    # the machine that is lost gave up its claim only because this test is one process
    monkeypatch.setenv("HOME", str(tmp_path / "next"))
    train(root, storage, *TWO)
    lines = read_object(storage, f"{run}/metrics.jsonl").decode().splitlines()
    starts = [line["step"] for line in map(json.loads, lines) if line["kind"] == "start"]
    assert len(starts) == 2
    assert starts[0] == 0 < starts[1]
    assert json.loads(read_object(storage, f"{run}/run.json"))["state"] == "finished"


def test_wrong_addresses_end_with_one_sentence(finished, elsewhere, capsys):
    root, storage = finished
    for wrong in (storage.replace("finished", "no-such-bucket"), "http://finished/runs"):
        with pytest.raises(SystemExit) as left:
            train(root, wrong)
        assert left.value.code == 2
        with pytest.raises(SystemExit) as left:
            console.main(["runs", "--storage", wrong])
        assert left.value.code == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2, errors
        assert errors[0] == errors[1]
