"""The `assay` command: what lies on disk, read, compared and judged.

    assay runs                   every run with its numbers, ranked by val
    assay show RUN               one run
    assay compare A B [C ...]    is A better, on the same test rows?
    assay judge RUN              judge again, by other settings of `decide`; recorded as such
    assay report RUN             make report.html again

A RUN is a folder, or the name of one below --storage.
"""

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import tyro

import assay
from assay import compare, report
from assay.decide import DecideConfig
from assay.errors import AssayError, RunError

SCHEMA = 1
Name = Annotated[str, tyro.conf.Positional]
_DECIDE = DecideConfig()
Storage = Annotated[Path, tyro.conf.arg(help="Folder of the runs.")]


@dataclass(frozen=True)
class Found:
    """What a run's directory says of itself."""

    folder: Path
    record: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def rule(self) -> str:
        """The rule val was drawn by; an oracle stands out."""
        rule = (self.result or {}).get("rule", "")
        return "ORACLE" if rule == "oracle" else rule.removesuffix(" validation")

    def score(self, name: str) -> dict[str, Any] | None:
        """The main score of a set."""
        found = ((self.result or {}).get("sets") or {}).get(name)
        return next(iter(found["metrics"].values())) if found else None


def runs(
    storage: Storage = Path("runs"), task: str = "", by: str = "val", csv: Path | None = None
) -> None:
    """List all runs, the best first.

    Args:
        storage: Folder of the runs.
        task: Only those of this task.
        by: Set to rank by; by a test set is an oracle's choice and said to be one.
        csv: File to write the table to as well.
    """
    found = [r for r in _all(storage) if not task or r.record.get("task") == task]
    if not found:
        raise RunError(
            f"{storage} holds no run{f' of the task {task}' if task else ''}; train one, or name another --storage."
        )
    known = sorted({name for r in found if r.result for name in r.result["sets"]})
    if by not in known and known:
        raise RunError(f"--by is {by}; these runs have: {', '.join(known)}.")
    found.sort(key=lambda r: (-(r.score(by) or {"value": -1})["value"], r.folder.name))
    tests = [name for name in known if name.startswith("test")]
    rows = [_row(r, ["val", *tests]) for r in found]
    _print_table(rows)
    judged = sum(bool(r.result) for r in found)
    print(f"\n{len(found)} runs, ranked by {by}; {judged} had their test sets scored.")
    print(
        "Score and 95 % interval over groups; overlapping intervals do not rank: assay compare tells."
    )
    if by.startswith("test"):
        print(
            "ORACLE: ranked by a test set. The first of this list is no honest choice; rank by val."
        )
    if csv is not None:
        _write_csv(csv, rows)


def _row(run: Found, sets: Sequence[str]) -> dict[str, str]:
    launches = run.record.get("launches") or [{}]
    row = {
        "run": run.folder.name,
        "state": run.record.get("state", "damaged"),
        "seed": str((run.result or {}).get("seed", "")),
        "rule": run.rule,
    }
    for name in sets:
        score = run.score(name)
        row[name] = _bracket(score) if score else ""
        row[f"n {name}"] = f"{score['num']}/{score['num_groups']}" if score else ""
    row["when"] = _when(launches[-1]["time"]) if "time" in launches[-1] else ""
    row["seconds"] = f"{run.record['seconds']:.0f}" if "seconds" in run.record else ""
    row["note"] = run.record.get("reason", "")
    return row


def show(run: Name, storage: Storage = Path("runs")) -> None:
    """Show one run: state, numbers of every set, decision, warnings, scorings.

    Args:
        run: The run.
        storage: Folder of the runs.
    """
    found = _read(_folder(run, storage))
    record, result = found.record, found.result
    print(
        f"{found.folder.name}: {record.get('state', 'damaged')} {record.get('reason', '')}".rstrip()
    )
    for launch in record.get("launches", []):
        print(
            f"  launch {_when(launch['time'])}, {launch['workers']} workers, {launch['device']}, Assay {launch['assay']}"
        )
    for warning in record.get("warnings", []):
        print(f"  warning: {warning}")
    if result is None:
        return
    scorings = result["scorings"]
    chosen = f", val chose among {result['tried']}" if result["tried"] > 1 else ""
    print(
        f"\nrule: {result['rule']}{' (ORACLE: an upper bound)' if result['oracle'] else ''}; seed {result['seed']}{chosen}"
    )
    for place, scoring in enumerate(scorings, 1):
        print(
            f"  test scored ({place} of {len(scorings)}): {_when(scoring['time'])}, by {scoring['rule']}, code {scoring['code']}"
        )
    for name, own in result["sets"].items():
        print(f"\n{name}: {own['num']} images of {own['num_groups']} groups")
        for key, score in own["metrics"].items():
            print(
                f"  {key.replace('_', ' '):20s} {_bracket(score) if score else 'has no meaning here'}"
            )
        if own["worst_domain"]:
            column, value = own["worst_domain"]
            print(f"  {'worst ' + column:20s} {_bracket(own['domains'][column][value])} {value}")
    page = found.folder / "report.html"
    print(f"\nreport: {page if page.exists() else 'none yet; assay report ' + run}")


