"""The figures that every report has, drawn from result.json and metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.metrics.estimate import Estimate, bracket, signed
from assay.metrics.figure import Figure, Series
from assay.report.svg import Number
from assay.runs.results import NAMED, Line

NUM_POINTS = 120
"""Points of a training curve; more updates are pooled."""


MAX_CLASSES = 40
"""A confusion of more classes is not drawn."""


def curves(metrics: Mapping[str, list[Line]], select: str) -> list[Figure]:
    """Draw loss, the measure of val that `select` names, learning rate and data wait over updates."""
    steps = metrics["step"]
    figures = [
        _pooled("Training loss", "loss", steps),
        _val_curve(metrics["val"], select),
        _pooled("Learning rate", "lr", steps),
        _pooled("Share of time waiting for data", "data_wait", steps, [0.0, 1.0]),
    ]
    return [figure for figure in figures if figure is not None]


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
    about = f" Line: mean of {len(points) / len(parts):.0f}; band: their range." if pooled else ""
    return Figure(
        title=title,
        kind="line",
        x="update",
        y_range=y_range,
        series={key: series},
        caption=f"n = {len(points)} updates.{about}",
    )


def _val_curve(lines: list[Line], select: str) -> Figure | None:
    """Draw the measure that the weights were chosen by, or the first that val has."""
    keys = [k for line in lines for k, v in line.items() if v is not None and k not in NAMED]
    main = next((k for k in keys if k != "nll"), "")
    select = main if select == "score" else select
    key = select if select in keys else next(iter(keys), "")
    measured = [line for line in lines if line.get(key) is not None]
    if not measured:
        return None
    best = None
    if key == select:
        sign, tie = (-1, main) if key == "nll" else (1, "nll")
        best = max(measured, key=lambda line: (sign * line[key], -sign * (line.get(tie) or 0.0)))
    steps = [float(line["step"]) for line in measured]
    return Figure(
        title=f"Validation {key.replace('_', ' ')}",
        kind="line",
        x="update",
        y_range=[0.0, 1.0] if key == main else None,
        series={key: Series(x=steps, y=[float(line[key]) for line in measured])},
        chosen=[float(best["step"]), float(best[key])] if best else None,
        caption=f"{len(measured)} looks at validation."
        + (" Ring: the weights kept." if best else ""),
    )


def confusion(summary: Mapping[str, Any], classes: Sequence[str]) -> Figure | None:
    """Draw truth against answer of one set; None without classes, or with too many to draw."""
    counts = summary["confusion"]
    if not counts or len(classes) > MAX_CLASSES:
        return None
    series = {
        truth: Series(x=list(classes), y=[float(num) for num in row])
        for truth, row in zip(classes, counts, strict=True)
    }
    return Figure(
        title="Confusion",
        kind="matrix",
        x="answer",
        y="truth",
        series=series,
        caption=f"n = {summary['num']} images; shade: share of the row. {_most_often(counts, classes)}",
    )


def _most_often(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Name the three commonest errors."""
    errors = []
    for i, row in enumerate(counts):
        errors += [(-num, i, j) for j, num in enumerate(row) if num and i != j]
    texts = [
        f"{classes[i]} taken for {classes[j]} ({-num} of {sum(counts[i])})"
        for num, i, j in sorted(errors)[:3]
    ]
    return f"Most often: {'; '.join(texts)}." if texts else "No errors."


def trust(sets: Mapping[str, Any], tests: Iterable[str], names: Mapping[str, str]) -> list[Figure]:
    """Draw reliability of each test set; risk by coverage, and accuracy by views, of all in one."""
    summaries = {names[test]: sets[test] for test in tests}
    figures = [_reliability(name, summary) for name, summary in summaries.items()]
    figures += [_risk_coverage(summaries), _views(summaries)]
    return [figure for figure in figures if figure is not None]


