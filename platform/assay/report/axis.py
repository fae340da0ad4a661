"""Axes of a figure: where a value lies, and which values bear a mark."""

import math
from dataclasses import dataclass

Number = float | int


@dataclass(frozen=True)
class Scale:
    """Values of an axis to pixels."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    def __call__(self, value: Number) -> Number:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def span(values: list[float], fixed: list[float] | None) -> tuple[Number, Number]:
    """Return the ends of an axis: as fixed, or the data's and 0, never equal."""
    low, high = fixed or (min(0.0, *values), max(0.0, *values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1)


def round_ticks(low: Number, high: Number, least: Number = 0.0) -> tuple[Number, list[Number]]:
    """Choose a round step of at least `least` and its multiples within the axis, at most six."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    step = max(step, least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return step, [i * step for i in range(first, last + 1)]


def log_span(values: list[float]) -> tuple[Number, Number]:
    """Return the ends of a logarithmic axis: a little beyond the data's."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    margin = max((high / low) ** 0.04, 1.05)
    return low / margin, high * margin


def log_ticks(low: Number, high: Number) -> list[Number]:
    """Choose round values within a logarithmic axis, at most six: of each decade 1, 2 and 5, or 1 and 3, or every so many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**e for e in range(first, last + 1) for m in steps]
        ticks = [value for value in values if low <= value <= high]
        if len(ticks) <= 6:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / 6)]
    return ticks if len(ticks) > 1 else round_ticks(low, high)[1]


def tick_text(value: Number, step: Number) -> str:
    """Write a value of an axis with as many decimals as its step has."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(size, 10_000):
            return f"{value / size:g}{unit}".replace("-", "\N{MINUS SIGN}")
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    if digits > 4:
        mantissa, _, power = f"{value:.2e}".partition("e")
        text = f"{float(mantissa):g}e{int(power)}" if value else "0"
    else:
        digits += round(step * 10**digits * 10) % 10 > 0
        text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")
