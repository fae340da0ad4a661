"""Runs on a real S3 server: what is pushed on one machine is pulled on another, whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from assay.errors import RunError
from assay.runs import claim
from assay.runs.claim import TakenOverError
from assay.runs.index import is_ours
from assay.runs.mirror import needs_all, needs_record
from assay.runs.objects import Objects
from assay.runs.remote import (
    address_of,
    catch_up,
    folder_of,
    mirror_of,
    open_storage,
    pull,
    push,
    writing,
)


def fill(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def contents(folder: Path) -> dict[str, str]:
    """What is pulled and pushed of a folder."""
    return {
        name: (folder / name).read_text()
        for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
        if (folder / name).is_file() and is_ours(name)
    }


def objects(folder: Path) -> Objects:
    mirror = mirror_of(folder)
    assert mirror is not None
    return mirror.objects


def test_a_mirror_says_its_address_and_folders_are_left_alone(s3, tmp_path):
    address = s3("deep/runs")
    folder = folder_of(address)
    assert address_of(folder) == address
    mirror = mirror_of(folder / "sweeps" / "one")
    assert (mirror.address, mirror.name) == (address, "sweeps/one")
    assert mirror_of(tmp_path / "runs" / "toy-1") is None
    assert open_storage(str(tmp_path / "runs")) == tmp_path / "runs"
    with writing(tmp_path / "runs" / "toy-1"):
        push(tmp_path / "runs" / "toy-1")
    assert not (tmp_path / "runs").exists()


def test_another_machine_has_the_same_run(machine):
    first = machine("first")
    fill(first, **{"run.json": "{}", "metrics.jsonl": "1\n", "checkpoints__step-1__.metadata": "m"})
    fill(first, **{"lease.json": "{}", ".run.json.5": "half", "ray__state": "s", "samples__0": "p"})
    (first / "link").symlink_to("metrics.jsonl")
    push(first)
    second = machine("second")
    pull(second)
    assert contents(second) == {
        "run.json": "{}",
        "metrics.jsonl": "1\n",
        "checkpoints/step-1/.metadata": "m",
        "samples/0": "p",
    }


def test_changes_go_both_ways_and_what_is_deleted_goes(machine):
    first = machine("first")
    fill(first, **{"run.json": "1", "checkpoints__a__x": "x", "checkpoints__b__x": "y"})
    push(first)
    second = machine("second")
    pull(second)
    fill(second, **{"run.json": "2", "result.json": "r", "checkpoints__c__x": "z"})
    (second / "checkpoints/a/x").unlink()
    push(second)
    machine("first")
    pull(first)
    assert contents(first) == contents(second)
    assert not (first / "checkpoints/a").exists()
    assert objects(first).read("checkpoints/a/x", 10) is None


def test_what_was_not_pushed_stays_where_nobody_else_wrote(machine):
    first = machine("first")
    fill(first, **{"run.json": "1"})
    push(first)
    fill(first, **{"run.json": "later", "metrics.jsonl": "m"})
    pull(first)
    assert contents(first) == {"run.json": "later", "metrics.jsonl": "m"}
    push(first)
    pull(machine("second"))
    assert contents(machine("second")) == contents(first)


def test_who_reads_takes_a_part_and_what_it_writes_loses_nothing(machine):
    first = machine("first")
    fill(first, **{"run.json": "1", "checkpoints__a__x": "x", "best__w": "w", "report.html": "old"})
    push(first)
    second = machine("second")
    pull(second, needs_record)
    assert contents(second) == {"run.json": "1"}
    with writing(second):
        assert contents(second) == {"run.json": "1", "report.html": "old"}
        fill(second, **{"report.html": "new"})
    pull(first)
    assert contents(first)["report.html"] == "new"
    pull(second)
    assert contents(second) == contents(first)


def test_a_push_that_is_broken_off_shows_no_run_and_can_be_done_again(machine, s3, monkeypatch):
    first = machine("first")
    fill(first, **{"run.json": "{}", "metrics.jsonl": "1"})
    sent = Objects.send

    def broken(self, path, name):
        if name == "run.json":
            raise KeyboardInterrupt
        return sent(self, path, name)

    monkeypatch.setattr(Objects, "send", broken)
    with pytest.raises(KeyboardInterrupt):
        push(first)
    monkeypatch.setattr(Objects, "send", sent)
    second = machine("second")
    assert objects(first).read("metrics.jsonl", 10) == b"1"
    open_storage(s3("runs"), needs=needs_all)
    assert contents(second) == {}
    machine("first")
    push(first)
    machine("second")
    open_storage(s3("runs"), needs=needs_all)
    assert contents(second) == contents(first)


def test_a_later_push_that_is_broken_off_leaves_a_run_that_goes_on(machine, monkeypatch):
    first = machine("first")
    fill(first, **{"run.json": "1", "metrics.jsonl": "1"})
    push(first)
    fill(first, **{"run.json": "2", "metrics.jsonl": "1\n2", "checkpoints__a__x": "x"})
    written = Objects.write
    monkeypatch.setattr(Objects, "write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        push(first)
    monkeypatch.setattr(Objects, "write", written)
    second = machine("second")
    pull(second)
    assert contents(second) == {"run.json": "2", "metrics.jsonl": "1\n2"}
    fill(second, **{"run.json": "3"})
    push(second)
    machine("first")
    pull(first)
    assert contents(first) == contents(second)


def test_the_second_writer_is_refused_until_the_first_is_silent(machine):
    first = machine("first")
    fill(first, **{"run.json": "1"})
    with writing(first):
        second = machine("second")
        with (
            pytest.raises(RunError, match=f"is being written by process {os.getpid()} on"),
            writing(second),
        ):
            pass
        machine("first")
        assert len(objects(first).list("claims")) == 1
    machine("second")
    with writing(second):
        assert contents(second) == {"run.json": "1"}


def test_a_silent_writer_loses_its_claim_and_pushes_no_more(machine, monkeypatch):
    first = machine("first")
    fill(first, **{"run.json": "1"})
    silent = writing(first)
    silent.__enter__()
    push(first)
    second = machine("second")
    monkeypatch.setattr(claim, "STALE_S", 0.0)
    with writing(second):
        fill(second, **{"run.json": "2"})
    machine("first")
    fill(first, **{"run.json": "late"})
    with pytest.raises(TakenOverError, match="was taken over by another machine"):
        silent.__exit__(None, None, None)
    assert objects(first).read("run.json", 10) == b"2"
    pull(first)
    assert contents(first) == {"run.json": "2"}
    fill(first, **{"run.json": "3"})
    push(first)


def test_a_size_beyond_the_disk_is_refused_before_anything_is_copied(machine):
    first = machine("first")
    fill(first, **{"run.json": "1"})
    push(first)
    index = json.loads(objects(first).read("index.json", 1000))
    index["files"]["run.json"]["size"] = 1 << 39
    objects(first).write("index.json", json.dumps(index).encode())
    second = machine("second")
    with pytest.raises(RunError, match=r"549.76 GB of toy-1 are to be copied"):
        pull(second)
    assert contents(second) == {}


def test_what_a_cleaner_deleted_here_stays_there(machine):
    first = machine("first")
    fill(first, **{"run.json": "1", "metrics.jsonl": "m", "checkpoints__a__x": "x"})
    push(first)
    (first / "metrics.jsonl").unlink()
    (first / "checkpoints/a/x").unlink()
    with writing(first):
        fill(first, **{"run.json": "2"})
    second = machine("second")
    pull(second)
    assert contents(second) == {"run.json": "2", "metrics.jsonl": "m", "checkpoints/a/x": "x"}


def test_what_could_not_be_pushed_at_the_end_is_pushed_the_next_time(machine, monkeypatch):
    first = machine("first")

    def fails(*args: object) -> None:
        raise RunError("no network.")

    block = writing(first)
    block.__enter__()
    fill(first, **{"run.json": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "write", fails)
        with pytest.raises(RunError, match="no network"):
            block.__exit__(None, None, None)
    assert mirror_of(first).is_pending
    catch_up(first)
    assert not mirror_of(first).is_pending
    second = machine("second")
    catch_up(second)
    assert contents(second) == {"run.json": "1"}
