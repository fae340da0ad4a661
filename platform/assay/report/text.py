"""What is printed of runs: numbers with intervals, differences, rankings."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.metrics.compare import compare
from assay.metrics.comparison import Comparison
from assay.metrics.decide import Decision
from assay.metrics.estimate import Estimate, bracket, signed
from assay.metrics.summary import Summary
from assay.report.svg import count
from assay.runs import listing
from assay.runs.listing import RunSummary
from assay.runs.record import read_record
from assay.runs.results import Result, read_comparisons, read_result

NOT_PRINTED = {
    "nll",
    "ece",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "calibrated_nll",
    "calibrated_ece",
    "vote_accuracy",
}
"""Standard measures that the terminal leaves to the report."""


def print_ranked(runs: Sequence[RunSummary], by: str) -> None:
    """Print the runs, the best on the set `by` first; then those that have no result, and why.

    Only runs of one task and rule, with the same rows in every set, share a table.
    """
    tables: dict[Any, list[RunSummary]] = {}
    for run in runs:
        if run.score(by):
            tables.setdefault((run.task, run.rule, *sorted(run.rows.items())), []).append(run)
    for table in tables.values():
        _print_table(sorted(table, key=lambda run: (-_value(run, by), run.folder.name)), by)
        if table[0].tests:
            _print_tries([run for run in runs if run.result and run.tests == table[0].tests])
    if tables:
        print(
            "Scores with 95 % intervals over groups. ~ does not differ significantly from the first"
        )
        print(f"(paired on {by}, corrected by Holm). Runs of different tables cannot be ranked.")
    unranked = [run for run in runs if not run.score(by)]
    if unranked:
        print("\nNot ranked:" if tables else "Not ranked:")
    for run in unranked:
        print(f"  {run.folder.name}  {run.state}  {run.began}".rstrip())
        reason = f"It has no set {by}." if run.result else run.reason
        print(f"    {reason}\n" if reason else "", end="")


def _print_table(ranked: Sequence[RunSummary], by: str) -> None:
    first = ranked[0]
    tests = [name for name in first.sets if name.startswith("test")]
    sizes = [
        f"{name} {summary.num} in {summary.num_groups}" for name, summary in first.sets.items()
    ]
    print(
        f"{first.task}, {first.rule}, ranked by {first.sets[by].main[0].replace('_', ' ')} on {by}"
    )
    print(f"rows in groups: {', '.join(sizes)}")
    equal = _inseparable(ranked, by)
    rows = []
    for rank, run in enumerate(ranked, 1):
        mark = "~" if run.folder in equal else ""
        rows.append({"": f"{rank}{mark}"} | _table_row(run, tests))
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:{widths[key]}s}" for key in widths).rstrip())


def _table_row(run: RunSummary, tests: Sequence[str]) -> dict[str, str]:
    val = run.score("val")
    row = {
        "run": run.folder.name.removeprefix(f"{run.task}-"),
        "seed": str(run.result.seed) if run.result else "",
        "val": f"{val.value:.3f}" if val else "",
    }
    for name in tests:
        score = run.score(name)
        row[name] = bracket(score) if score else ""
    return row | {"began": run.began, "s": f"{run.record.seconds or 0:.0f}"}


def _print_tries(runs: Sequence[RunSummary]) -> None:
    """Say how often the same test rows were looked at: the more, the less the best of them means."""
    results = [run.result for run in runs if run.result]
    num = sum(len(result.scorings) for result in results)
    tried = sum(result.tried for result in results)
    print(
        f"test scorings of these rows: {num}, of {len(runs)} run{'s' * (len(runs) != 1)}; configurations tried: {tried}\n"
    )


def _inseparable(ranked: Sequence[RunSummary], by: str) -> set[Path]:
    if len(ranked) < 2:
        return set()
    tables = {str(run.folder): run.predictions() for run in ranked}
    return {Path(c.name) for c in compare(tables, [by]) if not c.side}


def _value(run: RunSummary, name: str) -> float:
    score = run.score(name)
    return score.value if score else -1.0


def print_result(result: Result) -> None:
    """Print how a run was judged and how often, and every number of every set."""
    print(f"\nrule: {result.rule}{_marks(result)}; seed {result.seed}; tried {result.tried}")
    for number, scoring in enumerate(result.scorings, 1):
        graph = f", {scoring.graph} graph" if scoring.graph else ""
        print(
            f"  test scored ({number} of {len(result.scorings)}): {listing.when(scoring.time)}, rule {scoring.rule}, code {scoring.code}{graph}"
        )
    if result.decision:
        print(f"  decision, fitted on val: {_fitted(result.decision)}")
    for name, summary in result.sets.items():
        _print_set(name, summary)


def _marks(result: Result) -> str:
    return "".join(f"  {mark}: {why}" for mark, why in result.marks.items())


def _fitted(decision: Decision) -> str:
    fields = vars(decision).items()
    return ", ".join(f"{key} {value:.4g}" for key, value in fields if isinstance(value, float))


def _print_set(name: str, summary: Summary) -> None:
    print(f"\n{name}: {summary.num} rows in {summary.num_groups} groups")
    texts = {
        key.replace("_", " "): _estimate_of(summary, score)
        if score
        else "not defined for these rows"
        for key, score in summary.metrics.items()
    }
    if summary.worst_domain:
        column, value = summary.worst_domain
        worst = summary.domains[column][value]
        if worst.value < summary.main[1].value:  # else all fare alike
            texts[f"worst {column}"] = f"{_estimate_of(summary, worst)} ({value})"
    _print_aligned([*texts.items()], [20])


def _print_aligned(lines: Sequence[Sequence[str]], least: Sequence[int]) -> None:
    """Print lines whose first words stand in columns, as wide as the longest of each or more."""
    widths = [max([width, *(len(line[i]) for line in lines)]) for i, width in enumerate(least)]
    for *words, text in lines:
        columns = [f"{word:{width}s}" for word, width in zip(words, widths, strict=True)]
        print(f"  {' '.join(columns)} {text}")


def _estimate_of(summary: Summary, estimate: Estimate) -> str:
    """Write a number of a set with its interval, and its n where it is not that of the set."""
    return bracket(estimate) + (f" n = {estimate.num}" if estimate.num != summary.num else "")


def print_comparisons(folder: Path) -> None:
    """Print how a run compares with its baselines, if it was compared."""
    compared = read_comparisons(folder)
    if compared and compared.comparisons:
        print("\ncompared")
        for comparison in compared.comparisons:
            print(f"  {comparison.set}, {comparison.name}: {_told(comparison)}")


def print_run(folders: Mapping[str, Path]) -> None:
    """Print the numbers of a run and its baselines, and the differences between them."""
    results = {name: read_result(folder) for name, folder in folders.items()}
    method, first = next(iter(results.items()))
    compared = read_comparisons(folders[method])
    print(
        f"\nShares with 95 % intervals over groups; {first.rule}; seed {first.seed}{_marks(first)}"
    )
    if not first.tests:
        print("\nNo image is in test, so that nothing is scored or compared there.")
    for test in first.tests:
        summary = first.sets[test]
        print(f"\n{test}: {summary.num} images of {summary.num_groups} groups")
        _print_measures({name: result.sets[test] for name, result in results.items()})
        for comparison in compared.comparisons if compared else ():
            if comparison.set == test:
                print(f"  {method} - {comparison.name}: {_told(comparison)}")
    if first.num_scored > 1:
        print(
            f"\nThis is scoring {first.num_scored} of the test sets of this run.",
            file=sys.stderr,
        )
    record = read_record(folders[method])
    if record.measured:
        print(f"\n{method} {_cost(record.measured)}.")
    for line in record.leaks_said() + record.masks_said():
        print(line, file=sys.stderr)
    print()
    for name, folder in folders.items():
        print(f"{name}: {folder}")


def _print_measures(summaries: Mapping[str, Summary]) -> None:
    """Print of each run the main score, groups, and the task's own; the report has the rest."""
    lines = []
    for name, summary in summaries.items():
        for key, estimate in summary.metrics.items():
            if estimate and key not in NOT_PRINTED:
                label = name if key == summary.main[0] else ""
                lines.append((label, key.replace("_", " "), _estimate_of(summary, estimate)))
    _print_aligned(lines, [12, 20])