def _reliability(name: str, summary: Mapping[str, Any]) -> Figure | None:
    bins = summary["reliability"]
    if not bins:
        return None
    series = _with_intervals([b["confidence"] for b in bins], [b["accuracy"] for b in bins])
    return Figure(
        title=f"Reliability, {name}",
        kind="points",
        x="calibrated probability of the answer",
        y="accuracy",
        x_range=[0.0, 1.0],
        y_range=[0.0, 1.0],
        diagonal=True,
        series={"bin": series},
        caption=f"n = {summary['num']} images in {len(bins)} bin{'s' if len(bins) > 1 else ''}. On the diagonal, 0.8 means right 8 times in 10.",
    )


def _risk_coverage(summaries: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    curves = {name: s["risk_coverage"] for name, s in summaries.items() if s["risk_coverage"]}
    if not curves:
        return None
    series, areas = {}, []
    for name, curve in curves.items():
        x, y = ([float(v) for v in curve[key]] for key in ("coverage", "risk"))
        series[name] = Series(x=x, y=y)
        areas.append(f"{bracket(Estimate(**curve['aurc']))} {name}")
    return Figure(
        title="Risk against coverage",
        kind="line",
        x="share answered, surest first",
        y="errors among them",
        x_range=[0.0, 1.0],
        series=series,
        caption=f"Area under the curve, lower is better: {'; '.join(areas)}.",
    )


def _views(summaries: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    views_of = {name: s["views"] for name, s in summaries.items() if len(s["views"]) > 1}
    if not views_of:
        return None
    most = max(view["views"] for views in views_of.values() for view in views)
    series = {
        name: _with_intervals([v["views"] for v in views], [v["accuracy"] for v in views])
        for name, views in views_of.items()
    }
    return Figure(
        title="Accuracy by views of a part",
        kind="line",
        x="views pooled (mean logits)",
        y="accuracy",
        x_range=[1.0, float(most)],
        y_range=[0.0, 1.0],
        series=series,
        caption="Views drawn at random from each part; bands: 95 % intervals over parts.",
    )


def _with_intervals(x: Iterable[Number], estimates: Iterable[Mapping[str, Any]]) -> Series:
    return Series.from_estimates([float(v) for v in x], [Estimate(**e) for e in estimates])


def int8(card: Mapping[str, Any] | None, tests: Sequence[str]) -> dict[str, Any] | None:
    """Set the graph in 8 bits beside the one in 32: size, latency, score; None where there is none."""
    if not card or not card.get("int8"):
        return None
    report = card["pipeline"]["quantized"]
    rows = [
        _graph_row("fp32", report["fp32"], card["metrics"], tests),
        _graph_row("int8", report["int8"], card["int8"]["metrics"], tests),
    ]
    smaller = report["fp32"]["bytes"] / report["int8"]["bytes"]
    faster = report["fp32"]["p50_ms"] / report["int8"]["p50_ms"]
    verdicts = [
        f"{signed(Estimate(**comparison['difference']))} on {comparison['set']}"
        for comparison in card["int8"]["comparisons"]
    ]
    return {
        "headline": f"The int8 graph is {smaller:.1f} times smaller and {faster:.1f} times faster; difference in score: {'; '.join(verdicts)}.",
        "rows": rows,
        "bars": _latency_bars(report),
        "kept": f"{report['share']:.0%} of the weights are in 8 bits. Layers left in 32 bits: {', '.join(report['kept']) or 'none'}.",
    }


def _graph_row(
    name: str, graph: Mapping[str, Any], sets: Mapping[str, Any], tests: Iterable[str]
) -> dict[str, Any]:
    return {
        "name": name,
        "size": f"{graph['bytes'] / 1e6:.2f} MB",
        "p50": f"{graph['p50_ms']:.0f} ms",
        "p95": f"{graph['p95_ms']:.0f} ms",
        "val": graph["score"],
        "tests": [next(iter(sets[test]["metrics"].values())) for test in tests],
    }


def _latency_bars(report: Mapping[str, Any]) -> Figure:
    graphs = ["fp32", "int8"]
    return Figure(
        title="Latency of one tile",
        kind="bar",
        x="ms, one thread, one tile at a time",
        y="graph",
        series={
            "median": Series(x=graphs, y=[report[graph]["p50_ms"] for graph in graphs]),
            "95th percentile": Series(x=graphs, y=[report[graph]["p95_ms"] for graph in graphs]),
        },
        caption="onnxruntime on the machine that trained, after warm-up.",
    )
