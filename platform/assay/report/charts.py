"""The figures that every report has, drawn from result.json and metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.metrics.figure import Figure, Series
from assay.report.svg import Number, number
from assay.runs.results import NAMED, Line

NUM_POINTS = 120
"""Points of a training curve; more updates are pooled."""


MAX_CLASSES = 40
"""A confusion of more classes is not drawn."""


def curves(metrics: Mapping[str, list[Line]], select: str) -> list[Figure]:
    """Loss, the measure of val that `select` names, learning rate and data wait over the updates."""
    steps = metrics["step"]
    found = [
        _pooled("Training loss", "loss", steps),
        _val_curve(metrics["val"], select),
        _pooled("Learning rate", "lr", steps),
        _pooled("Share of time waiting for data", "data_wait", steps, [0.0, 1.0]),
    ]
    return [figure for figure in found if figure is not None]


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
        title=title, kind="line", x="update", y_range=y_range, series={key: series},
        caption=f"n = {len(points)} updates.{about}",
    )  # fmt: skip


def _val_curve(lines: list[Line], select: str) -> Figure | None:
    """The measure that the weights were chosen by, or the first that val has."""
    keys = [k for line in lines for k, v in line.items() if v is not None and k not in NAMED]
    main = next((k for k in keys if k != "nll"), "")
    select = main if select == "score" else select
    key = select if select in keys else next(iter(keys), "")
    own = [line for line in lines if line.get(key) is not None]
    if not own:
        return None
    best = None
    if key == select:
        sign, tie = (-1, main) if key == "nll" else (1, "nll")
        best = max(own, key=lambda line: (sign * line[key], -sign * (line.get(tie) or 0.0)))
    return Figure(
        title=f"Validation {key.replace('_', ' ')}", kind="line", x="update",
        y_range=[0.0, 1.0] if key == main else None,
        series={key: Series(x=[float(v["step"]) for v in own], y=[float(v[key]) for v in own])},
        chosen=[float(best["step"]), float(best[key])] if best else None,
        caption=f"{len(own)} looks at validation." + (" Ring: the weights kept." if best else ""),
    )  # fmt: skip


def confusion(summary: Mapping[str, Any], classes: Sequence[str]) -> Figure | None:
    """Truth against answer of one set; None without classes, or with too many to draw."""
    counts = summary["confusion"]
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
        title="Confusion", kind="matrix", x="answer", y="truth", series=series,
        caption=f"n = {summary['num']} images; shade: share of the row. {about}",
    )  # fmt: skip


def trust(sets: Mapping[str, Any], tests: Iterable[str], names: Mapping[str, str]) -> list[Figure]:
    """Reliability of each test set; risk against coverage, and accuracy by views, of all in one."""
    own = {names[test]: sets[test] for test in tests}
    found = [_reliability(name, summary) for name, summary in own.items()]
    found += [_risk_coverage(own), _views(own)]
    return [figure for figure in found if figure is not None]


def _reliability(name: str, summary: Mapping[str, Any]) -> Figure | None:
    bins = summary["reliability"]
    if not bins:
        return None
    hits = _estimates([b["confidence"] for b in bins], [b["accuracy"] for b in bins])
    return Figure(
        title=f"Reliability, {name}", kind="points", x="calibrated probability of the answer",
        y="accuracy", x_range=[0.0, 1.0], y_range=[0.0, 1.0], diagonal=True, series={"bin": hits},
        caption=f"n = {summary['num']} images in {len(bins)} bin{'s' if len(bins) > 1 else ''}. On the diagonal, 0.8 means right 8 times in 10.",
    )  # fmt: skip


def _risk_coverage(own: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    found = {name: s["risk_coverage"] for name, s in own.items() if s["risk_coverage"]}
    if not found:
        return None
    areas = [
        f"{number(r['aurc']['value'])} [{number(r['aurc']['low'])}, {number(r['aurc']['high'])}] {name}"
        for name, r in found.items()
    ]
    return Figure(
        title="Risk against coverage", kind="line", x="share answered, surest first",
        y="errors among them", x_range=[0.0, 1.0],
        series={
            name: Series(x=[float(v) for v in r["coverage"]], y=[float(v) for v in r["risk"]])
            for name, r in found.items()
        },
        caption=f"Area under the curve, lower is better: {'; '.join(areas)}.",
    )  # fmt: skip


def _views(own: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    found = {name: s["views"] for name, s in own.items() if len(s["views"]) > 1}
    if not found:
        return None
    most = max(view["views"] for views in found.values() for view in views)
    return Figure(
        title="Accuracy by views of a part", kind="line", x="views pooled (mean logits)",
        y="accuracy", x_range=[1.0, float(most)], y_range=[0.0, 1.0],
        series={
            name: _estimates([v["views"] for v in views], [v["accuracy"] for v in views])
            for name, views in found.items()
        },
        caption="Views drawn at random from each part; bands: 95 % intervals over parts.",
    )  # fmt: skip


def _estimates(x: Iterable[Number], estimates: Sequence[Mapping[str, Any]]) -> Series:
    ends = {key: [float(e[key]) for e in estimates] for key in ("value", "low", "high")}
    return Series(x=[float(v) for v in x], y=ends["value"], low=ends["low"], high=ends["high"])


def int8(card: Mapping[str, Any] | None, tests: Iterable[str]) -> dict[str, Any] | None:
    """The graph in 8 bits beside the one in 32: size, latency, score; None where there is none."""
    if not card or not card.get("int8"):
        return None
    made, measured = card["pipeline"]["quantized"], card["int8"]["metrics"]
    sides = {"fp32": card["metrics"], "int8": measured}
    rows = []
    for name, sets in sides.items():
        own = made[name]
        rows.append({
            "name": name, "size": f"{own['bytes'] / 1e6:.2f} MB", "p50": f"{own['p50_ms']:.0f} ms",
            "p95": f"{own['p95_ms']:.0f} ms", "val": own["score"],
            "tests": [next(iter(sets[test]["metrics"].values())) for test in tests],
        })  # fmt: skip
    smaller = made["fp32"]["bytes"] / made["int8"]["bytes"]
    faster = made["fp32"]["p50_ms"] / made["int8"]["p50_ms"]
    verdicts = [
        f"{one['difference']['value']:+.3f} [{one['difference']['low']:+.3f}, {one['difference']['high']:+.3f}] on {one['set']}"
        for one in card["int8"]["comparisons"]
    ]
    bars = Figure(
        title="Latency of one tile", kind="bar", x="ms, one thread, one tile at a time", y="graph",
        series={
            name: Series(x=sorted(sides), y=[made[side][key] for side in sorted(sides)])
            for name, key in (("median", "p50_ms"), ("95th percentile", "p95_ms"))
        },
        caption="onnxruntime on the machine that trained, after warm-up.",
    )  # fmt: skip
    kept = made["kept"]
    return {
        "headline": f"The int8 graph is {smaller:.1f} times smaller and {faster:.1f} times faster; difference in score: {'; '.join(verdicts)}.",
        "rows": rows,
        "bars": bars,
        "kept": f"{made['share']:.0%} of the weights are in 8 bits. Layers left in 32 bits: {', '.join(kept) or 'none'}.",
    }
