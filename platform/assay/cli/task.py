"""What a task script does: `main(__file__)`.

Parses the command line from the task's settings, builds manifest, store and split, trains the run
and its baselines, judges them, ships the bundle, and prints the numbers. Run again, it recognises
what is finished and shows it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assay.config import to_dict
from assay.errors import RunError, one_sentence
from assay.experiment.earlier import find
from assay.experiment.judge import is_decided, judge, write_comparison
from assay.experiment.options import parse
from assay.experiment.places import absolute, storage_of
from assay.experiment.resources import Resources
from assay.experiment.run import complete, is_whole, prepare, read_data
from assay.experiment.workers import cluster
from assay.report.page import write_report
from assay.report.text import print_run
from assay.runs.folder import Run
from assay.runs.remote import writing
from assay.runs.results import read_comparisons, write_config
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig


def main(path: str, arguments: Sequence[str] | None = None) -> None:
    """Run a task script; exits with 2 and one sentence where the user can mend something."""
    with one_sentence():
        source = TaskSource.read(path)
        task = load_task(source)
        config, resources, launch = parse(task, sys.argv[1:] if arguments is None else arguments)
        experiment(source, config, resources, again=launch.again, reuse=launch.reuse)


def experiment(
    source: TaskSource,
    config: TaskConfig,
    resources: Resources,
    again: bool = False,
    reuse: bool = False,
) -> Run:
    """Train, judge and show a run and its baselines; what is finished is only shown.

    A finished run that was judged by other settings of `decide` is judged again, which is recorded.
    """
    storage = storage_of(resources)
    task = load_task(source)
    config = absolute(config)
    manifest = task.manifest(config, storage)
    named = {"": config} | dict(task.baselines(config))
    runs = {name: find(source, c, manifest, storage, again, reuse) for name, c in named.items()}
    is_changed = False
    if not all(is_whole(run) for run in _worthwhile(runs, named).values()):
        with cluster(resources):
            data = read_data(source, manifest, config, resources, storage)
            for name, run in runs.items():
                if not is_whole(run) and name in _worthwhile(runs, named):
                    with run.lease():
                        if not is_whole(run):  # as another machine may have made it meanwhile
                            prepared = prepare(data, named[name], name or source.name)
                            complete(prepared, run, resources)
                            is_changed = True
    runs = _worthwhile(runs, named)
    folders = {name or source.name: run.folder for name, run in runs.items()}
    for name, run in runs.items():
        if not is_decided(run.folder, named[name]):
            with run.lease():
                judge(run.folder, task, named[name], storage)
                write_config(run.folder, to_dict(named[name]))
            is_changed = True
    _write_reports(folders, is_changed)
    print_run(folders)
    print(f"report: {runs[''].folder / 'report.html'}")
    return runs[""]


def _worthwhile(runs: Mapping[str, Run], named: Mapping[str, TaskConfig]) -> dict[str, Run]:
    """Leave out baselines that only let copies lie across the given sets, once the method's run has met none there."""
    method, first = named[""], runs[""]
    leaks = first.record.leaks
    if not is_whole(first) or leaks is None or any(leak.near for leak in leaks.values()):
        return dict(runs)

    def is_same(config: TaskConfig) -> bool:
        near = config.split.near_duplicates
        return replace(method, split=replace(method.split, near_duplicates=near)) == config

    return {name: run for name, run in runs.items() if not name or not is_same(named[name])}


def _write_reports(folders: Mapping[str, Path], is_changed: bool) -> None:
    """Compare the runs and make their pages, where one was judged just now (clocks differ), or later than the page says, or the comparison is lost."""
    newest = max((folder / "result.json").stat().st_mtime for folder in folders.values())
    first = next(iter(folders.values()))
    for folder in folders.values():
        page = folder / "report.html"
        is_lost = folder == first and not _is_compared(folder)
        if is_changed or is_lost or not page.exists() or page.stat().st_mtime < newest:
            with writing(folder):
                if folder == first:
                    write_comparison(folders)
                write_report(folder)


def _is_compared(folder: Path) -> bool:
    try:
        return read_comparisons(folder) is not None
    except RunError:  # damaged: it is made again
        return False
