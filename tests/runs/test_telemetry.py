"""metrics.jsonl stays valid line by line, whatever is measured and whoever was killed."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay.errors import ConfigError, DiskError, RunError, disk_faults
from assay.runs.metrics import read_metrics
from assay.runs.telemetry import Telemetry
from assay.runs.watch import watch
from assay.train.loop import memory_mb


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_when_it_was_logged_and_rounded_to_six_digits(tmp_path):
    with_telemetry = Telemetry(tmp_path)
    before = time.time()
    with_telemetry.log("step", step=3, epoch=1, loss=1.23456789, lr=1.23456789e-7)
    (line,) = lines_of(tmp_path)
    assert abs(line.pop("time") - before) < 5
    assert line == {"kind": "step", "step": 3, "epoch": 1, "loss": 1.23457, "lr": 1.23457e-7}
    with_telemetry.close()


def test_what_is_not_finite_is_null(tmp_path):
    with_telemetry = Telemetry(tmp_path)
    with_telemetry.log("step", step=1, a=float("nan"), b=float("inf"), c=-float("inf"), d=1e300)
    with_telemetry.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    strict = json.loads(text, parse_constant=pytest.fail)
    assert [strict[k] for k in "abcd"] == [None, None, None, 1e300]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (b"", 0),
        (b'{"kind": "step", "step": 1}\n', 1),
        (b'{"kind": "step", "step": 1}\n{"kind": "ste', 1),
        (b'{"kind', 0),
    ],
)
def test_a_torn_last_line_is_cut_off_by_the_next_launch(tmp_path, left, kept):
    (tmp_path / "metrics.jsonl").write_bytes(left)
    with_telemetry = Telemetry(tmp_path)
    with_telemetry.log("start", step=1, total=3)
    with_telemetry.close()
    assert [line["kind"] for line in lines_of(tmp_path)] == ["step"] * kept + ["start"]


def test_a_full_disk_is_named_and_costs_no_line_that_was_whole(tmp_path, full_disk):
    telemetry = Telemetry(tmp_path)
    telemetry.log("step", step=1, loss=0.5)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    for room in (size, size + 10):  # nothing of the next line, or a part of it
        with (
            pytest.raises(DiskError, match=r"metrics\.jsonl cannot be read or written"),
            disk_faults(),
            full_disk(room),
        ):
            telemetry.log("step", step=2, loss=0.5)
    telemetry.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")["step"]] == [1]
    again = Telemetry(tmp_path)
    again.log("step", step=2, loss=0.5)
    again.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


def test_a_damaged_line_is_named_and_one_that_was_cut_off_is_not_missed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"kind": "val", "step": 1}\n'
    for end in (b"", b'{"kind"', b"\xff\xfe", b"[1]", b"{}", b"[" * 100_000):
        path.write_bytes(whole + end)
        assert read_metrics(path)["val"] == [{"kind": "val", "step": 1}]
    path.write_bytes(b'{"kind": "v\n' + whole)
    with pytest.raises(RunError, match=r"^Line 1 of \S+metrics\.jsonl is missing or damaged"):
        read_metrics(path)


def test_sinks_are_given_the_same_values(tmp_path, monkeypatch):
    """W&B stays offline where nobody is logged in, and knows the run by its folder."""
    started, logged, ended = {}, [], []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: ended.append(True)
    )

    def start(**settings: object) -> SimpleNamespace:
        started.update(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=start))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "toy-0123"
    folder.mkdir()
    with_telemetry = Telemetry(folder, ("wandb",), {"lr": 1})
    with_telemetry.log("step", step=7, epoch=1, loss=0.5)
    with_telemetry.close()
    assert started["mode"] == "offline"
    assert (started["id"], started["resume"], started["config"]) == ("toy-0123", "allow", {"lr": 1})
    assert logged == [({"step/loss": 0.5}, 7)]
    assert ended == [True]
    monkeypatch.setenv("WANDB_API_KEY", "x")
    Telemetry(folder, ("wandb",)).close()
    assert started["mode"] == "online"


def test_the_bar_follows_what_another_process_writes(tmp_path, monkeypatch):
    """Also over torn lines and losses that are not finite; earlier launches are not shown."""
    bars = []

    class Bar:
        def __init__(self, **settings: object) -> None:
            self.n, self.total, self.postfix = 0, settings["total"], {}
            bars.append(self)

        def set_description(self, text: str) -> None:
            self.text = text

        def reset(self, total: int) -> None:
            self.total = total

        def set_postfix(self, values: dict, refresh: bool) -> None:
            self.postfix = dict(values)

        def update(self, num: int) -> None:
            self.n += num

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("assay.progress.tqdm", Bar)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "start", "step": 0, "total": 99}\n')
    with watch(tmp_path, "toy"), path.open("a", buffering=1) as file:
        file.write('{"kind": "start", "step": 2, "total": 8}\n{"kind": "step", "step": 3,')
        time.sleep(0.7)
        file.write(' "loss": 0.25}\n{"kind": "val", "step": 3, "epoch": 0, "accuracy": null}\n')
        file.write('{"kind": "val", "step": 3, "epoch": 0, "accuracy": 0.5}\n')
        file.write('{"kind": "step", "step": 4, "loss": null}\n')
        deadline = time.monotonic() + 10
        while bars[-1].n < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (bars[-1].total, bars[-1].n, bars[-1].closed) == (8, 4, True)
    assert bars[-1].postfix == {"loss": "nan", "val": "0.500"}


def test_memory_is_in_megabytes():
    """Against the kernel's own figure."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc")
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert memory_mb() == pytest.approx(int(peak.split()[1]) * 1024 / 1e6, rel=0.05)


def test_a_tracker_that_does_not_start_is_said_in_a_sentence(tmp_path, monkeypatch):
    def init(**options: object) -> None:
        raise PermissionError(13, "Permission denied", "wandb/run-1")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(
        ConfigError, match=r"wandb is missing or damaged \(Permission denied\); mend"
    ):
        Telemetry(tmp_path, ("wandb",))
