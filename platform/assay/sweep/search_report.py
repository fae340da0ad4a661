"""What a sweep of hyperparameters says: sweep.json, report.html, the table of trials, and what the command prints."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from optuna.trial import FrozenTrial

from assay.files import write_json
from assay.report.page import fill_page, write_page
from assay.report.text import print_run
from assay.runs.folder import Run
from assay.runs.results import read_result
from assay.space import rounded
from assay.sweep.figures import Budget, EndedTrials, budget_of, figures
from assay.sweep.parallel import axes_of, render_parallel
from assay.sweep.study import JOURNAL, Search, importances
from assay.sweep.trial import Outcome, describe_values, write_trials
from assay.sweep.tune import Halving


def report_search(folder: Path, search: Search, halving: Halving | None, selected: Run) -> int:
    """Write the sweep's files and print what they say; returns how many trials failed.

    Args:
        folder: of the sweep.
        search: ended.
        halving: how trials were stopped early.
        selected: the run that test was scored for.
    """
    trials = [(trial, search.outcome_of(trial)) for trial in search.trials]
    outcomes = [outcome for _, outcome in trials]
    params = {trial.number: rounded(search.space, trial.params) for trial, _ in trials}
    rows = [_row(trial, outcome, params[trial.number]) for trial, outcome in trials]
    write_trials(folder, rows)
    budget = budget_of(outcomes, search.base.train.epochs)
    best, shares, result = search.best(), importances(search.study), read_result(selected.folder)
    summary = {
        "sampling": search.settings.sampling,
        "objectives": search.settings.objectives,
        "tried": len(trials),
    }
    front = [
        {"run": trial.user_attrs["run"], "values": trial.values, "params": params[trial.number]}
        for trial in best
    ]
    record = {
        "schema": 1,
        **summary,
        "selected": selected.folder.name,
        "params": params[best[0].number],
        "front": front,
        "budget": asdict(budget),
        "importance": shares,
        "trials": rows,
    }
    write_json(folder / "sweep.json", record)
    page = fill_page(
        "search.html",
        **summary,
        id=folder.name,
        lines=rows,
        chosen=selected.folder.name,
        best=best,
        params=params,
        shares=shares,
        budget=budget,
        halving=halving,
        tests={name: result.sets[name] for name in result.tests},
        val=result.sets["val"],
        num_scored=result.num_scored,
        coordinates=Markup(render_parallel(axes_of(search.space, trials), trials)),
        figures=figures(trials, search.settings.objectives, shares, best),
    )
    _print(trials, params[best[0].number], budget, selected, write_page(folder, page))
    return sum(outcome.state == "failed" for outcome in outcomes)


def _row(trial: FrozenTrial, outcome: Outcome, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "run": trial.user_attrs.get("run", ""),
        "state": outcome.state,
        "reason": outcome.reason,
        "score": outcome.score,
        "nll": outcome.nll,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        **outcome.measured,
        **params,
    }


def _print(
    trials: EndedTrials, best: Mapping[str, Any], budget: Budget, selected: Run, path: Path
) -> None:
    counts = Counter(outcome.state for _, outcome in trials)
    states = ", ".join(f"{num} {state}" for state, num in counts.items())
    print(f"{len(trials)} trials: {states}; {budget}")
    print(f"selected on val: {describe_values(best)}")
    print_run({selected.folder.name: selected.folder})
    print(f"{len(trials)} configurations were tried; test was scored for the selected one alone.")
    print(f"study: {path.parent / JOURNAL}\nreport: {path}")
