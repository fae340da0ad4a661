"""The `assay` command: what lies on disk, read, compared and judged.

    assay runs                   every run with its numbers, ranked by val
    assay show RUN               one run
    assay compare A B [C ...]    is A better, on the same test rows?
    assay judge RUN              judge again, by other settings of `decide`; recorded as such
    assay report RUN             make report.html again
    assay masks [TASK] ...       make the masks of tasks/segment.py, by its options, and stop: to correct them first
    assay promote RUN            make it the champion of its task
    assay registry               who answers for each task, and the history
    assay rollback TASK          return to the champion before
    assay serve                  answer over HTTP; promotions follow by themselves
    assay predict BUNDLE PATHS   the same answers for a folder or a list
    assay submit TASK ...        run a task or a sweep on a cluster, and follow it
    assay doctor                 what of a cluster fits: versions, GPUs, storage, clocks, ports, token

A RUN is a folder, the name of one below --storage, or a part of a name that no other run has.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import assay
from assay.cli import registry, serve
from assay.cli.doctor import doctor
from assay.cli.submit import submit
from assay.config import from_dict, to_dict
from assay.errors import ConfigError, RunError, one_sentence
from assay.files import plain_paths, write_json
from assay.metrics.compare import compare
from assay.metrics.decide import DecideConfig
from assay.report import text
from assay.report.page import write_report
from assay.runs import listing
from assay.runs.listing import RunSummary
from assay.runs.mirror import needs_judged
from assay.runs.remote import open_storage, writing
from assay.runs.results import read_config, write_config
from assay.typed import to_json

if TYPE_CHECKING:
    from assay.train.source import TaskSource

Name = Annotated[str, tyro.conf.Positional]


_RUNS = "runs"


_DECIDE = DecideConfig()


def runs(storage: str = _RUNS, task: str = "", by: str = "val", csv: Path | None = None) -> None:
    """List all runs, the best first, apart for each task, rule and set of rows.

    Args:
        storage: Folder or URI of the runs.
        task: Only those of this task.
        by: Set to rank by; by a test set is an oracle's choice and said to be one.
        csv: File to write all numbers to as well.
    """
    summaries = [run for run in listing.read_all(open_storage(storage)) if task in ("", run.task)]
    if not summaries:
        raise RunError(
            f"{storage} holds no run{f' of the task {task}' if task else ''}; train one, or name another --storage."
        )
    sets = sorted({name for run in summaries for name in run.sets})
    if sets and by not in sets:
        raise RunError(f"--by is {by}; these runs have: {', '.join(sets)}.")
    text.print_ranked(summaries, by)
    if by.startswith("test"):
        print("ORACLE: ranked by a test set. The first is no honest choice; rank by val.")
    if csv is not None:
        _refuse_in_run(csv)
        listing.write_csv(csv, summaries)


def show(run: Name, storage: str = _RUNS) -> None:
    """Show one run: state, launches, numbers of every set, decision, comparisons, scorings.

    Args:
        run: The run.
        storage: Folder or URI of the runs.
    """
    summary = listing.find(run, open_storage(storage, run, needs_judged))
    record = summary.record
    seconds = f", {record.seconds:.0f} s" if record.seconds else ""
    print(f"{summary.folder.name}: {summary.state}{seconds}")
    if summary.reason:
        print(f"  {summary.reason}")
    for launch in record.launches:
        kind = f"workers {launch.workers}, {launch.device}"
        print(f"  launch {listing.when(launch.time)}, {kind}, Assay {launch.stamp.get('assay')}")
    for warning in record.warnings:
        print(f"  warning: {warning}")
    for line in record.masks_said():
        print(f"  {line}")
    if summary.result:
        text.print_result(summary.result)
        text.print_comparisons(summary.folder)
    page = summary.folder / "report.html"
    remedy = f"none yet; assay report {summary.folder}" if summary.result else "none"
    print(f"\nreport: {page if page.exists() else remedy}")


def compare_runs(
    first: Name,
    others: Annotated[list[str], tyro.conf.Positional],
    storage: str = _RUNS,
    json: Path | None = None,
) -> None:
    """Compare the first run with each other one on the same test rows.

    Args:
        first: The run in question.
        others: What it is compared with.
        storage: Folder or URI of the runs.
        json: File to write the comparisons to as well.
    """
    summaries = [listing.judged(name, open_storage(storage, name)) for name in (first, *others)]
    if len(listing.without_copies(summaries)) < len(summaries):
        raise RunError(
            f"A run is named twice in {first} {' '.join(others)}, or beside a copy of its folder; name each once."
        )
    alike = len({run.folder.name for run in summaries}) < len(summaries)
    named = {str(run.folder) if alike else run.folder.name: run for run in summaries}
    comparisons = compare({name: run.predictions() for name, run in named.items()})
    text.print_compared(comparisons, named)
    plural = "s" * (len(comparisons) != 1)
    print(
        f"95 % intervals over groups; p corrected for {len(comparisons)} comparison{plural} (Holm)."
    )
    if any(run.result and run.result.oracle for run in summaries):
        print("ORACLE: val was of the test domain; the numbers of that run are upper bounds.")
    for name, run in named.items():
        if run.result and run.result.transductive:
            print(
                f"TRANSDUCTIVE: {name} saw images of the test domain in training, without labels."
            )
    if json is not None:
        _refuse_in_run(json)
        write_json(json, to_json(comparisons))


def _refuse_in_run(path: Path) -> None:
    """Refuse to write among the files of a run, which would be gone."""
    if (path.parent / "run.json").exists():
        raise ConfigError(f"{path} would lie among the files of a run; name a file elsewhere.")


@dataclass(frozen=True)
class Judge:
    """Judge a run again from its predictions; the test scoring is recorded as one more."""

    run: Name
    """The run."""
    storage: str = _RUNS
    """Folder or URI of the runs."""
    tasks: Path = Path("tasks")
    """Folder of the task files; the run's is the one of its task's name."""
    decide: DecideConfig = _DECIDE
    """How answers are made; what is not given stays as the run has it."""


def _default_judge(arguments: Sequence[str]) -> Judge:
    """Tell what `assay judge RUN` starts from: how the run was judged before."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--storage", default=_RUNS)
    storage = early.parse_known_args(arguments)[0].storage
    run = listing.find(arguments[0], open_storage(storage, arguments[0]))
    config = read_config(run.folder)
    decide = from_dict(DecideConfig, config.get("decide", {}))
    return Judge(arguments[0], storage, decide=decide)


