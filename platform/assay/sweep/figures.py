"""What a search for hyperparameters shows: history, importance, Pareto front, budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from assay.metrics.figure import Figure, Series
from assay.sweep.trial import Outcome

Ended = Sequence[tuple[FrozenTrial, Outcome]]


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


def budget_of(found: Sequence[Outcome], epochs: int) -> Budget:
    """The budget of trials that would have had so many epochs each, unless their own patience ended them."""
    full = sum(epochs if one.state == "stopped" else one.epochs for one in found)
    return Budget(spent=sum(one.epochs for one in found), full=full)


def figures(
    trials: Ended,
    objectives: Sequence[str],
    shares: Mapping[str, float],
    best: Sequence[FrozenTrial],
) -> list[Figure]:
    """Those that there is something to show of."""
    found = [history(trials, objectives[0]), looks(trials)]
    if shares:
        found.append(importance(shares, sum(o.state == "finished" for _, o in trials)))
    if len(objectives) > 1:
        found.append(front(trials, objectives, best))
    return [figure for figure in found if figure is not None]


def history(trials: Ended, objective: str) -> Figure | None:
    """Each trial's value, and the best until then of those that finished."""
    points = [(float(place), o.value(objective), o.state) for place, (_, o) in enumerate(trials, 1)]
    known = [(x, y, state) for x, y, state in points if y is not None]
    if not known:
        return None
    better = max if objective == "score" else min
    best: list[tuple[float, float]] = []
    for x, y, state in known:
        if state == "finished":
            best.append((x, better(y, best[-1][1]) if best else y))
    series = {}
    for state in ("finished", "stopped"):
        own = [(x, y) for x, y, s in known if s == state]
        if own:
            series[state] = Series(x=[x for x, _ in own], y=[y for _, y in own])
    if best:
        series["best so far"] = Series(x=[x for x, _ in best], y=[y for _, y in best])
    failed = sum(o.state == "failed" for _, o in trials)
    return Figure(
        title="History", kind="points", x="trial", y=f"{objective} of val", series=series,
        caption=f"n = {len(trials)} trials, {failed} failed and not shown. Stopped: the best look until then.",
    )  # fmt: skip


def looks(trials: Ended) -> Figure | None:
    """What early stopping saw: the best looks of val over the epochs, of a few trials."""
    own = {
        f"trial {t.number}": Series(
            x=[float(epoch) for epoch, _ in o.curve], y=[score for _, score in o.curve]
        )
        for t, o in sorted(trials, key=lambda one: -(one[1].score or 0.0))[:6]
        if o.curve
    }
    if not own:
        return None
    return Figure(
        title="Looks at val", kind="line", x="epoch", y="best score until then", series=own,
        caption=f"The {len(own)} best of {len(trials)} trials.",
    )  # fmt: skip


def importance(shares: Mapping[str, float], num: int) -> Figure:
    """PED-ANOVA."""
    return Figure(
        title="Importance", kind="bar", x="share", y="setting",
        series={"share": Series(x=list(shares), y=list(shares.values()))},
        caption=f"PED-ANOVA of the best quarter of {num} finished trials; trials that were stopped early are not in it. Few trials make a rough figure.",
    )  # fmt: skip


def front(trials: Ended, objectives: Sequence[str], best: Sequence[FrozenTrial]) -> Figure | None:
    """The first two objectives, and the trials that no other is better than in all."""
    numbers = {t.number for t in best}
    first, second = objectives[:2]
    sides: dict[str, list[tuple[float, float]]] = {"Pareto front": [], "others": []}
    for t, o in trials:
        x, y = o.value(second), o.value(first)
        if x is not None and y is not None and o.state == "finished":
            sides["Pareto front" if t.number in numbers else "others"].append((x, y))
    series = {
        name: Series(x=[x for x, _ in own], y=[y for _, y in own])
        for name, own in sides.items()
        if own
    }
    if not series:
        return None
    return Figure(
        title="Pareto front", kind="points", x=second, y=first, series=series,
        caption="Latency is of one image through the model in the trial's process, beside the other trials."
        if second == "latency_ms" else "No other trial is better in every objective.",
    )  # fmt: skip
