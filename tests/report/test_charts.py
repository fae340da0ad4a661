"""Curves, shares of time, and colours that can be read."""

import re
from types import SimpleNamespace

import pytest

from assay.metrics.estimate import Estimate
from assay.metrics.figure import Figure, Series
from assay.metrics.summary import RiskCoverage, Summary, Views
from assay.report import charts
from assay.report import page as report
from assay.report.svg import count, render_svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_600, "1 M"),
        (85_798_656, "85.8 M"),
        (2e12, "2 T"),
    ],
)
def test_large_numbers_are_written_in_three_digits(value, text):
    assert count(value) == text


@pytest.mark.parametrize(("kind", "unit"), [("tiles", "tile"), ("image", "image")])
def test_a_graph_that_takes_less_than_a_millisecond_does_not_take_none(estimate, kind, unit):
    graph = {"bytes": 4_210, "p50_ms": 0.4213, "p95_ms": 1.618, "score": 0.9}
    graphs = {"fp32": graph, "int8": graph, "kept": [], "share": 1.0}
    compared = SimpleNamespace(set="test_seen", difference=Estimate(**estimate(0.1)))
    sets = {"test_seen": Summary(num=1, num_groups=1, metrics={"accuracy": compared.difference})}
    card = SimpleNamespace(
        pipeline={"kind": kind, "quantized": graphs},
        metrics=sets,
        int8=SimpleNamespace(metrics=sets, comparisons=[compared]),
    )
    drawn = charts.int8(card, {"test_seen": "known parts"})
    assert drawn["headline"].endswith(
        "difference in score: +0.100 [+0.000, +0.200] on known parts."
    )
    row = drawn["rows"][0]
    assert (row["size"], row["p50"], row["p95"]) == ("0.00421 MB", "0.421 ms", "1.62 ms")
    assert drawn["bars"].title == f"Latency of one {unit}"


@pytest.mark.parametrize(
    ("select", "vals", "chosen"),
    [
        ("accuracy", [(0.5, 0.1), (0.75, 0.9), (0.75, 0.5), (0.7, 0.1)], [3.0, 0.75]),
        ("nll", [(0.5, 0.3), (0.9, 0.2), (0.95, 0.2), (1.0, 0.4)], [3.0, 0.2]),
        ("accuracy", [(0.5, None), (0.75, None)], [2.0, 0.75]),
        ("iou", [(0.5, 0.3), (0.9, 0.2)], None),
    ],
)
def test_the_ring_is_where_the_rule_chose(select, vals, chosen):
    lines = [{"step": i + 1, "accuracy": a, "nll": n} for i, (a, n) in enumerate(vals)]
    labels = {"accuracy": "accuracy of frames", "nll": "NLL"}
    figures = charts.curves({"step": [], "val": lines, "epoch": []}, select, labels)
    assert [figure.chosen for figure in figures] == [chosen]
    shown = labels.get(select, "accuracy of frames")
    assert [figure.title for figure in figures] == [f"Validation {shown}"]


