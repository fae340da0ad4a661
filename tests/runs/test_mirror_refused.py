"""Mirrors that are damaged, claimed by others or out of reach: one sentence, and nothing is written over."""

import json
import re
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from assay import storage
from assay.errors import ConfigError, RunError
from assay.runs import claim, lease, listing
from assay.runs.claim import TakenOverError
from assay.runs.folder import Run
from assay.runs.index import is_ours
from assay.runs.objects import Objects
from assay.runs.remote import mirror_of, open_storage, pull, push, try_push, writing


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


def objects(folder: Path) -> Objects:
    mirror = mirror_of(folder)
    assert mirror is not None
    return mirror.objects


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


def test_a_lost_file_is_named(machine):
    first = machine("first")
    fill(first, **{"run.json": "1", "metrics.jsonl": "m"})
    push(first)
    objects(first).delete("metrics.jsonl")
    with pytest.raises(RunError, match=r"has lost its file metrics\.jsonl"):
        pull(machine("second"))


def test_what_cannot_be_reached_is_one_sentence(s3, s3_server):
    bucket = s3("x").split("/")[2]
    with pytest.raises(RunError, match="There is no bucket 'no-such-bucket'"):
        open_storage(s3("runs").replace(bucket, "no-such-bucket"))
    with pytest.raises(RunError, match=r"cannot be used \(AWS Error NETWORK_CONNECTION"):
        open_storage(s3("runs").replace(s3_server, "127.0.0.1:1"))
    for address in ("s3://", "s3:///runs", f"s3://user:secret@{bucket}/runs", s3("r") + "&x=1"):
        with pytest.raises(ConfigError, match="no address that can be used") as refused:
            open_storage(address)
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
