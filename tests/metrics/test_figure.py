"""Figures: what is refused, and that the drawing shows the numbers it was given."""

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import PredictionsError
from assay.metrics.figure import Figure, Series
from assay.report import axis, svg
from assay.typed import from_json, to_json

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


def line(**changes: Any) -> Figure:
    values: dict[str, Any] = {
        "title": "Loss",
        "kind": "line",
        "series": {"a": Series(x=[0.0, 1.0, 2.0], y=[0.0, 0.5, 1.0])},
        "x_range": [0.0, 2.0],
        "y_range": [0.0, 1.0],
    }
    return Figure(**values | changes)


def parsed(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(svg.render_svg(figure))


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("class") == name]


@given(
    st.sampled_from(["line", "points", "bar", "matrix"]),
    st.lists(NUMBERS, min_size=1, max_size=20),
    st.text(max_size=30),
    st.text(min_size=1, max_size=30),
)
def test_any_figure_is_well_formed_and_returns_from_json(kind, values, title, name):
    names = [f"{name}{i}" for i in range(len(values))]
    x = names if kind in ("bar", "matrix") else [float(i) for i in range(len(values))]
    ends = {"low": [v - 1 for v in values], "high": [v + 1 for v in values]}
    figure = Figure(title=title, kind=kind, series={name: Series(x=x, y=values, **ends)}, x=title)
    root = parsed(figure)
    assert root.get("role") == "img"
    assert root.get("aria-label") is not None
    shapes = re.sub(
        r"<text.*?</text>|<title>.*?</title>|aria-label=.*?>", "", svg.render_svg(figure)
    )
    assert not re.search("nan|inf", shapes)
    assert from_json(Figure, json.loads(json.dumps(to_json(figure)))) == figure


def test_hostile_text_stays_text():
    name = '<script>alert("1")</script>\x00\x1b'
    drawn = svg.render_svg(
        Figure(title=name, kind="bar", series={name: Series(x=[name], y=[0.5])}, caption=name)
    )
    assert "<script" not in drawn
    assert "\x00" not in drawn
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"series": {}}, "empty"),
        ({"series": {"a": Series(x=[], y=[])}}, "empty"),
        ({"series": {"a": Series(x=[0.0, 1.0], y=[0.0])}}, "equally many"),
        ({"series": {"a": Series(x=[0.0], y=[0.0], low=[0.0, 0.0], high=[1.0])}}, "equally many"),
        ({"series": {"a": Series(x=[0.0], y=[math.nan])}}, "not finite"),
        ({"series": {"a": Series(x=[0.0], y=[0.0], low=[-math.inf], high=[1.0])}}, "not finite"),
        ({"chosen": [0.0, math.inf]}, "not finite"),
        ({"x_range": [0.0, math.nan]}, "not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, word):
    with pytest.raises(PredictionsError, match=word):
        line(**changes)


def test_points_lie_where_their_values_say():
    root = parsed(line())
    points = [
        tuple(map(float, p.split()))
        for p in re.findall(r"[\d.]+ [\d.]+", of_class(root, "line")[0].get("points", ""))
    ]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2  # down the page is less
    labels = {t.text: float(t.get("y", "")) for t in of_class(root, "tick")}
    # the labels of 0 and 1 stand at the heights of the points that have these values
    assert labels["1.0"] - labels["0.0"] == pytest.approx(y2 - y0)


def test_bars_are_as_long_as_their_values_and_bear_them():
    root = parsed(Figure(title="t", kind="bar", series={"a": Series(x=["p", "q"], y=[0.25, 0.75])}))
    short, long = [float(bar.get("width", "")) for bar in of_class(root, "bar")]
    assert long / short == pytest.approx(3, rel=0.01)
    assert [t.text for t in of_class(root, "row")] == ["p", "q", "0.250", "0.750"]


def test_whiskers_reach_from_low_to_high():
    series = Series(x=[1.0], y=[0.5], low=[0.0], high=[1.0])
    root = parsed(line(kind="points", series={"a": series}))
    start, end = map(
        float,
        re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", of_class(root, "whisker")[0].get("d", ""))[0],
    )
    axis = [float(t.get("y", "")) - 4 for t in of_class(root, "tick") if t.text in ("0.0", "1.0")]
    assert sorted(axis)[:2] == pytest.approx(sorted([start, end]), abs=0.2)


def test_a_confusion_marks_errors_and_shades_by_share_of_the_row():
    series = {"a": Series(x=["a", "b"], y=[9.0, 1.0]), "b": Series(x=["a", "b"], y=[0.0, 2.0])}
    root = parsed(Figure(title="t", kind="matrix", series=series))
    right, wrong = of_class(root, "right"), of_class(root, "wrong")
    assert len(right) == 2
    assert len(wrong) == 1
    assert [cell.get("d", "").count("M") for cell in [*right, *wrong]] == [1, 1, 1]
    shades = [float(cell.get("fill-opacity", "")) for cell in [*right, *wrong]]
    assert shades[1] > shades[0] > shades[2]
    assert [t.text for t in of_class(root, "in")] == ["9", "1", "2"]


def test_a_table_of_values_is_no_confusion():
    series = {"a": Series(x=["p", "q"], y=[0.5, 1.0])}
    root = parsed(Figure(title="t", kind="matrix", series=series))
    assert not of_class(root, "wrong")
    assert [t.text for t in of_class(root, "in")] == ["0.50", "1.00"]


def test_series_differ_in_more_than_colour():
    series = {name: Series(x=[0.0, 1.0], y=[0.0, 1.0]) for name in "abcd"}
    root = parsed(line(series=series))
    markers = {re.sub(r"^M\S+ [\d.]+", "", dot.get("d", "")) for dot in of_class(root, "dot")}
    assert len(markers) == 4
    assert {t.text for t in of_class(root, "row")} == set("abcd")


@pytest.mark.parametrize("kind", ["line", "points", "bar"])
def test_the_key_to_series_stands_below_the_name_of_the_axis(kind):
    x: list[Any] = ["p"] if kind == "bar" else [0.0]
    series = {name: Series(x=x, y=[1.0]) for name in ("first", "second")}
    heights = {
        text.text: float(text.get("y", "nan"))
        for text in parsed(Figure(title="t", kind=kind, series=series, y="axis")).iter()
        if text.text in ("axis", "first", "second")
    }
    # Letters of 11 px.
    assert min(heights["first"], heights["second"]) >= heights["axis"] + 11


@given(NUMBERS, st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    high = low + width
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return
    step, ticks = axis.round_ticks(low, high)
    assert len(ticks) <= 7
    assert all(low - step * 1e-6 <= t <= high + step * 1e-6 for t in ticks)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-6


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.25, 0.25, "0.25"),
        (2.5, 2.5, "2.5"),
        (0.002, 0.0005, "0.0020"),
        (200.0, 100.0, "200"),
        (20000.0, 5000.0, "20k"),
        (-0.5, 0.5, "\N{MINUS SIGN}0.5"),
        (2e-6, 1e-6, "2e\N{MINUS SIGN}6"),
        (0.000125, 2.5e-5, "1.25e\N{MINUS SIGN}4"),
        (0.0, 1e-6, "0"),
        (-20000.0, 5000.0, "\N{MINUS SIGN}20k"),
        (2_500_000.0, 500_000.0, "2.5M"),
        (3e9, 1e9, "3G"),
    ],
)
def test_ticks_say_their_value(value, step, text):
    assert axis.tick_text(value, step) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01, "0.01"),
        (9.306, "9.31"),
        (115_088, "115 k"),
        (28_589_128, "28.6 M"),
        (4.1e9, "4.1 G"),
        (999.96, "1 k"),
        (0, "0"),
        (100, "100"),
    ],
)
def test_counts_have_three_digits_whatever_their_size(value, text):
    assert svg.count(value) == text


