"""report.html: what a run found, on one page that needs nothing else.

Made from the run's directory alone: run.json, config.json, result.json, metrics.jsonl and
split.parquet; comparison.json and samples/ where they are there. The page loads nothing, runs no
script, and holds no path of the machine it was made on; equal runs make equal pages.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.errors import RunError
from assay.files import write_whole
from assay.metrics.compare import SIGNIFICANT
from assay.metrics.figure import Figure
from assay.report import charts
from assay.report.svg import Number, number, render_svg
from assay.runs import results

SCHEMA = 1


PAGES = Path(__file__).parents[1] / "pages"


MAX_IMAGES_BYTES = 4 << 20
"""Images beyond this (as text in the page) are left out, and the page says so."""


MEASURES = {
    "accuracy": ("Accuracy", "images answered rightly"),
    "group_accuracy": ("Group accuracy", "groups answered rightly by their mean logits"),
    "vote_accuracy": ("Vote accuracy", "groups answered rightly by most of their images"),
    "macro_f1": ("Macro F1", "harmonic mean of precision and recall, averaged over classes"),
    "nll": ("NLL", "negative log-likelihood in nats; lower is better"),
    "ece": ("ECE", "gap between confidence and accuracy; lower is better"),
    "set_coverage": ("Set coverage", "conformal sets that hold the truth"),
    "set_size": ("Set size", "classes in a conformal set"),
    "rejected": ("Rejected", "images left to a person: their set is several classes"),
    "accepted_accuracy": ("Accepted accuracy", "of the images not rejected, answered rightly"),
    "accuracy_without_chosen": ("Without chosen patches", "accuracy where they are blank"),
    "accuracy_without_random": ("Without random patches", "accuracy where as many are blank"),
    "evidence": ("Evidence", "accuracy that blanking chosen patches costs beyond random ones"),
    "calibrated_nll": ("Calibrated NLL", "after the temperature fitted on val"),
    "calibrated_ece": ("Calibrated ECE", "after the temperature fitted on val"),
    "decided_accuracy": ("Decided accuracy", "answers by costs or threshold that are right"),
    "recall": ("Recall", "of the class that must not be missed"),
    "precision": ("Precision", "of the class that must not be missed"),
    "false_alarms": ("False alarms", "other images given that class"),
    "cost": ("Cost", "mean cost of the answers"),
    "iou": ("IoU", "hits over pixels in mask or answer, all layers together"),
    "pixel_precision": ("Pixel precision", "of marked pixels, those inside the mask"),
    "pixel_recall": ("Pixel recall", "of pixels inside the mask, those marked"),
    "pixel_f1": ("Pixel F1", "harmonic mean of the two"),
    "layer_iou": ("Layer IoU", "mean over layers; 1 where mask and answer are empty"),
    "iou_with_label": ("IoU with what was learnt", "against the masks that training learnt from"),
    "component_recall": ("Defects found", "components of which at least half is marked"),
    "false_alarms_per_clean_layer": ("False alarms", "marked components on a layer without defect"),
    "pixel_ece": ("Pixel ECE", "gap between probability and share inside; lower is better"),
    "cost_of_argmax": ("Cost without it", "mean cost if the likeliest class were answered"),
}
"""Name and meaning of each standard measure."""


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
    """The text of report.html; see `write_report`."""
    run, result = _finished(folder)
    config = _json(folder / "config.json")
    comparison = _json(folder / "comparison.json", optional=True)
    if comparison and not comparison["comparisons"]:
        comparison = None
    sets = result["sets"]
    tests = [name for name in sets if name.startswith("test")] or list(sets)
    names = {name: _set_name(name, config) for name in sets}
    samples = _json(folder / "samples" / "samples.json", optional=True)
    metrics = results.read_metrics(folder / "metrics.jsonl")
    return fill_page(
        "report.html",
        id=folder.name,
        run=run,
        config=config,
        result=result,
        tests=tests,
        names=names,
        measures=_measures(result),
        comparison=comparison,
        answer=_answer(run, result, comparison, tests, names),
        curves=charts.curves(metrics, config["train"].get("select", "")),
        epochs=metrics["epoch"],
        confusion={test: charts.confusion(sets[test], result["classes"]) for test in tests},
        trust=charts.trust(sets, tests, names),
        own=[Figure.from_dict(values) for values in result["figures"]],
        int8=charts.int8(_json(folder / "bundle" / "bundle.json", optional=True), tests),
        data=_data(folder / "split.parquet", run),
        samples=_pictures(folder / "samples", samples) if samples else None,
    )


def fill_page(template: str, **values: Any) -> str:
    """A page of pages/ with these values."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "signed": _signed, "percent": _percent, "p": _p, "time": _time,
        "duration": _duration, "setting": _setting, "lowered": _lower, "capitalize": _capital,
        "svg": lambda figure: Markup(render_svg(figure)),
    }  # fmt: skip
    environment.globals["strip"] = _strip
    css = Markup((PAGES / "report.css").read_text())
    return environment.get_template(template).render(css=css, **values)


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json and result.json of a run that has both."""
    run = _json(folder / "run.json")
    if run.get("state") != "finished":
        raise RunError(
            f"The run {folder.name} is {run.get('state', 'new')}; only a finished run has a report: run it to the end first."
        )
    result = _json(folder / "result.json")
    if run.get("stage", "bundle") == "val":
        raise RunError(
            f"The run {folder.name} is a trial of a sweep, judged on val alone; see the sweep's report, or run it to the end by its task script and --config {folder / 'config.json'}."
        )
    for name, found in (
        ("run.json", run.get("schema", 0)),
        ("result.json", result.get("schema", 0)),
    ):
        if found > SCHEMA:
            raise RunError(
                f"{name} of {folder.name} has schema {found}, this Assay knows {SCHEMA}; update Assay."
            )
        if found < SCHEMA:
            raise RunError(
                f"{name} of {folder.name} has schema {found}, this Assay writes {SCHEMA}; judge the run again with assay judge {folder.name}."
            )
    return run, result


def _json(path: Path, optional: bool = False) -> Any:
    """A JSON file without the machine's paths; None if it may be missing and is."""
    try:
        return _without_paths(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if optional:
            return None
        raise RunError(
            f"{path.parent.name} has no {path.name}; run it to the end, or judge it again."
        ) from None
    except ValueError:
        raise RunError(f"{path} is damaged; judge the run again.") from None


def _without_paths(value: Any) -> Any:
    """The same JSON value, of every absolute path the last part only."""
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_without_paths(own) for own in value]
    if not isinstance(value, str):
        return value
    return re.sub(
        r"(?<![^\s'\"(=,:])(?:[A-Za-z]:[\\/]|~?/)(?:[^\s'\"<>/\\]+[\\/])+",
        "\N{HORIZONTAL ELLIPSIS}/",
        value,
    )


