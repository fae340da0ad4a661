"""report.html: what a run found, on one page that needs nothing else.

Made from the run's directory alone: run.json, config.json, result.json, metrics.jsonl and
split.parquet; comparison.json and samples/ where they are there. The page loads nothing, runs no
script, and holds no path of the machine it was made on; equal runs make equal pages.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.bundle.card import Card
from assay.errors import RunError
from assay.files import read_bytes, read_json, reading, write_whole
from assay.metrics.figure import Figure
from assay.report import charts, filters
from assay.report.svg import count, number, render_svg
from assay.report.verdict import find_verdict, plural, set_name
from assay.runs import record, results
from assay.runs.metrics import read_metrics
from assay.runs.record import RunRecord, as_record, schema_of
from assay.runs.results import Comparisons, Result

PAGES = Path(__file__).parents[1] / "pages"


MAX_IMAGES_BYTES = 4 << 20
"""Images beyond this (as text in the page) are left out, and the page says so."""


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
    names = {name: set_name(name, config) for name in result.sets}
    samples = _json(folder / "samples" / "samples.json", optional=True)
    metrics = read_metrics(folder / "metrics.jsonl")
    keys = dict.fromkeys(key for summary in result.sets.values() for key in summary.metrics)
    measures = {key: result.measure(key) for key in keys}
    labels = {key: filters.lower(measure.label) for key, measure in measures.items()}
    return fill_page(
        "report.html",
        id=folder.name,
        run=run,
        config=config,
        result=result,
        tests=tests,
        names=names,
        measures=measures,
        comparison=comparison,
        answer=find_verdict(run, result, comparison, tests, names),
        curves=charts.curves(metrics, config["train"].get("select", ""), labels),
        epochs=metrics["epoch"],
        confusion={test: charts.confusion(result.sets[test], result.classes) for test in tests},
        trust=charts.trust(result.sets, tests, names),
        own=[_show_set(figure, names) for figure in result.figures],
        int8=charts.int8(_card(folder / "bundle"), {test: names[test] for test in tests}),
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
        "signed": filters.signed,
        "percent": filters.percent,
        "p": filters.p_value,
        "time": filters.moment,
        "duration": filters.duration,
        "count": count,
        "setting": filters.setting,
        "doubt": filters.doubt,
        "lowered": filters.lower,
        "capitalize": filters.capital,
        "plural": plural,
        "svg": lambda figure: Markup(render_svg(figure)),
    }
    environment.globals["strip"] = filters.strip
    css = Markup((PAGES / "report.css").read_text())
    return environment.get_template(template).render(css=css, **values)


def _show_set(figure: Figure, names: Mapping[str, str]) -> Figure:
    """Have a task's own figure, whose title ends in the name of its set, say what the page calls that set."""
    title, comma, name = figure.title.rpartition(", ")
    return replace(figure, title=f"{title}{comma}{names.get(name, name)}")


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
            titles[name] = plural(name.removeprefix("domain."))
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
        return "data:image/jpeg;base64," + base64.b64encode(read_bytes(path)).decode()

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
