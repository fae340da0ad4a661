"""What the predictions of one set are worth, as it is computed, kept in JSON and read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from assay.metrics.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class."""

    num: int
    """Its samples."""
    recall: Estimate | None
    """None where the class is never true."""
    precision: Estimate | None
    """None where it is never answered."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes that share a value of a domain column, such as machines of one model."""

    accuracy: Estimate
    """Answers of the right family."""
    within: Estimate | None
    """The share of errors that stay in the family; None without errors."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose largest probability is above `low` and at most `high`."""

    low: float
    high: float
    num: int
    confidence: float
    """Their mean largest probability."""
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """Errors among the most confident rows, the most confident first."""

    coverage: list[float] = field(default_factory=list)
    """Shares of all rows."""
    risk: list[float] = field(default_factory=list)
    """Share of errors among them."""
    aurc: Estimate | None = None
    """The mean risk."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The mean logits of so many random samples of a group."""

    views: int
    accuracy: Estimate
    """Each group counts once."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the predictions of one set are worth."""

    num: int
    """Number of samples."""
    num_groups: int
    """Number of groups."""
    metrics: Mapping[str, Estimate | None] = field(default_factory=dict)
    """The main score first; None where it has no meaning."""
    domains: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Main score by domain column (without its prefix), then by domain."""
    worst_domain: tuple[str, str] | None = None
    """Column and name of the domain with the lowest score; None without domain columns."""
    classes: Mapping[str, ClassSummary] = field(default_factory=dict)
    """By class; empty, as all that follows, where rows bear scores and no classes."""
    confusion: list[list[int]] = field(default_factory=list)
    """Samples by truth (rows) and answer (columns)."""
    families: Mapping[str, Family] = field(default_factory=dict)
    """By domain column that classes share."""
    reliability: list[Bin] = field(default_factory=list)
    """Bins of the largest probability that have rows."""
    risk_coverage: RiskCoverage | None = None
    views: list[Views] = field(default_factory=list)
    """The same groups at each number of views."""

    @property
    def main(self) -> tuple[str, Estimate]:
        """Name and value of the main score.

        Raises:
            ValueError: the set has no score.
        """
        for name, estimate in self.metrics.items():
            if estimate is not None:
                return name, estimate
        raise ValueError("A set without a score has no main one.")