def _set_name(name: str, config: Mapping[str, Any]) -> str:
    """What a set is, for a reader who does not know the names of the sets."""
    domain = config["split"].get("unseen_domain") or "domain"
    known = {
        "test_seen": f"known {_plural(domain)}",
        "test_unseen": f"unseen {_plural(domain)}",
        "val": "validation",
    }
    return known.get(name, name)


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun if noun.endswith("s") else f"{noun}s"


def _measures(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name and meaning of every measure that some set has, in the order of the first that has it."""
    keys = dict.fromkeys(key for own in result["sets"].values() for key in own["metrics"])
    return {key: MEASURES.get(key, (_capital(key.replace("_", " ")), "")) for key in keys}


def _answer(
    run: Mapping[str, Any],
    result: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    tests: list[str],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """The headline, and for each test set the method, its baselines and their differences."""
    panels = []
    for test in tests:
        metrics = result["sets"][test]["metrics"]
        metric = next(iter(metrics))
        found = [
            c | {"side": _side(c)}
            for c in (comparison or {}).get("comparisons", [])
            if c["set"] == test and c["metric"] == metric
        ]
        panels.append(
            {"set": test, "metric": metric, "value": metrics[metric], "comparisons": found}
        )
    method = comparison["method"] if comparison else run.get("name", run["task"])
    sentences = _verdicts(panels, names)
    if not sentences:
        values = [f"{number(p['value']['value'])} on {names[p['set']]}" for p in panels]
        label = MEASURES.get(panels[0]["metric"], (panels[0]["metric"].replace("_", " "),))[0]
        headline = f"{method}: {_lower(label)} {_listed(values)}."
    else:
        headline = f"{method} {'; it '.join(sentences)}."
    return {"headline": headline, "method": method, "panels": panels}


def _verdicts(panels: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """On which sets the method is better, worse, or not told apart; baselines that fared alike together."""
    outcomes: dict[str, dict[str, list[str]]] = {}
    for panel in panels:
        for c in panel["comparisons"]:
            outcomes.setdefault(c["name"], {}).setdefault(c["side"], []).append(names[c["set"]])
    alike: dict[str, list[str]] = {}
    for name, sides in outcomes.items():
        parts: list[str] = []
        for side in sorted(sides, key=["better", "worse", ""].index):
            words = f"{side} than" if side else "not significantly different from"
            parts.append(f"{words} {'it' if parts else '{}'} on {_listed(sides[side])}")
        alike.setdefault("is " + ", ".join(parts), []).append(name)
    return [words.replace("{}", _listed(own)) for words, own in alike.items()]


def _side(comparison: Mapping[str, Any]) -> str:
    if comparison["p_holm"] >= SIGNIFICANT:
        return ""
    return "better" if comparison["difference"]["value"] > 0 else "worse"


def _lower(text: str) -> str:
    """A measure's name inside a sentence; abbreviations stay as they are."""
    return text[:1].lower() + text[1:] if text.split(" ")[0][1:].islower() else text


def _capital(text: str) -> str:
    """A name at the beginning of a line, its other letters as they are."""
    return text[:1].upper() + text[1:]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _data(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Sets by images, groups, classes and domains; images of each class and domain by set."""
    if not path.exists():
        raise RunError(f"{path.parent.name} has no {path.name}; run it again.")
    table = pq.read_table(path)
    labels = {"label": "classes"} if any(table["label"].to_pylist()) else {}
    columns = (
        {"group": "groups"}
        | labels
        | {
            name: _plural(name.removeprefix("domain."))
            for name in table.column_names
            if name.startswith("domain.")
        }
    )
    sets = np.array(table["split"].to_pylist())
    values = {name: np.array(table[name].to_pylist()) for name in columns}
    order = sorted(set(sets.tolist()), key=lambda s: (not s.startswith("train"), s != "val", s))
    tables = {
        title: {
            str(value): [int(np.sum((values[name] == value) & (sets == s))) for s in order]
            for value in np.unique(values[name])
        }
        for name, title in columns.items() if name != "group"
    }  # fmt: skip
    return {
        "order": order,
        "num": {s: int((sets == s).sum()) for s in order},
        "columns": {t: {s: len(set(values[n][sets == s].tolist())) for s in order} for n, t in columns.items()},
        "near": {s: run.get("split", {}).get(f"near_duplicates_{s}") for s in order},
        "tables": tables,
    }  # fmt: skip


def _pictures(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The kept images as text for the page, until it is full."""
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

    samples = [s | {"src": source(s["image"])} for s in found["samples"]]
    near = [
        p | {"src": source(p["image"]), "twin_src": source(p["twin_image"])} for p in found["near"]
    ]
    return {
        "samples": [s for s in samples if s["src"]],
        "near": [p for p in near if p["src"] and p["twin_src"]],
        "left_out": left_out,
    }


def _strip(
    estimate: Mapping[str, Any], low: Number = 0, high: Number = 1, mark: Number | None = None
) -> Markup:
    """A value and its interval on a line from `low` to `high`, beside a number that says the same."""
    shares = {"a": estimate["low"], "b": estimate["high"], "v": estimate["value"]}
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
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _setting(value: Any) -> str:
    """A setting's value as it would be read aloud."""
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