def judge_again(command: Judge) -> None:
    """Judge a run, note the settings of `decide`, and make its report again.

    Raises:
        RunError: the run is not finished, is being written, or its task is not in the folder.
    """
    from assay.experiment.judge import judge  # torch comes with these, and takes seconds
    from assay.runs.folder import Run
    from assay.train.source import load_task

    summary = listing.find(command.run, open_storage(command.storage, command.run, needs_judged))
    folder = summary.folder.absolute()
    if not (summary.result or summary.is_stale):
        raise RunError(
            f"{folder.name} cannot be judged again ({summary.why}); give a run that is finished."
        )
    task = load_task(_task_of(summary, command.tasks))
    config = from_dict(task.Config, read_config(folder))
    config = dataclasses.replace(config, decide=command.decide)
    with Run(folder).lease():
        result = judge(folder, task, config, folder.parent)
        write_config(folder, to_dict(config))
        write_report(folder)
    # a scoring whose rule was not recorded may have been by this one
    same = [s for s in result.scorings if not s.graph and s.rule in (result.rule, "not recorded")]
    print(f"This is scoring {len(same)} of the test sets of {folder.name} by {result.rule}.\n")
    show(str(folder))


def _task_of(run: RunSummary, tasks: Path) -> "TaskSource":
    """Read a run's task by its name from the user's own files; what lies in the run is only read.

    Raises:
        RunError: there is no such file.
    """
    from assay.experiment.identity import digest_syntax
    from assay.train.source import TaskSource

    path = tasks / f"{run.task}.py"
    if Path(run.task).name != run.task or not path.is_file():
        raise RunError(
            f"{run.folder.name} is of the task {run.task!r} and there is no {path}; run the command where that file is, or name its folder by --tasks."
        )
    source = TaskSource.read(path)
    code = run.record.code or {}
    if code.get("task") != digest_syntax(source.code):
        print(
            f"{path} is not, or not known to be, the file that {run.folder.name} was trained by; it is judged by the file as it is now.",
            file=sys.stderr,
        )
    return source


