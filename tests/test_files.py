"""Files appear whole or not at all, whatever the disk does; what is read is whole or refused."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import AssayError, ConfigError, DiskError, RunError, disk_faults
from assay.files import (
    describe,
    plain_paths,
    read_json,
    read_parquet,
    reading,
    write_json,
    write_parquet,
    write_rows,
)

TABLE = pa.table({"id": [str(i) for i in range(1000)]})
WRITERS = {
    "a.json": lambda path: write_json(path, list(range(9999))),
    "a.parquet": lambda path: write_parquet(path, TABLE),
    "a.csv": lambda path: write_rows(path, ["a"], ({"a": i} for i in range(9999))),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("room", [0, 1000])
def test_a_full_disk_leaves_what_was_there_and_nothing_half(tmp_path, full_disk, name, room):
    path = tmp_path / name
    path.write_bytes(b"before")
    with pytest.raises(DiskError) as said, disk_faults(), full_disk(room):
        WRITERS[name](path)
    assert str(said.value).startswith(f"{path} cannot be read or written (")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.stat().st_size > room


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_in_a_files_place_is_said(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DiskError, match=name), disk_faults():
        WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path, name, make):
    """As `--csv /dev/stdout` would, for whoever may write there."""
    make(tmp_path / name)
    before = os.lstat(tmp_path / name)
    with pytest.raises(DiskError, match=f"{name} cannot be read or written"), disk_faults():
        WRITERS[name](tmp_path / name)
    assert os.lstat(tmp_path / name) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("path", [Path(), Path("/"), Path("..")])
def test_a_path_without_a_name_of_its_own_is_said(path):
    for write in WRITERS.values():
        with pytest.raises(DiskError, match="it is a folder"), disk_faults():
            write(path)


def test_the_home_is_meant_in_paths_alone(monkeypatch):
    """A shell puts it in where ~ begins a word, so not in --storage=~/runs."""
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["--storage=~/runs", "--data.root", "~", "--data.label", "~", "--out", "a~", "~"]
    assert plain_paths(words) == [
        *("--storage=/home/ada/runs", "--data.root", "/home/ada", "--data.label", "~", "--out"),
        *("a~", "~"),
    ]
    assert plain_paths([]) == []
    assert (
        plain_paths(["--model.weights=~/a.pt", "--cache=~/b"])[0]
        == "--model.weights=/home/ada/a.pt"
    )
    assert plain_paths(["--model.weights=hub"]) == ["--model.weights=hub"]


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["x", "--registry", " ", "y"]])
def test_an_empty_path_is_refused_by_the_options_name(words):
    with pytest.raises(ConfigError, match=r"^--(out|registry) is empty, as where a variable"):
        plain_paths(words)
    assert plain_paths(["--data.label", "", "--data.group="]) == [
        "--data.label",
        "",
        "--data.group=",
    ]


def test_a_name_that_stands_twice_is_no_setting(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"train": {"lr": 1, "lr": 2}}')
    with pytest.raises(ConfigError, match="names 'lr' twice"):
        read_json(path, ConfigError)
    path.write_bytes(b"\xef\xbb\xbf{}")  # as editors on Windows write
    assert read_json(path) == {}


@pytest.mark.parametrize(
    "text", ['{"a": ["\\ud800"]}', '{"\\uDfff": 1}', '{"a": "\\uDC00\\uD800"}']
)
def test_half_a_character_is_no_text(tmp_path, text):
    """A table could not hold it, and a terminal not show it."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(RunError, match="surrogates not allowed"):
        read_json(path)
    path.write_text(json.dumps({"a": "\U0001f600"}))
    assert read_json(path) == {"a": "\U0001f600"}


@settings(max_examples=100)
@given(st.data())
def test_no_damage_gives_anything_but_a_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name, read in (
        ("x.json", read_json),
        ("x.parquet", lambda path: read_parquet(path, ("id",))),
    ):
        path: Path = folder / name
        if name == "x.json":
            path.write_text(json.dumps({"schema": 1, "sets": {"val": [1.5, None, "\u00e4"]}}))
        else:
            pq.write_table(TABLE.slice(0, 20), path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(content)))
            end = min(len(content), start + data.draw(st.integers(0, 20)))
            content[start:end] = data.draw(st.binary(max_size=4))
        path.write_bytes(content)
        try:
            read(path)
        except AssayError as error:
            told = str(error)
            assert told.startswith(f"{path} is missing or damaged (")
            assert told.endswith("); restore it, or train the run again.")


def test_the_kind_of_a_reader_is_kept_and_its_own_sentences_pass():
    with (
        pytest.raises(ConfigError, match=r"^x is missing or damaged \(KeyError: 'a'\); mend it\.$"),
        reading("x", ConfigError, "mend it"),
    ):
        raise KeyError("a")
    with pytest.raises(RunError, match=r"^said$"), reading("x", ConfigError):
        raise RunError("said")
    assert len(describe(ValueError("x" * 10_000))) == 200
