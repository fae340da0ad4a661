"""Runs on a real S3 server: what is pushed on one machine is pulled on another, whole or not at all."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from assay import storage
from assay.errors import ConfigError, RunError
from assay.runs import claim, lease, listing
from assay.runs.claim import TakenOverError
from assay.runs.folder import Run
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
    try_push,
    writing,
)

Machine = Callable[[str], Path]


@pytest.fixture
def machine(s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A function that changes to a machine with a cache of its own; gives its folder of the run."""

    def change(name: str) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        folder = folder_of(s3("runs")) / "toy-1"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return change


def fill(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def killed_pid() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


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


def test_the_second_writer_is_refused_until_the_first_is_silent(machine, monkeypatch):
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


def test_a_killed_process_of_the_same_machine_holds_nothing(machine):
    first = machine("first")
    claim.Claim.take(first, objects(first))
    mark = json.loads((first / claim.MARK).read_text())
    (first / claim.MARK).write_text(json.dumps(mark | {"pid": killed_pid()}))
    with writing(first):
        assert len(objects(first).list("claims")) == 1
    assert objects(first).list("claims") == []
    assert not (first / claim.MARK).exists()


def test_a_claim_that_is_no_claim_names_nobody(machine):
    first = machine("first")
    objects(first).write("claims/x.json", b"[" * 60_000)
    with pytest.raises(RunError, match="is being written by another process"), writing(first):
        pass


def test_who_writes_from_without_a_claim_does_not_write_over_another(machine):
    first = machine("first")
    fill(first, **{"run.json": "1"})
    push(first)
    second = machine("second")
    pull(second)
    fill(second, **{"run.json": "2"})
    push(second)
    machine("first")
    fill(first, **{"run.json": "3"})
    with pytest.raises(RunError, match="was written by another machine meanwhile"):
        push(first)


NAMES = [
    "../x",
    "/x",
    "a/../x",
    "a//x",
    "",
    "a\\x",
    ".x",
    ".x/a",
    "lease.json",
    "ray/x",
    "a\nb",
    "./x",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_listed_name_that_leads_elsewhere_is_refused(machine, name):
    first = machine("first")
    index = {"schema": 1, "files": {name: {"size": 1, "sha256": "0" * 64, "mtime_ns": 0}}}
    objects(first).write("index.json", json.dumps(index).encode())
    with pytest.raises(RunError, match="is missing or damaged"):
        pull(first)
    assert not is_ours(name)


def test_a_damaged_index_is_a_sentence(machine, damages, tmp_path):
    first = machine("first")
    (tmp_path / "index").write_text('{"schema": 1, "files": {}}')
    for _ in damages(tmp_path / "index"):
        if (tmp_path / "index").is_file():
            content = (tmp_path / "index").read_bytes()
            objects(first).write("index.json", content)
            with pytest.raises(RunError, match="is missing or damaged"):
                pull(first)


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


def test_a_lost_file_is_named(machine):
    first = machine("first")
    fill(first, **{"run.json": "1", "metrics.jsonl": "m"})
    push(first)
    objects(first).delete("metrics.jsonl")
    with pytest.raises(RunError, match=r"has lost its file metrics\.jsonl"):
        pull(machine("second"))


def test_what_cannot_be_reached_is_one_sentence(s3, s3_server, monkeypatch):
    bucket = s3("x").split("/")[2]
    with pytest.raises(RunError, match="There is no bucket 'no-such-bucket'"):
        open_storage(s3("runs").replace(bucket, "no-such-bucket"))
    with pytest.raises(RunError, match=r"cannot be used \(AWS Error NETWORK_CONNECTION"):
        open_storage(s3("runs").replace(s3_server, "127.0.0.1:1"))
    for address in ("s3://", "s3:///runs", f"s3://user:secret@{bucket}/runs", s3("r") + "&x=1"):
        with pytest.raises(ConfigError, match="no address that can be used") as refused:
            open_storage(address)
        assert "?x" not in str(refused.value)
        assert "secret" not in str(refused.value)
    for address in ("http://bucket/runs", "ftp://x", "s3:/bucket/runs", "S3:/b", "C:/runs"):
        with pytest.raises(ConfigError, match="allowed: a folder, or an URI"):
            open_storage(address)


def test_a_server_that_never_answers_is_given_up(s3, s3_server, monkeypatch):
    monkeypatch.setattr(storage, "SILENCE_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = s3("runs").replace(s3_server, f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RunError, match=r"cannot be used \(AWS Error NETWORK_CONNECTION.*slow"):
            open_storage(address)
        assert time.monotonic() - began < 30


def test_a_bucket_without_a_region_is_asked_for_it(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        storage.pafs, "resolve_s3_region", lambda bucket: "eu-west-1"
    )  # as pyarrow's
    files, _ = storage.reach("s3://without-a-region/runs")
    assert files.region == "eu-west-1"


@pytest.mark.parametrize(
    "address", ["s3://bucket/lot#7?region=eu-west-1", "gs://bucket/lot#7/parts", "file:///lot#7"]
)
def test_an_address_of_which_a_part_would_be_lost_is_refused(address):
    with pytest.raises(ConfigError, match=re.escape(f"{address} is no address")):
        storage.reach(address)


def test_wrong_credentials_are_one_sentence(s3, s3_server, monkeypatch):
    address, reset = s3("runs"), f"http://{s3_server}/moto-api/reset-auth"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")  # of nobody
    httpx.post(reset, content=b"0")
    try:
        with pytest.raises(RunError, match=r"cannot be used \(AWS Error .*your rights"):
            open_storage(f"{address}&region=us-east-1")
    finally:
        httpx.post(reset, content=b"inf")


def test_a_push_on_the_way_may_fail_but_not_against_another_writer(machine, monkeypatch, capsys):
    first = machine("first")
    fill(first, **{"run.json": "1"})

    def fails(*args: object) -> None:
        raise RunError("no network.")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "write", fails)
        try_push(first)
    assert capsys.readouterr().err == "Not pushed for now: no network.\n"
    objects(first).write("index.json", b'{"files": {}}')
    with pytest.raises(TakenOverError):
        try_push(first)


def test_a_run_of_another_machine_is_running_until_nothing_is_heard_of_it(machine, s3, monkeypatch):
    first = machine("first")
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    with Run(first).lease():
        Run(first).note(state="running", task="toy")
        push(first)
        second = machine("second")
        monkeypatch.setattr(socket, "gethostname", lambda: "second")
        open_storage(s3("runs"))
        assert listing.read(second).state == "running"
        monkeypatch.setattr(lease, "STALE_LEASE_S", 0)
        assert listing.read(second).state == "interrupted"
        machine("first")


def test_another_process_of_this_machine_is_refused(machine):
    first = machine("first")
    with subprocess.Popen(["sleep", "60"]) as other:
        claim.Claim.take(first, objects(first))
        mark = json.loads((first / claim.MARK).read_text())
        (first / claim.MARK).write_text(json.dumps(mark | {"pid": other.pid, "began": ""}))
        with pytest.raises(RunError, match=f"written by process {other.pid} on"), writing(first):
            pass
        other.kill()


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
