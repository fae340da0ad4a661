"""report.html: what a run found, on one page that needs nothing else.

Made from the run's directory alone: run.json, config.json, result.json, metrics.jsonl and
split.parquet; comparison.json and samples/ where they are there. The page loads nothing, runs no
script, and holds no path of the machine it was made on; equal runs make equal pages.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.bundle.card import Card
from assay.errors import RunError
from assay.files import read_json, reading, write_whole
from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate
from assay.report import charts
from assay.report.svg import Number, count, number, render_svg
from assay.runs import record, results
from assay.runs.record import RunRecord, as_record, schema_of
from assay.runs.results import Comparisons, Result

PAGES = Path(__file__).parents[1] / "pages"


MAX_IMAGES_BYTES = 4 << 20
"""Images beyond this (as text in the page) are left out, and the page says so."""


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


def write_report(folder: Path) -> Path:
    """Make a finished run's report.html and return its path.

    Raises:
        RunError: the run is not finished, was judged by another version, or a file of it is
            missing or damaged.
    """
    page = render(folder)
    return write_page(folder, page)


def write_page(folder: Path, page: str) -> Path:
    """Write report.html into a folder, whole or not at all."""
    path = folder / "report.html"
    write_whole(path, page.encode())
    return path


def render(folder: Path) -> str:
    """Return the text of report.html; see `write_report`."""
    run, result = _finished(folder)
    config = _without_paths(results.read_config(folder))
    comparison = _comparisons(folder)
    tests = result.tests or list(result.sets)
    names = {name: _set_name(name, config) for name in result.sets}
    samples = _json(folder / "samples" / "samples.json", optional=True)
    metrics = results.read_metrics(folder / "metrics.jsonl")
    keys = dict.fromkeys(key for summary in result.sets.values() for key in summary.metrics)
    return fill_page(
        "report.html",
        id=folder.name,
        run=run,
        config=config,
        result=result,
        tests=tests,
        names=names,
        measures={key: result.measure(key) for key in keys},
        comparison=comparison,
        answer=_answer(run, result, comparison, tests, names),
        curves=charts.curves(metrics, config["train"].get("select", "")),
        epochs=metrics["epoch"],
        confusion={test: charts.confusion(result.sets[test], result.classes) for test in tests},
        trust=charts.trust(result.sets, tests, names),
        int8=charts.int8(_card(folder / "bundle"), tests),
        data=_data(folder, run),
        samples=None if samples is None else _pictures(folder / "samples", samples),
    )


def fill_page(template: str, **values: Any) -> str:
    """Fill a page of pages/ with these values."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": _signed,
        "percent": _percent,
        "p": _p,
        "time": _time,
        "duration": _duration,
        "count": count,
        "setting": _setting,
        "doubt": _doubt,
        "lowered": _lower,
        "capitalize": _capital,
        "svg": lambda figure: Markup(render_svg(figure)),
    }
    environment.globals["strip"] = _strip
    css = Markup((PAGES / "report.css").read_text())
    return environment.get_template(template).render(css=css, **values)


def _finished(folder: Path) -> tuple[RunRecord, Result]:
    """Read run.json and result.json of a run that has both."""
    values = _json(folder / "run.json")
    state = values.get("state", "new")
    if state != "finished":
        raise RunError(
            f"The run {folder.name} is {state}; only a finished run has a report: run it to the end first."
        )
    judged = _json(folder / "result.json")
    if values.get("stage") == "val":
        raise RunError(
            f"The run {folder.name} is a trial of a sweep, judged on val alone; see the sweep's report, or run it to the end by its task script and --config {folder / 'config.json'}."
        )
    _check_schema(folder, "run.json", schema_of(values), record.SCHEMA)
    _check_schema(folder, "result.json", schema_of(judged), results.SCHEMA)
    run = as_record(RunRecord, values, folder / "run.json")
    return run, results.as_result(judged, folder / "result.json")


def _check_schema(folder: Path, name: str, schema: int, newest: int) -> None:
    if schema > newest:
        raise RunError(
            f"{name} of {folder.name} has schema {schema}, this Assay knows {newest}; update Assay."
        )
    if schema < newest:
        raise RunError(
            f"{name} of {folder.name} has schema {schema}, this Assay writes {newest}; judge the run again with assay judge {folder.name}."
        )


def _comparisons(folder: Path) -> Comparisons | None:
    """Read comparison.json; None where the run was compared with no other."""
    path = folder / "comparison.json"
    values = _json(path, optional=True)
    if values is None:
        return None
    compared = as_record(Comparisons, values, path)
    return compared if compared.comparisons else None


def _card(bundle: Path) -> Card | None:
    """Read the bundle's card, if a bundle was shipped."""
    path = bundle / "bundle.json"
    values = _json(path, optional=True)
    return None if values is None else as_record(Card, values, path)


def _json(path: Path, optional: bool = False) -> Any:
    """Read a JSON file without the machine's paths; None if it may be missing and is."""
    if path.exists():
        return _without_paths(read_json(path, remedy="restore it, or judge the run again"))
    if optional:
        return None
    raise RunError(f"{path.parent.name} has no {path.name}; run it to the end, or judge it again.")


