"""The figures that every report has, drawn from result.json and metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.bundle.card import Card
from assay.metrics.estimate import Estimate, signed
from assay.metrics.figure import Figure, Series
from assay.metrics.summary import Summary
from assay.report.axis import Number
from assay.report.svg import number
from assay.runs.metrics import NAMED, Line

NUM_POINTS = 120
"""Points of a training curve; more updates are pooled."""


MAX_CLASSES = 40
"""A confusion of more classes is not drawn."""


def curves(
    metrics: Mapping[str, list[Line]], select: str, labels: Mapping[str, str]
) -> list[Figure]:
    """Draw loss, the measure of val that `select` names, learning rate and data wait over the updates."""
    steps = metrics["step"]
    figures = [
        _pooled("Training loss", "loss", steps),
        _val_curve(metrics["val"], select, labels),
        _pooled("Learning rate", "lr", steps),
        _pooled("Share of time waiting for data", "data_wait", steps, [0.0, 1.0]),
        _parts(steps),
    ]
    return [figure for figure in figures if figure is not None]


def _parts(lines: list[Line]) -> Figure | None:
    """Draw the share of each named part in the time of all updates, and what none of them explains."""
    timed = [line for line in lines if line.get("step_s") is not None]
    whole = sum(float(line["step_s"]) for line in timed)
    spent = {
        part: sum(float(line.get(f"{part}_s") or 0.0) for line in timed)
        for part in ("wait", "cut", "forward", "backward", "update")
    }
    if not whole or not any(spent.values()):
        return None
    rest = max(whole - sum(spent.values()), 0.0)
    shares = {part: seconds / whole for part, seconds in (spent | {"other": rest}).items()}
    return Figure(
        title="Where the time of an update goes",
        kind="bar",
        x="share of the time",
        x_range=[0.0, 1.0],
        series={"share": Series(x=list(shares), y=list(shares.values()))},
        caption=f"n = {len(timed)} updates of {whole / len(timed):.3g} s. wait: for data; cut: for patches; update: optimiser, and what else is done for each.",
    )


def _pooled(
    title: str, key: str, lines: list[Line], y_range: list[float] | None = None
) -> Figure | None:
    points = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None])
    if not len(points):
        return None
    parts = np.array_split(points, min(len(points), NUM_POINTS))
    pooled = len(parts) < len(points)
    series = Series(
        x=[float(part[:, 0].mean()) for part in parts],
        y=[float(part[:, 1].mean()) for part in parts],
        low=[float(part[:, 1].min()) for part in parts] if pooled else None,
        high=[float(part[:, 1].max()) for part in parts] if pooled else None,
    )
    sizes = " or ".join(map(str, sorted({len(part) for part in parts})))
    about = f" Line: mean of {sizes}; band: their range." if pooled else ""
    num_lost = sum(key in line and line[key] is None for line in lines)
    if num_lost:
        about += f" Of {num_lost} more it was not finite."
    return Figure(
        title=title,
        kind="line",
        x="update",
        y_range=y_range,
        series={key: series},
        caption=f"n = {len(points)} updates.{about}",
    )


def _val_curve(lines: list[Line], select: str, labels: Mapping[str, str]) -> Figure | None:
    """Draw the measure that the weights were chosen by, or the first that val has."""
    keys = [k for line in lines for k, v in line.items() if v is not None and k not in NAMED]
    main = next((k for k in keys if k != "nll"), "")
    select = main if select == "score" else select
    key = select if select in keys else next(iter(keys), "")
    looks = [line for line in lines if line.get(key) is not None]
    if not looks:
        return None
    best = None
    if key == select:
        sign, tie = (-1, main) if key == "nll" else (1, "nll")
        best = max(looks, key=lambda line: (sign * line[key], -sign * (line.get(tie) or 0.0)))
    values = Series(x=[float(v["step"]) for v in looks], y=[float(v[key]) for v in looks])
    return Figure(
        title=f"Validation {labels.get(key, key.replace('_', ' '))}",
        kind="line",
        x="update",
        y_range=[0.0, 1.0] if key == main else None,
        series={key: values},
        chosen=[float(best["step"]), float(best[key])] if best else None,
        caption=f"{len(looks)} look{'s' * (len(looks) != 1)} at validation."
        + (" Ring: the weights kept." if best else ""),
    )


def confusion(summary: Summary, classes: Sequence[str]) -> Figure | None:
    """Draw truth against answer of one set; None without classes, or with too many to draw."""
    counts = summary.confusion
    if not counts or len(classes) > MAX_CLASSES:
        return None
    wrong = sorted(
        (-num, i, j) for i, row in enumerate(counts) for j, num in enumerate(row) if num and i != j
    )
    often = "; ".join(
        f"{classes[i]} taken for {classes[j]} ({-num} of {sum(counts[i])})"
        for num, i, j in wrong[:3]
    )
    series = {
        truth: Series(x=list(classes), y=[float(num) for num in row])
        for truth, row in zip(classes, counts, strict=True)
    }
    about = f"Most often: {often}." if often else "No errors."
    return Figure(
        title="Confusion",
        kind="matrix",
        x="answer",
        y="truth",
        series=series,
        caption=f"n = {_images(summary)}; shade: share of the row. {about}",
    )


def trust(
    sets: Mapping[str, Summary], tests: Iterable[str], names: Mapping[str, str]
) -> list[Figure]:
    """Draw reliability of each test set; risk against coverage, and accuracy by views, of all in one."""
    summaries = {names[test]: sets[test] for test in tests}
    figures = [_reliability(name, summary) for name, summary in summaries.items()]
    figures += [_risk_coverage(summaries), _views(summaries)]
    return [figure for figure in figures if figure is not None]


def _reliability(name: str, summary: Summary) -> Figure | None:
    bins = summary.reliability
    if not bins:
        return None
    hits = _estimates([b.confidence for b in bins], [b.accuracy for b in bins])
    return Figure(
        title=f"Reliability, {name}",
        kind="points",
        x="calibrated probability of the answer",
        y="accuracy",
        x_range=[0.0, 1.0],
        y_range=[0.0, 1.0],
        diagonal=True,
        series={"bin": hits},
        caption=f"n = {_images(summary)} in {len(bins)} bin{'s' if len(bins) > 1 else ''}. On the diagonal, 0.8 means right 8 times in 10.",
    )


def _risk_coverage(summaries: Mapping[str, Summary]) -> Figure | None:
    areas, series = [], {}
    for name, summary in summaries.items():
        risk = summary.risk_coverage
        if risk is not None and risk.aurc is not None:
            area = risk.aurc
            interval = f"[{number(area.low)}, {number(area.high)}]"
            areas.append(f"{number(area.value)} {interval} {name} (n = {_images(summary)})")
            series[name] = Series(x=risk.coverage, y=risk.risk)
    if not series:
        return None
    return Figure(
        title="Risk against coverage",
        kind="line",
        x="share answered, surest first",
        y="errors among them",
        x_range=[0.0, 1.0],
        series=series,
        caption=f"Area under the curve, lower is better: {'; '.join(areas)}.",
    )


def _views(summaries: Mapping[str, Summary]) -> Figure | None:
    curves = {name: s.views for name, s in summaries.items() if len(s.views) > 1}
    if not curves:
        return None
    most = max(point.views for points in curves.values() for point in points)
    sizes = (f"{points[0].accuracy.num_groups} ({name})" for name, points in curves.items())
    return Figure(
        title="Accuracy by views of a part",
        kind="line",
        x="views pooled (mean logits)",
        y="accuracy",
        x_range=[1.0, float(most)],
        y_range=[0.0, 1.0],
        series={
            name: _estimates([v.views for v in points], [v.accuracy for v in points])
            for name, points in curves.items()
        },
        caption=f"n of parts = {', '.join(sizes)}. Views drawn at random from each part; bands: 95 % intervals over parts.",
    )


def _images(summary: Summary) -> str:
    return f"{summary.num} image{'s' * (summary.num != 1)}"


def _estimates(x: Iterable[Number], estimates: Sequence[Estimate]) -> Series:
    return Series(
        x=[float(v) for v in x],
        y=[e.value for e in estimates],
        low=[e.low for e in estimates],
        high=[e.high for e in estimates],
    )


def int8(card: Card | None, tests: Mapping[str, str]) -> dict[str, Any] | None:
    """Set the graph in 8 bits beside the one in 32: size, latency, score; None where there is none.

    Args:
        card: Of the bundle, if one was shipped.
        tests: What a reader is told of the test sets, by their names.
    """
    if card is None or card.int8 is None:
        return None
    graphs = card.pipeline["quantized"]
    rows = []
    for name, sets in {"fp32": card.metrics, "int8": card.int8.metrics}.items():
        graph = graphs[name]
        rows.append(
            {
                "name": name,
                "size": f"{graph['bytes'] / 1e6:.3g} MB",
                "p50": f"{graph['p50_ms']:.3g} ms",
                "p95": f"{graph['p95_ms']:.3g} ms",
                "val": graph["score"],
                "tests": [sets[test].main[1] for test in tests],
            }
        )
    smaller = graphs["fp32"]["bytes"] / graphs["int8"]["bytes"]
    time = graphs["int8"]["p50_ms"] / graphs["fp32"]["p50_ms"]
    verdicts = [
        f"{signed(c.difference)} on {tests.get(c.set, c.set)}" for c in card.int8.comparisons
    ]
    full = ", ".join(graphs["kept"]) or "none"
    return {
        "headline": f"The int8 graph is {smaller:.1f} times smaller and takes {time:.2f} of the time of fp32; difference in score: {'; '.join(verdicts)}.",
        "rows": rows,
        "bars": _latencies(graphs, "tile" if card.pipeline["kind"] == "tiles" else "image"),
        "kept": f"{graphs['share']:.0%} of the weights are in 8 bits. Layers left in 32 bits: {full}.",
    }


def _latencies(graphs: Mapping[str, Any], unit: str) -> Figure:
    names = ["fp32", "int8"]
    return Figure(
        title=f"Latency of one {unit}",
        kind="bar",
        x=f"ms, one thread, one {unit} at a time",
        y="graph",
        series={
            name: Series(x=names, y=[graphs[graph][key] for graph in names])
            for name, key in (("median", "p50_ms"), ("95th percentile", "p95_ms"))
        },
        caption="onnxruntime on the machine that trained, after warm-up.",
    )
