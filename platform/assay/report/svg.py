"""Figures drawn as inline SVG.

Drawn here rather than by a plotting library: text stays text in the page's own face, every colour
is a CSS class of the page, so one drawing is right on a light page, on a dark one and on paper, and
it takes 1 to 20 kB. Series differ in dash and marker as well as in colour.
"""

import math
import re
from html import escape
from unicodedata import east_asian_width

from assay.metrics.figure import Figure, Series
from assay.report.axis import Number, Scale, log_span, log_ticks, round_ticks, span, tick_text

WIDTHS = {"line": 262, "points": 262, "bar": 356, "matrix": 356}
"""Width of a drawing (pixels at its natural size, which the page keeps where there is room)."""


NUM_STYLES = 6
"""Number of colours, dashes and markers; a further series begins again with the first."""


_LEFT, _RIGHT, _PLOT = 44, 8, 150


_CHAR, _WIDE_CHAR = 6.1, 11.0
"""Width of a character of the page's sans at 11 pixels, on average, and of a Chinese, Japanese or Korean one (pixels)."""


def render_svg(figure: Figure) -> str:
    """Return the figure as one SVG element; equal figures give equal text."""
    kinds = {"line": _chart, "points": _chart, "bar": _bars, "matrix": _matrix}
    height, parts = kinds[figure.kind](figure)
    about = ". ".join(text.rstrip(".") for text in (figure.title, figure.caption) if text)
    return wrap("plot", WIDTHS[figure.kind], height, about, parts)


def wrap(kind: str, width: Number, height: Number, about: str, parts: list[str]) -> str:
    """Put the parts of a drawing into their SVG element."""
    box = f'viewBox="0 0 {_trim(width)} {_trim(height)}"'
    role = f'role="img" aria-label="{escape_xml(about)}"'
    return f'<svg class="{kind}" {box} {role}>{"".join(parts)}</svg>'


def _chart(figure: Figure) -> tuple[Number, list[str]]:
    """Draw lines and points on two numeric axes."""
    legend, top = _legend(figure, 8)
    bottom = top + _PLOT
    xs = [float(v) for s in figure.series.values() for v in s.x]
    ends = log_span(xs) if figure.x_log else span(xs, figure.x_range)
    across = Scale(*ends, _LEFT, WIDTHS[figure.kind] - _RIGHT, figure.x_log)
    low, high = span(_values(figure), figure.y_range)
    if figure.y_range is None:
        step = round_ticks(low, high)[0]
        low, high = step * math.floor(low / step), step * math.ceil(high / step - 1e-9)
    up = Scale(low, high, bottom, top)
    parts = [*_axes(figure, across, up), *legend]
    if figure.diagonal:
        ends = max(across.low, up.low), min(across.high, up.high)
        points = " ".join(at(across(v), up(v)) for v in ends)
        parts.append(f'<polyline class="diagonal" points="{points}"/>')
    for style, (name, series) in enumerate(figure.series.items()):
        parts.append(f'<g class="s{style % NUM_STYLES}">')
        parts += _curve(figure.kind, name, series, across, up, style)
        parts.append("</g>")
    if figure.chosen is not None:
        x, y = across(figure.chosen[0]), up(figure.chosen[1])
        parts.append(f'<circle class="chosen" cx="{_trim(x)}" cy="{_trim(y)}" r="7"/>')
    return bottom + (38 if figure.x else 22), parts


def _axes(figure: Figure, across: Scale, up: Scale) -> list[str]:
    parts = []
    whole = figure.kind == "line" and all(
        float(v).is_integer() for s in figure.series.values() for v in s.x
    )
    step, ticks = round_ticks(up.low, up.high)
    for value in ticks:
        y = _trim(up(value))
        parts.append(f'<path class="grid" d="M{across.start} {y}H{across.end}"/>')
        parts.append(label(across.start - 6, up(value) + 4, tick_text(value, step), "end"))
    parts.append(f'<path class="axis" d="M{across.start} {_trim(up.start)}H{across.end}"/>')
    step, ticks = round_ticks(across.low, across.high, 1.0 if whole else 0.0)
    named = {value: tick_text(value, step) for value in ticks}
    if across.log:
        named = {value: count(value) for value in log_ticks(across.low, across.high)}
    for value, text in named.items():
        parts.append(
            f'<path class="axis" d="M{_trim(across(value))} {_trim(up.start)}v4"/>'
            + label(across(value), up.start + 16, text, "middle")
        )
    middle = (across.start + across.end) / 2
    parts.append(label(middle, up.start + 33, figure.x, "middle"))
    return parts