def _without_paths(value: Any) -> Any:
    """Cut every absolute path in a JSON value to its last part."""
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(
        r"(?<![^\s'\"(=,:])(?:[A-Za-z]:[\\/]|~?/)(?:[^\s'\"<>/\\]+[\\/])+",
        "\N{HORIZONTAL ELLIPSIS}/",
        value,
    )


def _set_name(name: str, config: Mapping[str, Any]) -> str:
    """Name a set for a reader who does not know the names of the sets."""
    domain = config["split"].get("unseen_domain") or "domain"
    names = {
        "test_seen": f"known {_plural(domain)}",
        "test_unseen": f"unseen {_plural(domain)}",
        "val": "validation",
    }
    return names.get(name, name)


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun if noun.endswith("s") else f"{noun}s"


def _answer(
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
        headline = f"{method}: {_lower(label)} {_listed(values)}."
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
            parts.append(f"{words} {'it' if parts else '{}'} on {_listed(sides[words])}")
        alike.setdefault("is " + ", ".join(parts), []).append(name)
    return [words.replace("{}", _listed(baselines)) for words, baselines in alike.items()]


def _doubt(comparison: Comparison) -> str:
    """Say why neither run is better; empty where one is."""
    return "" if comparison.side else comparison.verdict


def _lower(text: str) -> str:
    """Write a measure's name inside a sentence; abbreviations stay as they are."""
    return text[:1].lower() + text[1:] if text.split(" ")[0][1:].islower() else text


def _capital(text: str) -> str:
    """Write a name at the beginning of a line, its other letters as they are."""
    return text[:1].upper() + text[1:]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _data(folder: Path, run: RunRecord) -> dict[str, Any]:
    """Count images, groups, classes and domains by set; and each class's and domain's images."""
    with reading(folder / "split.parquet"):
        return _count(results.read_split(folder), run)


def _count(table: pa.Table, run: RunRecord) -> dict[str, Any]:
    titles = {"group": "groups"}
    if any(table["label"].to_pylist()):
        titles["label"] = "classes"
    for name in table.column_names:
        if name.startswith("domain."):
            titles[name] = _plural(name.removeprefix("domain."))
    sets = np.array(table["split"].to_pylist())
    order = sorted(set(sets.tolist()), key=lambda s: (not s.startswith("train"), s != "val", s))
    columns, tables = {}, {}
    for name, title in titles.items():
        values = np.array(table[name].to_pylist())
        columns[title] = {s: len(set(values[sets == s].tolist())) for s in order}
        if name != "group":
            tables[title] = {
                str(value): [int(np.sum((values == value) & (sets == s))) for s in order]
                for value in np.unique(values)
            }
    return {
        "order": order,
        "num": {s: int((sets == s).sum()) for s in order},
        "columns": columns,
        "near": {s: (run.split or {}).get(f"near_duplicates_{s}") for s in order},
        "tables": tables,
    }


def _pictures(folder: Path, images: Mapping[str, Any]) -> dict[str, Any]:
    """Encode the kept images as text for the page, until it is full."""
    room = MAX_IMAGES_BYTES
    left_out = 0

    def source(name: str) -> str:
        nonlocal room, left_out
        path = folder / Path(name).name
        size = path.stat().st_size * 4 // 3 if path.is_file() else room + 1
        if size > room:
            left_out += 1
            return ""
        room -= size
        return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()

    with reading(folder / "samples.json", remedy="delete it, and make the report without pictures"):
        samples = [s | {"src": source(s["image"])} for s in images["samples"]]
        near = [
            p | {"src": source(p["image"]), "twin_src": source(p["twin_image"])}
            for p in images["near"]
        ]
    return {
        "samples": [s for s in samples if s["src"]],
        "near": [p for p in near if p["src"] and p["twin_src"]],
        "left_out": left_out,
    }


def _strip(
    estimate: Estimate, low: Number = 0, high: Number = 1, mark: Number | None = None
) -> Markup:
    """Draw a value and its interval from `low` to `high`, beside a number that says the same."""
    shares = {"a": estimate.low, "b": estimate.high, "v": estimate.value}
    if mark is not None:
        shares["m"] = mark
    style = ";".join(
        f"--{key}:{100 * min(max((value - low) / (high - low), 0), 1):.1f}%"
        for key, value in shares.items()
    )
    line = "<i class=m></i>" if mark is not None else ""
    return Markup(
        f'<span class="strip" aria-hidden="true" style="{style}">{line}<i class=w></i><i class=v></i></span>'
    )


def _signed(value: Number) -> str:
    return ("+" if value >= 0 else "") + number(value)


def _percent(value: Number) -> str:
    return f"{100 * value:g} %"


def _p(value: Number) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _time(seconds: Number) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: Number) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _setting(value: Any) -> str:
    """Write a setting's value as it would be read aloud."""
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