def test_curves_leave_out_what_was_not_finite_and_pool_what_is_long():
    steps = [{"step": i + 1, "loss": None if i == 5 else float(i)} for i in range(1200)]
    figure = charts.curves({"step": steps, "val": [], "epoch": []}, "accuracy", {})[0]
    series = figure.series["loss"]
    assert figure.caption == (
        "n = 1199 updates. Line: mean of 9 or 10; band: their range. Of 1 more it was not finite."
    )
    assert len(series.y) == 120
    assert series.low is not None
    assert series.high is not None
    assert series.low[0] == 0.0
    assert series.high[-1] == 1199.0
    assert all(a <= b <= c for a, b, c in zip(series.low, series.y, series.high, strict=True))


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.1, success criterion 1.4.3."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_in_light_and_dark(theme):
    css = (report.PAGES / "report.css").read_text()
    rules = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = {
        name: [int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        for name, value in re.findall(r"--(\w+): #([0-9a-f]{6})", rules)
    }
    for ground in ("paper", "tint"):
        for text in ("ink", "muted", "s0", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for cell in ("right", "wrong"):  # the strongest shade that a matrix draws
        shaded = [0.75 * c + 0.25 * p for c, p in zip(colours[cell], colours["paper"], strict=True)]
        assert contrast(colours["ink"], shaded) >= 4.5, cell
    for line in ("s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


def test_time_is_shared_out_among_the_parts_of_an_update():
    parts = {"wait_s": 0.5, "cut_s": 1.0, "forward_s": 1.5, "backward_s": 4.0, "update_s": 2.0}
    steps = [{"step": i, "step_s": 10.0} | parts for i in (1, 2)]
    *_, figure = charts.curves({"step": steps, "val": [], "epoch": []}, "accuracy", {})
    (shares,) = figure.series.values()
    assert dict(zip(shares.x, shares.y, strict=True)) == pytest.approx(
        {"wait": 0.05, "cut": 0.1, "forward": 0.15, "backward": 0.4, "update": 0.2, "other": 0.1}
    )
    assert "2 updates of 10 s" in figure.caption


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (0.0005, "0.001"), (0.9, "0.900"), (3e-5, "3e\N{MINUS SIGN}05")],
)
def test_a_rate_above_nought_is_not_nought_under_the_pointer(value: float, text: str) -> None:
    series = {"rate": Series(x=[0.0], y=[value])}
    figure = Figure(title="Learning rate", kind="line", x="update", series=series, caption="")
    assert f"<title>rate, 0: {text}</title>" in render_svg(figure)


@pytest.mark.parametrize(("char", "width"), [("a", 6.1), ("\N{CJK UNIFIED IDEOGRAPH-5272}", 11.0)])
def test_a_name_is_clipped_to_its_margin_in_any_script(char: str, width: float) -> None:
    figure = Figure(title="t", kind="bar", series={"": Series(x=[60 * char], y=[0.5])})
    (name,) = re.findall(
        r'text-anchor="end">([^<]*\N{HORIZONTAL ELLIPSIS}[^<]*)<', render_svg(figure)
    )
    assert 100 < width * (len(name) - 1) < 142


@pytest.mark.parametrize("num", [1, 2])
def test_an_interval_is_seen_even_where_a_line_has_one_point(num: int) -> None:
    series = Series(x=[3.0, 4.0][:num], y=num * [0.5], low=num * [0.2], high=num * [0.9])
    drawn = render_svg(Figure(title="t", kind="line", series={"a": series}))
    assert ('class="whisker"' in drawn) == (num == 1)
    assert ('class="band"' in drawn) == (num > 1)


def test_curves_of_answers_say_their_n(estimate) -> None:
    views = [Views(views=i, accuracy=Estimate(**estimate(0.8))) for i in (1, 2)]
    risk = RiskCoverage(coverage=[0.5, 1.0], risk=[0.0, 0.5], aurc=Estimate(**estimate(0.25)))
    summary = Summary(num=1, num_groups=1, risk_coverage=risk, views=views, confusion=[[1]])
    captions = [
        figure.caption
        for figure in charts.trust({"test": summary}, ["test"], {"test": "old parts"})
    ]
    assert "0.250 [0.150, 0.350] old parts (n = 1 image)" in captions[0]
    assert captions[1].startswith("n of parts = 20 (old parts).")
    assert charts.confusion(summary, ["good"]).caption.startswith("n = 1 image;")


@pytest.mark.parametrize("kind", ["line", "points"])
def test_a_legend_shows_a_line_only_where_one_is_drawn(kind: str) -> None:
    series = Series(x=[1.0, 2.0], y=[0.5, 0.6])
    drawn = render_svg(Figure(title="t", kind=kind, series={"a": series, "b": series}))
    assert ('class="line"' in drawn) == (kind == "line")
