"""How numbers and words are written on a page; the templates' filters."""

from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate
from assay.report.axis import Number
from assay.report.svg import number


def strip(
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


def signed(value: Number) -> str:
    """Write a number with its sign."""
    return ("+" if value >= 0 else "") + number(value)


def percent(value: Number) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:g} %"


def p_value(value: Number) -> str:
    """Write the p-value of a test."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def moment(seconds: Number) -> str:
    """Write seconds since 1970 as a day and a time of day; nothing for a number that is no time."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def duration(seconds: Number) -> str:
    """Write seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def setting(value: Any) -> str:
    """Write a setting's value as it would be read aloud."""
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def doubt(comparison: Comparison) -> str:
    """Say why neither run is better; empty where one is."""
    return "" if comparison.side else comparison.verdict


def lower(text: str) -> str:
    """Write a measure's name inside a sentence; abbreviations stay as they are."""
    return text[:1].lower() + text[1:] if text.split(" ")[0][1:].islower() else text


def capital(text: str) -> str:
    """Write a name at the beginning of a line, its other letters as they are."""
    return text[:1].upper() + text[1:]


def listed(words: list[str]) -> str:
    """Join words as a sentence lists them."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