def _cost(measured: Mapping[str, float]) -> str:
    """Say what of a model was trained, and what it cost."""
    parts = []
    if "num_trainable" in measured:
        trained, num = count(measured["num_trainable"]), count(measured["num_params"])
        parts.append(f"trained {trained} of {num} parameters")
    if "train_s" in measured:
        parts.append(f"in {measured['train_s']:.0f} s")
    if "macs" in measured:
        parts.append(f"and costs {count(measured['macs'])} multiply-accumulates an image")
    return " ".join(parts)


def _told(comparison: Comparison) -> str:
    return f"{signed(comparison.difference)}, p = {comparison.p_holm:.2g}: {comparison.verdict}"


def print_compared(comparisons: Iterable[Comparison], runs: Mapping[str, RunSummary]) -> None:
    """Print the comparisons of the first run with each other one, set by set."""
    sets: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        sets.setdefault(comparison.set, []).append(comparison)
    for alike in sets.values():
        _print_scores(alike, runs)
        for comparison in alike:
            _print_difference(comparison, "" if len(alike) == 1 else f"against {comparison.name}: ")
        print()


def _print_scores(comparisons: Sequence[Comparison], runs: Mapping[str, RunSummary]) -> None:
    first, width = comparisons[0], max(map(len, runs))
    metric = first.metric.replace("_", " ")
    print(f"{first.set}, {metric}: {first.first.num} rows in {first.first.num_groups} groups")
    scores = {first.first_name: first.first} | {c.name: c.second for c in comparisons}
    for name, score in scores.items():
        result = runs[name].result
        seed = f", seed {result.seed}" if result else ""
        print(f"  {name:{width}s}  {bracket(score)}  {runs[name].rule}{seed}")


def _print_difference(comparison: Comparison, against: str) -> None:
    print(f"  {against}{comparison.verdict}")
    print(
        f"    difference {signed(comparison.difference)}, p = {comparison.p:.2g}, corrected p = {comparison.p_holm:.2g}"
    )
    test = comparison.mcnemar
    if test:
        sides = f"{test.only_first} right in the first alone, {test.only_second} in the other alone"
        print(f"    McNemar over {test.unit}: {sides}, p = {test.p:.2g}")