def compare_runs(
    first: Name,
    others: Annotated[list[str], tyro.conf.Positional],
    storage: Storage = Path("runs"),
    json: Path | None = None,
) -> None:
    """Compare the first run with each other one on the same test rows.

    Args:
        first: The run in question.
        others: What it is compared with.
        storage: Folder of the runs.
        json: File to write the comparisons to as well.
    """
    folders = {
        folder.name: folder for folder in (_folder(name, storage) for name in [first, *others])
    }
    found = {name: _judged(folder) for name, folder in folders.items()}
    tables = {
        name: pq.read_table(folder / "predictions.parquet") for name, folder in folders.items()
    }
    comparisons = compare.compare(tables)
    for name in dict.fromkeys(c.set for c in comparisons):
        own = [c for c in comparisons if c.set == name]
        print(
            f"\n{name}, {own[0].metric}: {own[0].first.num} rows of {own[0].first.num_groups} groups"
        )
        print(
            f"  {own[0].first_name:36s} {_bracket(dataclasses.asdict(own[0].first))}  {found[own[0].first_name].rule}"
        )
        for c in own:
            print(f"  {c.name:36s} {_bracket(dataclasses.asdict(c.second))}  {found[c.name].rule}")
            d = c.difference
            print(
                f"    difference {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {c.p:.2g}, corrected {c.p_holm:.2g}: {c.verdict}"
            )
            if c.mcnemar:
                m = c.mcnemar
                print(
                    f"    McNemar over {m.unit}: {m.only_first} right in the first alone, {m.only_second} in the second, p = {m.p:.2g}"
                )
    print(f"\n95 % intervals over groups; p corrected for {len(comparisons)} comparisons (Holm).")
    if any(r.rule == "ORACLE" for r in found.values()):
        print(
            "ORACLE: a run was selected by images of the test domain; its numbers are upper bounds."
        )
    if json is not None:
        _write(json, [c.to_dict() for c in comparisons])


def judge_again(
    run: Name,
    storage: Storage = Path("runs"),
    decide: DecideConfig = _DECIDE,
) -> None:
    """Judge a run again from its predictions; the test scoring is recorded as one more.

    Args:
        run: The run.
        storage: Folder of the runs.
        decide: How answers are made.
    """
    from assay.config import from_dict, to_dict  # torch comes with these, and takes seconds
    from assay.judge import judge
    from assay.loop import write_json
    from assay.task import TaskSource, load_task

    folder = _folder(run, storage)
    name = str(_read(folder).record.get("task", "task"))
    code = (folder / "task.py").read_bytes()
    task = load_task(TaskSource(name, code))
    config = from_dict(task.Config, _json(folder / "config.json"))
    config = dataclasses.replace(config, decide=decide)
    result = judge(folder, task, config, folder.parent)
    write_json(folder / "config.json", to_dict(config))
    report.write(folder)
    print(
        f"Scoring {len(result['scorings'])} of the test sets of {folder.name}, by {result['rule']}."
    )
    show(str(folder))


def make_report(run: Name, storage: Storage = Path("runs")) -> None:
    """Make report.html again, from the run's directory alone.

    Args:
        run: The run.
        storage: Folder of the runs.
    """
    page = report.write(_folder(run, storage))
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 and one sentence where the user can mend something."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(assay.__version__)
        return
    commands: dict[str, Any] = {
        "runs": runs, "show": show, "compare": compare_runs, "judge": judge_again, "report": make_report,
    }  # fmt: skip
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=given, description=__doc__)
    except AssayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `assay runs | head` has seen enough
        sys.stderr.close()


def _all(storage: Path) -> list[Found]:
    if not storage.is_dir():
        raise RunError(f"{storage} is no folder; name the folder of the runs by --storage.")
    return [_read(path.parent) for path in sorted(storage.glob("*/run.json"))]


def _folder(run: str, storage: Path) -> Path:
    for folder in (Path(run), storage / run):
        if (folder / "run.json").is_file():
            return folder
    raise RunError(
        f"There is no run {run!r}, neither as a folder nor below {storage}; assay runs lists them."
    )


def _read(folder: Path) -> Found:
    """A run; one that is damaged or of another version is listed with that for its reason."""
    try:
        record = _json(folder / "run.json")
    except RunError as error:
        return Found(folder, {"state": "damaged", "reason": str(error)}, None)
    path = folder / "result.json"
    result = _json(path) if path.exists() else None
    if record.get("schema", 0) > SCHEMA or (result or {}).get("schema", 0) > SCHEMA:
        return Found(folder, record | {"reason": "written by a newer Assay; update Assay"}, None)
    if result is not None and result.get("schema", 0) < SCHEMA:
        return Found(
            folder, record | {"reason": f"judged by an older Assay: assay judge {folder}"}, None
        )
    return Found(folder, record, result)


def _judged(folder: Path) -> Found:
    found = _read(folder)
    if found.result is None or not (folder / "predictions.parquet").exists():
        reason = found.record.get("reason") or f"it is {found.record.get('state', 'new')}"
        raise RunError(
            f"{folder.name} cannot be compared ({reason}); give runs that are finished and judged."
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{path} is missing or damaged; restore it, or train the run again.")
    return value


def _bracket(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    shown = [key for key in rows[0] if any(row[key] for row in rows)]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in shown}
    for row in [{key: key for key in shown}, *rows]:
        print("  ".join(f"{row[key]:{widths[key]}s}" for key in shown).rstrip())


def _write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with _opened(path) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, value: Any) -> None:
    with _opened(path) as file:
        json.dump(value, file, indent=1)


def _opened(path: Path) -> Any:
    try:
        return path.open("w", newline="")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another file.") from None