def _curve(kind: str, name: str, series: Series, across: Scale, up: Scale, style: int) -> list[str]:
    """Draw band or whiskers, line, and markers where they are few enough to be told apart."""
    xs, ys = [across(float(v)) for v in series.x], [up(v) for v in series.y]
    parts = []
    if series.low is not None and series.high is not None:
        lows, highs = [up(v) for v in series.low], [up(v) for v in series.high]
        if kind == "line" and len(xs) > 1:
            around = [*zip(xs, highs, strict=True), *reversed([*zip(xs, lows, strict=True)])]
            parts.append(f'<polygon class="band" points="{" ".join(at(*p) for p in around)}"/>')
        else:
            parts += [
                f'<path class="whisker" d="M{at(x, a)}V{_trim(b)}"/>'
                for x, a, b in zip(xs, lows, highs, strict=True)
            ]
    if kind == "line":
        points = " ".join(at(*point) for point in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="line" points="{points}"/>')
    if kind == "points" or len(xs) <= 12:
        for i, point in enumerate(zip(xs, ys, strict=True)):
            text = _describe(f"{name}, {series.x[i]:g}", series, i)
            parts.append(_marker(*point, style, text))
    return parts


def _bars(figure: Figure) -> tuple[Number, list[str]]:
    """Draw horizontal bars in rows, from 0, each with its name and its number."""
    legend, top = _legend(figure, 2)
    names = list(dict.fromkeys(str(name) for s in figure.series.values() for name in s.x))
    margin = min(150.0, 10 + max(_width(name) for name in names))
    across = Scale(*span(_values(figure), figure.x_range), margin, WIDTHS[figure.kind] - 50)
    pitch = 10 + 14 * len(figure.series)
    bottom = top + pitch * len(names)
    step, ticks = round_ticks(across.low, across.high)
    parts = legend
    for value in ticks:
        x = _trim(across(value))
        parts.append(f'<path class="grid" d="M{x} {_trim(top)}V{_trim(bottom)}"/>')
        parts.append(label(across(value), bottom + 15, tick_text(value, step), "middle"))
    for i, name in enumerate(names):
        middle = top + pitch * (i + 0.5)
        parts.append(label(margin - 8, middle + 4, _clip(name, margin - 8), "end", "row"))
    for style, series in enumerate(figure.series.values()):
        parts.append(f'<g class="s{style % NUM_STYLES}">')
        for i, row in enumerate(series.x):
            y = top + pitch * names.index(str(row)) + 5 + 14 * (style + 0.5)
            parts += _bar(series, i, y, across, style)
            parts.append(label(WIDTHS[figure.kind] - 2, y + 4, number(series.y[i]), "end", "row"))
        parts.append("</g>")
    parts.append(label((margin + across.end) / 2, bottom + 32, figure.x, "middle"))
    return bottom + (38 if figure.x else 20), parts


def _bar(series: Series, i: int, y: Number, across: Scale, style: int) -> list[str]:
    x, zero = across(series.y[i]), across(min(max(0.0, across.low), across.high))
    box = f'x="{_trim(min(x, zero))}" y="{_trim(y - 5)}" width="{_trim(abs(x - zero))}"'
    parts = [f'<rect class="bar" {box} height="10"/>']
    if series.low is not None and series.high is not None:
        low, high = across(series.low[i]), across(series.high[i])
        parts.append(f'<path class="whisker" d="M{at(low, y)}H{_trim(high)}"/>')
    return [*parts, _marker(x, y, style, _describe(str(series.x[i]), series, i))]


def _matrix(figure: Figure) -> tuple[Number, list[str]]:
    """Shade a table of numbers; many rows are numbered only, very many bear no numbers inside."""
    rows, columns = list(figure.series), [str(v) for v in next(iter(figure.series.values())).x]
    confusion = rows == columns
    named = len(rows) <= 10 or not confusion
    margin = min(150.0, 36 + max(map(_width, rows))) if named else 34.0
    side = min(36.0, (WIDTHS[figure.kind] - margin - 4) / len(columns))
    top = 34.0 if confusion else 24 + min(90.0, max(map(_width, columns)))
    parts = [label(margin, 12, figure.x, "start"), label(0, 12, figure.y, "start")]
    every = math.ceil(len(rows) / 18)
    for i, name in enumerate(columns):
        x = margin + side * (i + 0.5)
        if not confusion:
            turn = f'transform="translate({at(x + 4, top - 6)}) rotate(-90)"'
            parts.append(f'<text class="row" {turn}>{escape_xml(_clip(name, 90))}</text>')
        elif i % every == 0:
            parts.append(label(x, top - 6, str(i + 1), "middle"))
    for i, name in enumerate(rows):
        y, room = top + side * (i + 0.5) + 4, margin - (28 if confusion else 8)
        if confusion and i % every == 0:
            parts.append(label(margin - 8, y, str(i + 1), "end"))
        if named:
            parts.append(label(room, y, _clip(name, room), "end", "row"))
    parts += _cells(figure, confusion, margin, top, side)
    edge = f'width="{_trim(side * len(columns))}" height="{_trim(side * len(rows))}"'
    parts.append(f'<rect class="frame" x="{_trim(margin - 0.5)}" y="{_trim(top - 0.5)}" {edge}/>')
    return top + side * len(rows) + 4, parts


def _cells(figure: Figure, confusion: bool, margin: Number, top: Number, side: Number) -> list[str]:
    values = [value for series in figure.series.values() for value in series.y]
    counts = all(value.is_integer() for value in values)
    shades: dict[tuple[str, str], list[str]] = {}
    labels = []
    for i, series in enumerate(figure.series.values()):
        whole = sum(series.y) if confusion else max(values)
        for j, value in enumerate(series.y):
            if not value:
                continue
            x, y, edge = margin + side * j, top + side * i, _trim(side - 1)
            shade = 0.15 + 0.6 * min(max(value / (whole or 1), 0), 1)
            kind = "wrong" if confusion and i != j else "right"
            squares = shades.setdefault((kind, f"{shade:.2f}"), [])
            squares.append(f"M{at(x, y)}h{edge}v{edge}h-{edge}z")
            if side >= 19:
                shown = f"{value:.0f}" if counts else f"{value:.2f}"
                if side < 27 and not counts:  # four characters would touch the next cell's
                    shown = shown.removeprefix("0").removesuffix(".00")
                middle = side / 2 - 0.5
                labels.append(label(x + middle, y + middle + 4, shown, "middle", "in"))
    return [
        f'<path class="{kind}" fill-opacity="{shade}" d="{"".join(squares)}"/>'
        for (kind, shade), squares in shades.items()
    ] + labels


def _legend(figure: Figure, top: Number) -> tuple[list[str], Number]:
    """Name the vertical axis, show all series where there are several, and say what is below."""
    parts, names = [label(0, 11, figure.y, "start")], list(figure.series)
    top += 14 if figure.y else 0
    if len(names) < 2:
        return parts, top
    # Below the axis' name, whatever the margin above.
    x, y = 0.0, max(top, 22) if figure.y else top
    for style, name in enumerate(names):
        width = 40 + min(_width(name), 30 * _CHAR)
        if x and x + width > WIDTHS[figure.kind]:
            x, y = 0.0, y + 16
        line = f'<path class="line" d="M{at(x, y)}h22"/>' if figure.kind == "line" else ""
        parts.append(
            f'<g class="s{style % NUM_STYLES}">{line}'
            + _marker(x + 11, y, style, name)
            + label(x + 27, y + 4, _clip(name, 30 * _CHAR), "start", "row")
            + "</g>"
        )
        x += width
    return parts, y + 16


def _marker(x: Number, y: Number, style: int, about: str) -> str:
    shapes = (
        "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
        "m-3.2-3.2h6.4v6.4h-6.4z",
        "m0-4.2l4 7.2h-8z",
        "m0-4.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
        "m0 4.2l4-7.2h-8z",
        "m-4.2-1.4h2.8v-2.8h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8z",
    )
    return draw_path("dot", f"M{at(x, y)}{shapes[style % NUM_STYLES]}", about)


def draw_path(kind: str, path: str, about: str) -> str:
    """Draw a path that names itself under the pointer."""
    return f'<path class="{kind}" d="{path}"><title>{escape_xml(about)}</title></path>'


def number(value: Number) -> str:
    """Format a number for pages and figures: three decimals, unless it is large."""
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def count(value: Number) -> str:
    """Write a number of any size in three digits, a large one with its unit: 9.31, 115 k, 28.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _describe(name: str, series: Series, i: int) -> str:
    """Say what a marker shows under the pointer."""
    value = series.y[i]
    # a learning rate of three decimals would be 0
    tiny = f"{value:.1g}".replace("-", "\N{MINUS SIGN}") if 0 < abs(value) < 0.0005 else ""
    text = f"{name}: {tiny or number(value)}"
    if series.low is None or series.high is None:
        return text
    return f"{text} [{number(series.low[i])}, {number(series.high[i])}]"


def label(x: Number, y: Number, text: str, anchor: str, kind: str = "tick") -> str:
    """Write a text; an empty one gives nothing."""
    if not text:
        return ""
    return f'<text class="{kind}" x="{_trim(x)}" y="{_trim(y)}" text-anchor="{anchor}">{escape_xml(text)}</text>'


def _values(figure: Figure) -> list[float]:
    """List all values, and the ends of their intervals."""
    return [
        value
        for series in figure.series.values()
        for value in [*series.y, *(series.low or []), *(series.high or [])]
    ]


def _clip(text: str, width: Number) -> str:
    """Leave out the middle of a text that would not fit."""
    clipped, most = text, len(text)
    while _width(clipped) > width:
        most -= 1
        clipped = f"{text[: (most - 1) // 2]}\N{HORIZONTAL ELLIPSIS}{text[-(most // 2) :]}"
    return clipped


def _width(text: str) -> float:
    """Guess how wide a text is drawn (pixels)."""
    return sum(_WIDE_CHAR if east_asian_width(char) in "WF" else _CHAR for char in text)


def at(x: Number, y: Number) -> str:
    """Write a point as paths and polylines have it."""
    return f"{_trim(x)} {_trim(y)}"


def _trim(value: Number) -> str:
    return f"{value:.1f}".removesuffix(".0")


def escape_xml(text: str) -> str:
    """Escape text for XML, which allows no control characters even when escape_xml."""
    return escape(
        re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)
    )
