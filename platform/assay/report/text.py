"""What is printed of runs: numbers with intervals, differences, rankings."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.files import read_json
from assay.metrics.compare import SIGNIFICANT, compare
from assay.metrics.estimate import Estimate, _signed
from assay.runs import listing
from assay.runs.listing import RunSummary, bracket
from assay.runs.results import read_result


def print_ranked(runs: Sequence[RunSummary], by: str) -> None:
    """Print the runs, the best on the set `by` first; then those that have no result, and why.

    Only runs of one task and rule, with the same rows in every set, share a table.
    """
    tables: dict[Any, list[RunSummary]] = {}
    for run in runs:
        if run.score(by):
            tables.setdefault((run.task, run.rule, *sorted(run.rows.items())), []).append(run)
    for own in tables.values():
        _print_table(sorted(own, key=lambda run: (-_value(run, by), run.folder.name)), by)
        if own[0].tests:
            _print_tries([run for run in runs if run.result and run.tests == own[0].tests])
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
    sets = first.result["sets"]
    tests = [name for name in sets if name.startswith("test")]
    sizes = [f"{name} {own['num']} in {own['num_groups']}" for name, own in sets.items()]
    print(f"{first.task}, {first.rule}, ranked by {next(iter(sets[by]['metrics']))} on {by}")
    print(f"rows in groups: {', '.join(sizes)}")
    equal = _inseparable(ranked, by)
    rows = []
    for place, run in enumerate(ranked, 1):
        val = run.score("val")
        rows.append({
            "": f"{place}{'~' if run.folder in equal else ''}",
            "run": run.folder.name.removeprefix(f"{run.task}-"), "seed": str(run.result["seed"]),
            "val": f"{val.value:.3f}" if val else "", **{name: bracket(run.score(name)) for name in tests},
            "began": run.began, "s": f"{run.record.get('seconds') or 0:.0f}",
        })  # fmt: skip
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:{widths[key]}s}" for key in widths).rstrip())


def _print_tries(runs: Sequence[RunSummary]) -> None:
    """How often the same test rows were looked at: the more, the less the best of them means."""
    num = sum(len(run.result["scorings"]) for run in runs)
    tried = sum(run.result["tried"] for run in runs)
    print(
        f"test scorings of these rows: {num}, of {len(runs)} runs; configurations tried: {tried}\n"
    )


def _inseparable(ranked: Sequence[RunSummary], by: str) -> set[Path]:
    if len(ranked) < 2:
        return set()
    tables = {str(run.folder): run.predictions() for run in ranked}
    return {Path(c.name) for c in compare(tables, [by]) if c.p_holm >= SIGNIFICANT}


def _value(run: RunSummary, name: str) -> float:
    score = run.score(name)
    return score.value if score else -1.0


def _print_scorings(run: RunSummary) -> None:
    result, scorings = run.result, run.result["scorings"]
    upper = " (an upper bound: val is of the test domain)" if result["oracle"] else ""
    print(f"\nrule: {run.rule}{upper}; seed {result['seed']}; tried {result['tried']}")
    for place, scoring in enumerate(scorings, 1):
        time = listing.when(scoring["time"])
        print(
            f"  test scored ({place} of {len(scorings)}): {time}, rule {scoring['rule']}, code {scoring['code']}"
        )
    decision = result.get("decision") or {}
    fitted = [f"{key} {v:.4g}" for key, v in decision.items() if isinstance(v, float)]
    if fitted:
        print(f"  decision, fitted on val: {', '.join(fitted)}")


def _print_set(name: str, own: Mapping[str, Any]) -> None:
    print(f"\n{name}: {own['num']} rows in {own['num_groups']} groups")
    for key, score in own["metrics"].items():
        text = bracket(Estimate(**score)) if score else "not defined for these rows"
        print(f"  {key.replace('_', ' '):20s} {text}")
    if own.get("worst_domain"):
        column, value = own["worst_domain"]
        score = Estimate(**own["domains"][column][value])
        print(f"  {'worst ' + column:20s} {bracket(score)} {value}")


def _print_beside(folder: Path) -> None:
    path = folder / "comparison.json"
    comparisons = read_json(path)["comparisons"] if path.exists() else []
    if comparisons:
        print("\ncompared")
    for c in comparisons:
        gain = _signed(Estimate(**c["difference"]))
        print(f"  {c['set']}, {c['name']}: {gain}, p = {c['p_holm']:.2g}: {c['verdict']}")


def print_run(folders: Mapping[str, Path]) -> None:
    """Print the numbers of a run and its baselines, and the differences between them."""
    results = {name: read_result(folder) for name, folder in folders.items()}
    method, first = next(iter(results.items()))
    compared = json.loads((folders[method] / "comparison.json").read_text())["comparisons"]
    oracle = "  ORACLE: val is of the test domain, an upper bound" if first["oracle"] else ""
    print(
        f"\nShares with 95 % intervals over groups; {first['rule']}; seed {first['seed']}{oracle}"
    )
    for test in (name for name in first["sets"] if name.startswith("test")):
        own = first["sets"][test]
        print(f"\n{test}: {own['num']} images of {own['num_groups']} groups")
        for name, result in results.items():
            for key in _shown(result["sets"][test]["metrics"]):
                label = name if key == next(iter(own["metrics"])) else ""
                print(
                    f"  {label:12s} {key.replace('_', ' '):20s} {_bracket(result['sets'][test]['metrics'][key])}"
                )
        for c in (c for c in compared if c["set"] == test):
            d = c["difference"]
            print(
                f"  {method} - {c['name']}: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], "
                f"p = {c['p_holm']:.2g}: {c['verdict']}"
            )
    if len(first["scorings"]) > 1:
        print(
            f"\nThis is scoring {len(first['scorings'])} of the test sets of this run.",
            file=sys.stderr,
        )
    print()
    for name, folder in folders.items():
        print(f"{name}: {folder}")


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    """What is printed: the main score, groups, and the task's own; the report has the rest."""
    standard = {"nll", "ece", "macro_f1", "calibrated_nll", "calibrated_ece", "vote_accuracy"}
    return [key for key, value in metrics.items() if value and key not in standard]


def _bracket(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
