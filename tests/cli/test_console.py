"""The `assay` command: mistakes, damaged files of a run, and README's commands."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay.cli.console import main
from assay.runs.results import Result

JSON = ("run.json", "config.json", "result.json", "lease.json", "comparison.json")


@pytest.mark.parametrize(
    "name", [*JSON, "predictions.parquet", "split.parquet", "metrics.jsonl", "bundle/bundle.json"]
)
def test_whatever_lies_in_a_file_of_a_run_no_command_fails_but_by_a_sentence(
    write_task: Callable[[Path], bytes],
    storage: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_page: None,
    damages: Callable[[Path], Iterator[str]],
) -> None:
    write_task(storage)
    monkeypatch.chdir(storage.parent)
    folder = storage / "toy-good"
    kept = {path: path.read_bytes() for path in folder.glob("*.parquet") if path.name != name}
    for damage in damages(folder / name):
        commands = [["show", "good"]]
        commands += {
            "half": [["runs"], ["judge", "good"]],
            "an object": [["compare", "bad", "good"]],
        }.get(damage, [])
        for words in commands:
            code = 0
            try:
                main([*words, "--storage", str(storage)])
            except SystemExit as left:
                code = int(left.code or 0)
            printed = capsys.readouterr()
            assert code in (0, 2), (damage, words, printed)
            assert "Traceback" not in printed.err
            assert code == 0 or words != ["runs"], printed  # one bad run hides no other
        assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nobody"], "There is no run 'nobody'"),
        (["runs", "--by", "train"], "--by is train; these runs have: test, val"),
        (["runs", "--task", "other"], "holds no run of the task other"),
        (["runs", "--csv", "/dev/null/x.csv"], "cannot be read or written"),
        (["compare", "toy-good", "toy-new"], "toy-new cannot be compared"),
        (["compare", "toy-good", "good"], "A run is named twice"),
        (["compare", "toy", "toy-good"], "may be any of toy-bad, toy-good, toy-new"),
        (["judge", "toy-new"], "toy-new cannot be judged again (it is interrupted)"),
        (["judge", "toy-good"], "there is no tasks/toy.py; run the command where that file is"),
        (["judge", "toy-good", "--tasks", "/nowhere"], "there is no /nowhere/toy.py"),
        (["judge", "--decide.coverage", "0.8", "toy-good"], "The run must come first"),
        (["report", "toy-new"], "toy-new is running"),
        (["runs", "--csv", ""], "--csv is empty, as where a variable of the shell is not set"),
        (["compare", "toy-good", "toy-bad", "--json="], "--json is empty"),
        (["promote", "toy-good", "--registry", " "], "--registry is empty"),
        (["predict", "toy-good"], "names nothing to judge"),
        (["show", ""], "A word of assay show is empty"),
        (["compare", "toy-good", ""], "A word of assay compare is empty"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
    arguments: list[str],
    message: str,
) -> None:
    make_run(storage, "toy-new", 0.5, state="running")
    printed = assay(*arguments, "--storage", str(storage), code=2)
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_reading_runs_imports_no_torch(storage: Path) -> None:
    code = (
        "import sys; from assay.cli.console import main; main(['runs', '--storage', sys.argv[1]]); "
        "main(['show', 'toy-good', '--storage', sys.argv[1]]); "
        "assert not {'torch', 'ray'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(storage)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = re.findall(r"^uv run assay (.*)$", README, re.MULTILINE)
SERVING = ("promote", "registry", "rollback", "serve", "predict")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] in SERVING])
def test_the_readmes_commands_of_serving_exist(assay: Callable[..., str], line: str) -> None:
    assert f"assay {line.split()[0]}" in assay(line.split()[0], "--help")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] not in SERVING])
def test_the_readmes_commands_run(
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    write_task: Callable[[Path], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "report.html"
    page.touch()
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: page)
    for name, right in (("fingerprint-3f2a", 0.95), ("fingerprint-77b1", 0.6)):
        folder = make_run(tmp_path / "runs", name, right)
        judged(folder)
    write_task(tmp_path / "runs")
    words = line.split()
    expected = {
        "runs": "77b1",
        "compare": "is better than",
        "judge": "scoring 2",
        "report": "MB",
        "show": "finished",
    }
    assert expected[words[0]] in assay(*words)
