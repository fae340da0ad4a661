"""What a comparison of two runs says; read where there is no table to compare."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from assay.metrics.estimate import Estimate

SIGNIFICANT = 0.05
"""Corrected p below which a difference counts."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The exact test of McNemar (1947) on the answers that only one of two runs has right."""

    unit: str
    """"groups" (by their mean logits), or "images" where groups have several truths; images of one
    group are not independent, so their p is too small."""
    only_first: int
    """Right in the first run alone."""
    only_second: int
    """Right in the second run alone."""
    p: float
    """Two-sided, binomial."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The first run against one other on one test set."""

    set: str
    metric: str
    first_name: str
    name: str
    first: Estimate
    second: Estimate
    difference: Estimate
    """The first less the second."""
    p: float
    """Of no difference, by the standard error of the interval."""
    p_holm: float
    """Corrected for all comparisons made at once (Holm, 1979)."""
    mcnemar: McNemar | None
    """None where rows bear scores and no classes."""

    @property
    def side(self) -> Literal["better", "worse", ""]:
        """What the first run is beside the other; empty where that cannot be told."""
        if self.difference.undecided or self.p_holm >= SIGNIFICANT:
            return ""
        return "better" if self.difference.value > 0 else "worse"

    @property
    def verdict(self) -> str:
        """The better run, or why it cannot be told, in words."""
        if not self.side:
            return self.difference.undecided or "not significantly different"
        return f"{self.first_name} is {self.side} than {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return asdict(self) | {"verdict": self.verdict}
