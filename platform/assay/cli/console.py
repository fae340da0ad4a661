"""The `assay` command: what lies on disk, read, compared and judged.

    assay runs                   every run with its numbers, ranked by val
    assay show RUN               one run
    assay compare A B [C ...]    is A better, on the same test rows?
    assay judge RUN              judge again, by other settings of `decide`; recorded as such
    assay report RUN             make report.html again
    assay promote RUN            make it the champion of its task
    assay registry               who answers for each task, and the history
    assay rollback TASK          return to the champion before
    assay serve                  answer over HTTP; promotions follow by themselves
    assay predict BUNDLE PATHS   the same answers for a folder or a list

A RUN is a folder, the name of one below --storage, or a part of a name that no other run has.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import assay
from assay.cli import registry, serve
from assay.config import from_dict, to_dict
from assay.errors import RunError, one_sentence
from assay.files import open_to_write, read_json
from assay.metrics.compare import Comparison, compare
from assay.metrics.decide import DecideConfig
from assay.metrics.estimate import _signed
from assay.report import text
from assay.report.page import write_report
from assay.report.text import _print_beside, _print_scorings, _print_set
from assay.runs import listing
from assay.runs.listing import RunSummary, bracket

Name = Annotated[str, tyro.conf.Positional]


_RUNS = Path("runs")


_DECIDE = DecideConfig()


def runs(storage: Path = _RUNS, task: str = "", by: str = "val", csv: Path | None = None) -> None:
    """List all runs, the best first, apart for each task, rule and set of rows.

    Args:
        storage: Folder of the runs.
        task: Only those of this task.
        by: Set to rank by; by a test set is an oracle's choice and said to be one.
        csv: File to write all numbers to as well.
    """
    found = [run for run in listing.read_all(storage) if task in ("", run.task)]
    if not found:
        raise RunError(
            f"{storage} holds no run{f' of the task {task}' if task else ''}; train one, or name another --storage."
        )
    known = sorted({name for run in found for name in run.result.get("sets", {})})
    if known and by not in known:
        raise RunError(f"--by is {by}; these runs have: {', '.join(known)}.")
    text.print_ranked(found, by)
    if by.startswith("test"):
        print("ORACLE: ranked by a test set. The first is no honest choice; rank by val.")
    if csv is not None:
        listing.write_csv(csv, found)


def show(run: Name, storage: Path = _RUNS) -> None:
    """Show one run: state, launches, numbers of every set, decision, comparisons, scorings.

    Args:
        run: The run.
        storage: Folder of the runs.
    """
    found = listing.find(run, storage)
    seconds = f", {found.record['seconds']:.0f} s" if found.record.get("seconds") else ""
    print(f"{found.folder.name}: {found.state}{seconds}")
    if found.reason:
        print(f"  {found.reason}")
    for launch in found.record.get("launches", []):
        kind = f"workers {launch.get('workers')}, {launch.get('device')}"
        print(f"  launch {listing.when(launch.get('time'))}, {kind}, Assay {launch.get('assay')}")
    for warning in found.record.get("warnings", []):
        print(f"  warning: {warning}")
    if found.result:
        _print_scorings(found)
        for name, own in found.result["sets"].items():
            _print_set(name, own)
        _print_beside(found.folder)
    page = found.folder / "report.html"
    print(f"\nreport: {page if page.exists() else f'none yet; assay report {found.folder}'}")


def compare_runs(
    first: Name,
    others: Annotated[list[str], tyro.conf.Positional],
    storage: Path = _RUNS,
    json: Path | None = None,
) -> None:
    """Compare the first run with each other one on the same test rows.

    Args:
        first: The run in question.
        others: What it is compared with.
        storage: Folder of the runs.
        json: File to write the comparisons to as well.
    """
    found = [listing.judged(name, storage) for name in (first, *others)]
    if len({run.folder.resolve() for run in found}) < len(found):
        raise RunError(f"A run is named twice in {first} {' '.join(others)}; name each once.")
    alike = len({run.folder.name for run in found}) < len(found)
    named = {str(run.folder) if alike else run.folder.name: run for run in found}
    comparisons = compare({name: run.predictions() for name, run in named.items()})
    for name in dict.fromkeys(c.set for c in comparisons):
        _print_comparisons([c for c in comparisons if c.set == name], named)
    print(f"95 % intervals over groups; p corrected for {len(comparisons)} comparisons (Holm).")
    if any(run.result["oracle"] for run in found):
        print("ORACLE: val was of the test domain; the numbers of that run are upper bounds.")
    if json is not None:
        _write(json, [c.to_dict() for c in comparisons])


def _print_comparisons(own: Sequence[Comparison], runs: Mapping[str, RunSummary]) -> None:
    first, width = own[0], max(map(len, runs))
    print(f"{first.set}, {first.metric}: {first.first.num} rows in {first.first.num_groups} groups")
    for name, score in ({first.first_name: first.first} | {c.name: c.second for c in own}).items():
        run = runs[name]
        print(f"  {name:{width}s}  {bracket(score)}  {run.rule}, seed {run.result['seed']}")
    for c in own:
        print(f"  {c.verdict}" if len(own) == 1 else f"  against {c.name}: {c.verdict}")
        print(
            f"    difference {_signed(c.difference)}, p = {c.p:.2g}, corrected p = {c.p_holm:.2g}"
        )
        if c.mcnemar:
            m = c.mcnemar
            sides = f"{m.only_first} right in the first alone, {m.only_second} in the other alone"
            print(f"    McNemar over {m.unit}: {sides}, p = {m.p:.2g}")
    print()


@dataclass(frozen=True)
class Judge:
    """Judge a run again from its predictions; the test scoring is recorded as one more."""

    run: Name
    """The run."""
    storage: Path = _RUNS
    """Folder of the runs."""
    decide: DecideConfig = _DECIDE
    """How answers are made; what is not given stays as the run has it."""


def _own_settings(arguments: Sequence[str]) -> Judge:
    """What `assay judge RUN` starts from: how the run was judged before."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--storage", type=Path, default=_RUNS)
    storage = early.parse_known_args(arguments)[0].storage
    config = read_json(listing.find(arguments[0], storage).folder / "config.json")
    return Judge(arguments[0], storage, from_dict(DecideConfig, config.get("decide", {})))


