"""What a search for hyperparameters shows: history, importance, Pareto front, budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from assay.metrics.figure import Figure, Series
from assay.sweep.trial import Outcome

EndedTrials = Sequence[tuple[FrozenTrial, Outcome]]


Points = Sequence[tuple[float | int, float | int]]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Epochs of all trials together."""

    spent: int
    full: int
    """What the same trials would have taken without early stopping; failed ones count as they are."""

    @property
    def saved(self) -> float:
        """Share of the full budget that was not spent."""
        return 1 - self.spent / self.full if self.full else 0.0

    def __str__(self) -> str:
        """Return a text such as "90 of 200 epochs (55 % saved by early stopping)"."""
        return f"{self.spent} of {self.full} epochs ({self.saved:.0%} saved by early stopping)"


def budget_of(outcomes: Sequence[Outcome], epochs: int) -> Budget:
    """Add up trials that would have had so many epochs each, unless their own patience ended them."""
    full = sum(epochs if outcome.state == "stopped" else outcome.epochs for outcome in outcomes)
    return Budget(spent=sum(outcome.epochs for outcome in outcomes), full=full)


def figures(
    trials: EndedTrials,
    objectives: Sequence[str],
    shares: Mapping[str, float],
    best: Sequence[FrozenTrial],
) -> list[Figure]:
    """Make those that there is something to show of."""
    candidates = [history(trials, objectives[0]), curves(trials)]
    if shares:
        candidates.append(importance(shares, sum(o.state == "finished" for _, o in trials)))
    if len(objectives) > 1:
        candidates.append(front(trials, objectives, best))
    return [figure for figure in candidates if figure is not None]


def history(trials: EndedTrials, objective: str) -> Figure | None:
    """Show each trial's value, and the best until then of those that finished."""
    better = max if objective == "score" else min
    points: dict[str, list[tuple[float, float]]] = {
        "finished": [],
        "stopped": [],
        "best so far": [],
    }
    for x, (_, outcome) in enumerate(trials, 1):
        y = outcome.value(objective)
        if y is None:
            continue
        points[outcome.state].append((x, y))
        if outcome.state == "finished":
            best = points["best so far"]
            best.append((x, better(y, best[-1][1]) if best else y))
    failed = sum(outcome.state == "failed" for _, outcome in trials)
    return _points(
        "History",
        f"n = {len(trials)} trials, {failed} failed and not shown. Stopped: the best look until then.",
        ("trial", f"{objective} of val"),
        points,
    )


def curves(trials: EndedTrials) -> Figure | None:
    """Show what early stopping saw: the best looks of val over the epochs, of a few trials."""
    best = sorted(trials, key=lambda pair: -(pair[1].score or 0.0))[:6]
    series = {f"trial {trial.number}": _series(o.curve) for trial, o in best if o.curve}
    if not series:
        return None
    return Figure(
        title="Looks at val",
        kind="line",
        x="epoch",
        y="best score until then",
        series=series,
        caption=f"The {len(series)} best of {len(trials)} trials.",
    )


def importance(shares: Mapping[str, float], num: int) -> Figure:
    """Show the settings' shares by PED-ANOVA."""
    return Figure(
        title="Importance",
        kind="bar",
        x="share",
        y="setting",
        series={"share": Series(x=list(shares), y=list(shares.values()))},
        caption=f"PED-ANOVA of the best quarter of {num} finished trials; trials that were stopped early are not in it. Few trials make a rough figure.",
    )


def front(
    trials: EndedTrials, objectives: Sequence[str], best: Sequence[FrozenTrial]
) -> Figure | None:
    """Show the first two objectives, and the trials that no other is better than in all."""
    numbers = {trial.number for trial in best}
    first, second = objectives[:2]
    points: dict[str, list[tuple[float, float]]] = {"Pareto front": [], "others": []}
    for trial, outcome in trials:
        x, y = outcome.value(second), outcome.value(first)
        if x is not None and y is not None and outcome.state == "finished":
            points["Pareto front" if trial.number in numbers else "others"].append((x, y))
    if second == "latency_ms":
        caption = "Latency is of one image through the model in the trial's process, beside the other trials."
    else:
        caption = "No other trial is better in every objective."
    return _points("Pareto front", caption, (second, first), points)


def _points(
    title: str,
    caption: str,
    axes: tuple[str, str],
    points: Mapping[str, Points],
) -> Figure | None:
    series = {name: _series(pairs) for name, pairs in points.items() if pairs}
    if not series:
        return None
    x, y = axes
    return Figure(title=title, kind="points", x=x, y=y, series=series, caption=caption)


def _series(points: Points) -> Series:
    return Series(x=[float(x) for x, _ in points], y=[y for _, y in points])
