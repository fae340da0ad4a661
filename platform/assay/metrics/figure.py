"""A figure: plain data that a task's `judge` returns and result.json keeps; `svg` draws it.

line     curves; `low` and `high` make a band around each
points   markers; `low` and `high` make whiskers
bar      one row per name; `low` and `high` make whiskers
matrix   each series is a row of numbers; where rows and columns bear the same names it is a
         confusion: shades are shares of a row, and what lies off the diagonal is an error
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from assay.errors import PredictionsError
from assay.metrics.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve, one set of bars or markers, or one row of a matrix."""

    x: list[float] | list[str]
    """Positions; names for `bar` and for the columns of a `matrix`."""
    y: list[float]
    """Values."""
    low: list[float] | None = None
    """Lower ends of their intervals."""
    high: list[float] | None = None
    """Upper ends of their intervals."""

    @classmethod
    def from_estimates(cls, x: list[float] | list[str], estimates: Sequence[Estimate]) -> "Series":
        """Take the values and their intervals from estimates."""
        return cls(
            x=x,
            y=[estimate.value for estimate in estimates],
            low=[estimate.low for estimate in estimates],
            high=[estimate.high for estimate in estimates],
        )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is drawn, as numbers and words.

    Raises:
        PredictionsError: there is nothing to draw, lengths differ, or a value is not finite.
    """

    title: str
    """A heading of a few words."""
    kind: Literal["line", "points", "bar", "matrix"]
    """See the module's docstring."""
    series: dict[str, Series]
    """Series by name, in the order of the legend."""
    caption: str = ""
    """What is seen, and n."""
    x: str = ""
    """Name of the horizontal axis, with its unit."""
    y: str = ""
    """Name of the vertical axis, with its unit."""
    x_range: list[float] | None = None
    """Ends of the horizontal axis; None: those of the data and 0."""
    x_log: bool = False
    """Space the horizontal axis by logarithms, whose ends are those of the data; for lines and points above 0."""
    y_range: list[float] | None = None
    """Ends of the vertical axis; None: those of the data and 0."""
    diagonal: bool = False
    """Draw the line y = x."""
    chosen: list[float] | None = None
    """A point (x, y) to ring: the threshold or the epoch that val chose."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not any(len(series.y) for series in self.series.values()):
            raise PredictionsError(f"The figure {self.title!r} is empty; give a series of values.")
        axes = [self.x_range, self.y_range, self.chosen]
        numbers = [value for axis in axes for value in axis or []]
        for name, series in self.series.items():
            columns: list[Sequence[Any]] = [series.x, series.y]
            columns += [column for column in (series.low, series.high) if column is not None]
            if len({len(column) for column in columns}) > 1:
                raise PredictionsError(
                    f"The series {name!r} of the figure {self.title!r} has {', '.join(str(len(c)) for c in columns)} values of x, y and intervals; give equally many."
                )
            numbers += [v for column in columns for v in column if not isinstance(v, str)]
            if self.x_log and any(isinstance(v, str) or v <= 0 for v in series.x):
                raise PredictionsError(
                    f"The figure {self.title!r} has a logarithmic axis and a position that is not above 0; leave that point out."
                )
        if not all(math.isfinite(number) for number in numbers):
            raise PredictionsError(
                f"The figure {self.title!r} has a value that is not finite; leave that point out."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain JSON values."""
        return asdict(self)