@given(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=9))
def test_a_logarithmic_axis_spaces_ratios_evenly_and_names_round_values(values):
    figure = line(
        kind="points",
        series={"a": Series(x=values, y=[0.5] * len(values))},
        x_range=None,
        x_log=True,
    )
    root = parsed(figure)
    markers = [float(re.match(r"M([\d.]+)", dot.get("d"))[1]) for dot in of_class(root, "dot")]
    # on a line through the ends: equal ratios are equal distances
    low, high = min(values), max(values)
    ends = markers[values.index(low)], markers[values.index(high)]
    for value, x in zip(values, markers, strict=True):
        share = math.log(value / low) / math.log(high / low) if high > low else 0.0
        assert x == pytest.approx(ends[0] + share * (ends[1] - ends[0]), abs=0.2)
    assert all(44 < x < 262 - 8 for x in markers)
    ticks = [t for t in of_class(root, "tick") if t.get("text-anchor") == "middle"]
    assert 1 <= len(ticks) <= 6
    assert all(44 <= float(tick.get("x")) <= 254 for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 21, [1, 2, 5, 10, 20]),
        (0.9, 110, [1, 3, 10, 30, 100]),
        (0.9, 1.1e4, [1, 10, 100, 1000, 10_000]),
        (0.9, 1.1e9, [1, 1e2, 1e4, 1e6, 1e8]),
        (6.1, 8.9, [7.0, 8.0]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(low, high, ticks):
    assert axis.log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("x", [[0.0], [-1.0], ["a"]])
def test_a_logarithmic_axis_refuses_what_has_no_logarithm(x):
    with pytest.raises(PredictionsError, match="not above 0"):
        line(kind="points", series={"a": Series(x=x, y=[0.5])}, x_log=True)


def test_a_large_figure_stays_small():
    x = [float(i) for i in range(500)]
    series = {
        n: Series(x=x, y=[math.sin(v) for v in x], low=[-1.0] * 500, high=[1.0] * 500)
        for n in "abc"
    }
    assert len(svg.render_svg(line(series=series))) < 60_000
    classes = [f"machine {i}" for i in range(40)]
    rows = {
        c: Series(x=classes, y=[1.0 if (i * j) % 4 == 0 else 0.0 for j in range(40)])
        for i, c in enumerate(classes)
    }
    assert len(svg.render_svg(Figure(title="t", kind="matrix", series=rows))) < 60_000


@pytest.mark.parametrize(("num", "shown"), [(4, {"1.00", "0.25"}), (13, {"1", ".25"})])
def test_numbers_of_narrow_cells_do_not_touch(num: int, shown: set[str]) -> None:
    columns = [f"c{i}" for i in range(num)]
    series = {"row": Series(x=columns, y=[1.0, 0.25] * (num // 2) + [1.0] * (num % 2))}
    root = parsed(Figure(title="t", kind="matrix", series=series))
    assert {e.text for e in root.iter() if e.get("class") == "in"} == shown