def judge_again(command: Judge) -> None:
    """Judge a run, note the settings of `decide`, and make its report again.

    Raises:
        RunError: the run is not finished, is being written, or lacks its task file.
    """
    from assay.experiment.judge import judge  # torch comes with these, and takes seconds
    from assay.files import write_json
    from assay.runs.folder import Run
    from assay.train.source import TaskSource, load_task

    found = listing.find(command.run, command.storage)
    folder = found.folder.absolute()
    if not (found.result or found.is_stale):
        raise RunError(
            f"{folder.name} cannot be judged again ({found.why}); give a run that is finished."
        )
    if not (folder / "task.py").is_file():
        raise RunError(f"{folder} lacks its task.py; restore it, or train the run again.")
    task = load_task(TaskSource(found.task, (folder / "task.py").read_bytes()))
    config = from_dict(task.Config, read_json(folder / "config.json"))
    config = dataclasses.replace(config, decide=command.decide)
    with Run(folder).lease():
        result = judge(folder, task, config, folder.parent)
        write_json(folder / "config.json", to_dict(config))
        write_report(folder)
    # a scoring whose rule was not recorded may have been by this one
    same = [s for s in result["scorings"] if s["rule"] in (result["rule"], "not recorded")]
    print(f"This is scoring {len(same)} of the test sets of {folder.name} by {result['rule']}.\n")
    show(str(folder))


def make_report(run: Name, storage: Path = _RUNS) -> None:
    """Make report.html again, from the run's directory alone.

    Args:
        run: The run.
        storage: Folder of the runs.
    """
    page = write_report(listing.find(run, storage).folder)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 and one sentence where the user can mend something."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with one_sentence():
            if given == ["--version"]:
                print(assay.__version__)
            elif given[:1] == ["judge"] and given[1:] and not given[1].startswith("-"):
                own = _own_settings(given[1:])
                judge_again(tyro.cli(Judge, args=given[1:], default=own, prog="assay judge"))
            else:
                _dispatch(given)
    except BrokenPipeError:  # `assay runs | head` has seen enough
        sys.stderr.close()


def _dispatch(given: Sequence[str]) -> None:
    commands: dict[str, Any] = {
        "runs": runs, "show": show, "compare": compare_runs, "judge": Judge, "report": make_report,
        "promote": registry.promote_run, "registry": registry.show_registry, "rollback": registry.rollback,
        "serve": serve.serve, "predict": serve.predict,
    }  # fmt: skip
    done = tyro.extras.subcommand_cli_from_dict(
        commands, args=given, prog="assay", description=__doc__
    )
    if isinstance(done, Judge):
        raise RunError(
            "The run must come first, since the options change its settings; write assay judge RUN --decide.coverage 0.95."
        )


def _write(path: Path, value: Any) -> None:
    with open_to_write(path) as file:
        json.dump(value, file, indent=1)
