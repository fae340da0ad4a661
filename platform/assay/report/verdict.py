"""What a report leads with: which run is better on which set, in one sentence, and the numbers behind it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate
from assay.report.filters import listed, lower
from assay.report.svg import number
from assay.runs.record import RunRecord
from assay.runs.results import Comparisons, Result


@dataclass(frozen=True)
class Panel:
    """One test set at the head of the page."""

    set: str
    metric: str
    """Name of the main score."""
    value: Estimate
    comparisons: Sequence[Comparison]
    """Of the main score on this set with the baselines."""


@dataclass(frozen=True)
class Verdict:
    """What the page leads with."""

    headline: str
    method: str
    """Name of the run."""
    panels: Sequence[Panel]


def find_verdict(
    run: RunRecord,
    result: Result,
    compared: Comparisons | None,
    tests: list[str],
    names: Mapping[str, str],
) -> Verdict:
    """Find the headline, and for each test set the method, its baselines and their differences."""
    panels = []
    for test in tests:
        metric, value = result.sets[test].main
        comparisons = [
            comparison
            for comparison in (compared.comparisons if compared else ())
            if comparison.set == test and comparison.metric == metric
        ]
        panels.append(Panel(test, metric, value, comparisons))
    method = compared.method if compared else run.name or run.task
    sentences = _verdicts(panels, names)
    if not sentences:
        values = [f"{number(panel.value.value)} on {names[panel.set]}" for panel in panels]
        label = result.measure(panels[0].metric).label
        headline = f"{method}: {lower(label)} {listed(values)}."
    else:
        headline = f"{method} {'; it '.join(sentences)}."
    return Verdict(headline, method, panels)


_THAN = {
    "better": "better than",
    "worse": "worse than",
    "": "not significantly different from",
    "undecided": "not decided (too few or too unequal groups) against",
}


def _verdicts(panels: Iterable[Panel], names: Mapping[str, str]) -> list[str]:
    """Say on which sets the method is better, worse, or not told apart; baselines that fared alike together."""
    outcomes: dict[str, dict[str, list[str]]] = {}
    for panel in panels:
        for comparison in panel.comparisons:
            sides = outcomes.setdefault(comparison.name, {})
            side = "undecided" if comparison.difference.undecided else comparison.side
            sides.setdefault(_THAN[side], []).append(names[comparison.set])
    alike: dict[str, list[str]] = {}
    for name, sides in outcomes.items():
        parts: list[str] = []
        for words in sorted(sides, key=[*_THAN.values()].index):
            parts.append(f"{words} {'it' if parts else '{}'} on {listed(sides[words])}")
        alike.setdefault("is " + ", ".join(parts), []).append(name)
    return [words.replace("{}", listed(baselines)) for words, baselines in alike.items()]


def set_name(name: str, config: Mapping[str, Any]) -> str:
    """Name a set for a reader who does not know the names of the sets."""
    domain = config["split"].get("unseen_domain") or "domain"
    names = {
        "test_seen": f"known {plural(domain)}",
        "test_unseen": f"unseen {plural(domain)}",
        "val": "validation",
    }
    return names.get(name, name.replace("_", " "))


def plural(noun: str) -> str:
    """Write a domain's name for several of its values."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    if noun.endswith(("ch", "sh", "x", "z")):
        return f"{noun}es"
    return noun if noun.endswith("s") else f"{noun}s"