def make_report(run: Name, storage: str = _RUNS) -> None:
    """Make report.html again, from the run's directory alone.

    Args:
        run: The run.
        storage: Folder or URI of the runs.
    """
    folder = listing.find(run, open_storage(storage, run, needs_judged)).folder
    with writing(folder):
        page = write_report(folder)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


def make_masks(words: Sequence[str]) -> None:
    """Make or read the masks that a task learns from, say where they are, and stop.

    A mask that a person then corrects is read back by the same options, and never written again.

    Args:
        words: The task's file, if not tasks/segment.py, and its options.

    Raises:
        RunError: the task has no masks.
    """
    from assay.data.masks import account
    from assay.experiment.options import parse  # torch comes with these, and takes seconds
    from assay.experiment.places import absolute, storage_of
    from assay.train.source import TaskSource, load_task

    has_path = bool(words) and words[0].endswith(".py")
    path, options = (words[0], words[1:]) if has_path else ("tasks/segment.py", words)
    task = load_task(TaskSource.read(path))
    config, resources, _ = parse(task, options)
    manifest = task.manifest(absolute(config), storage_of(resources))
    if not manifest.masks:
        raise RunError(f"{path} learns from no masks; name the file of a task that does.")
    for kind, keys in manifest.masks.items():
        folders = sorted({str(Path(manifest.files[key]).parent) for key in keys})
        print(f"{len(keys)} masks ({kind}): {', '.join(folders)}")
        for sheet in (Path(folder) / "contact.png" for folder in folders):
            if sheet.exists():
                print(f"to look at: {sheet}")
    for name, counts in account.of_table(manifest.table).items():
        for line in counts.sentences():
            print(f"masks ({name}): {line}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 and one sentence where the user can mend something."""
    with one_sentence():
        words = plain_paths(sys.argv[1:] if arguments is None else arguments)
        _refuse_empty(words)
        if words == ["--version"]:
            print(assay.__version__)
        elif words[:1] == ["masks"]:
            make_masks(words[1:])
        elif words[:1] == ["submit"]:
            submit(words[1:])
        elif words[:1] == ["judge"] and words[1:] and not words[1].startswith("-"):
            default = _default_judge(words[1:])
            judge_again(tyro.cli(Judge, args=words[1:], default=default, prog="assay judge"))
        else:
            _dispatch(words)


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse empty words, each of which would mean this folder, or any run."""
    for before, word in pairwise(words):
        if not word.strip() and not before.startswith("-"):
            raise ConfigError(
                f"A word of assay {words[0]} is empty, as where a variable of the shell is not set; give what it stands for."
            )


def _dispatch(words: Sequence[str]) -> None:
    commands: dict[str, Any] = {
        "runs": runs,
        "show": show,
        "compare": compare_runs,
        "judge": Judge,
        "report": make_report,
        "promote": registry.promote_run,
        "registry": registry.show_registry,
        "rollback": registry.rollback,
        "serve": serve.Serve,
        "predict": serve.predict,
        "doctor": doctor,
    }
    parsed = tyro.extras.subcommand_cli_from_dict(
        commands, args=words, prog="assay", description=__doc__
    )
    if isinstance(parsed, serve.Serve):
        serve.serve(parsed, words)
    if isinstance(parsed, Judge):
        raise RunError(
            "The run must come first, since the options change its settings; write assay judge RUN --decide.coverage 0.95."
        )
