"""Decisions: what is fitted on val, once, and then holds for every test set, bundle and server.

    temperature  logits / temperature have the least NLL on val; 1 where val has no error, since
                 nothing is known of how sure to be and any sharpening would pay
    set          the classes an image may be: it holds the truth at a stated coverage (conformal),
                 and always the likeliest class
    rejected     the set is several classes; ask a person
    answer       the likeliest class; or, of a class that must not be missed, by its threshold; or
                 the class of least expected cost

What the coverage promises: an image, drawn at random, of a new group of the population val is from
has its truth in its set with at least this probability, over the drawing of val and of the group.
It promises nothing for a domain that val has not seen, nor class by class. Temperature and best
epoch are chosen on the same val, so the promise is not exact: `measure_decision` checks it on test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from assay.config import Settings, Share
from assay.errors import ConfigError, PredictionsError
from assay.metrics.calibration import ece, estimate_nll, fit_temperature
from assay.metrics.estimate import Estimate, interval, share_of
from assay.metrics.scores.classes import softmax
from assay.shapes import Bool, Float, Int, Shaped


@dataclass(frozen=True, kw_only=True)
class DecideConfig(Settings, section="decide"):
    """How answers are drawn from probabilities."""

    coverage: Annotated[float, Interval(ge=0.5, lt=1)] = 0.9
    """Least share of images whose conformal set holds the truth, of new groups like val's."""

    costs: tuple[str, ...] = ()
    """What answers cost, each "truth>answer=cost"; a right one costs 0 and a wrong one 1 unless
    named here, in any unit."""

    positive: str = ""
    """Class that must not be missed, a defect: its escapes and what is falsely taken for it are measured, and the
    threshold of its probability is chosen on val, unless costs decide."""

    recall: Share = 0.0
    """Least recall of that class on val; 0 takes the threshold of the best F1."""

    pixel_recall: Share = 0.0
    """For masks: least recall of the pixels of each class on val; 0 takes the threshold of the best F1."""

    def __post_init__(self) -> None:
        """Refuse rules that exclude each other."""
        super().__post_init__()
        if self.recall and not self.positive:
            raise ConfigError(
                f"decide.recall is {self.recall}, but no class is named that it is the recall of; name it in decide.positive."
            )
        if self.costs and self.recall:
            raise ConfigError(
                f"decide.costs and decide.recall {self.recall} are both given, but an answer follows one rule; state what missing the class costs, or leave the costs out."
            )
        pairs = [_parse_cost(text)[:2] for text in self.costs]
        if len(set(pairs)) < len(pairs):
            raise ConfigError(
                f"decide.costs is {', '.join(self.costs)}, which names a pair of truth and answer twice; give each pair one cost."
            )

    def refuse_strangers(self, classes: Sequence[str]) -> None:
        """Refuse to name a class that is none of these.

        Raises:
            ConfigError: the settings do.
        """
        for name in (
            *(name for text in self.costs for name in _parse_cost(text)[:2]),
            self.positive,
        ):
            if name:
                _index(name, classes)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was fitted on val: from logits to an answer that can be acted on."""

    temperature: float
    """Divides the logits."""
    coverage: float
    """Share of images whose set should hold the truth."""
    quantile: float
    """A class is in the set if 1 - its probability is at most this, or if it is the likeliest; 1:
    every class."""
    costs: list[list[float]] | None
    """Cost of each answer (columns) for each truth (rows); None: without costs."""
    positive: int | None
    """Number of the class that must not be missed; None: there is none."""
    threshold: float | None
    """The least probability at which that class is the answer; None: costs decide, or there is none."""
    num: int
    """Number of val images."""
    num_groups: int
    """Number of val groups."""

    @classmethod
    def fit(
        cls,
        logits: Float[np.ndarray, "num classes"],
        truth: Int[np.ndarray, " num"],
        group: Shaped[np.ndarray, " num"],
        classes: Sequence[str],
        config: DecideConfig,
    ) -> "Decision":
        """Fit every part on the predictions of val and on nothing else.

        Args:
            logits: Of val.
            truth: Class of each image.
            group: Group of each image; of one group images need not be independent.
            classes: Names of the classes, in the order of the logits.
            config: What to fit.

        Raises:
            ConfigError: The config names a class that is none of `classes`.
            PredictionsError: Val has no image of the class that must not be missed.
        """
        costs = _cost_matrix(config.costs, classes) if config.costs else None
        positive = _index(config.positive, classes) if config.positive else None
        right = bool((logits.argmax(axis=1) == truth).all())
        temperature = 1.0 if right else fit_temperature(logits, truth)
        probs = softmax(logits.astype(np.float64) / temperature)
        threshold = None
        if positive is not None and costs is None:
            threshold = _fit_threshold(probs[:, positive], truth == positive, config)
        return cls(
            temperature=temperature,
            coverage=config.coverage,
            quantile=_quantile(1 - probs[np.arange(truth.size), truth], group, config.coverage),
            costs=costs,
            positive=positive,
            threshold=threshold,
            num=truth.size,
            num_groups=np.unique(group).size,
        )

    def probs(self, logits: Float[np.ndarray, "num classes"]) -> Float[np.ndarray, "num classes"]:
        """Return the calibrated probabilities, in float64."""
        return softmax(logits.astype(np.float64) / self.temperature)

    def sets(self, probs: Float[np.ndarray, "num classes"]) -> Bool[np.ndarray, "num classes"]:
        """Return which classes each image may be; the likeliest is always one of them.

        Source: Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers, 2019, whose sets
        can be empty; with the likeliest class added they cover no less.
        """
        sets: np.ndarray = 1 - probs <= self.quantile
        sets[np.arange(len(probs)), probs.argmax(axis=1)] = True
        return sets

    def rejected(self, probs: Float[np.ndarray, "num classes"]) -> Bool[np.ndarray, " num"]:
        """Return which images have a set of several classes."""
        is_rejected: np.ndarray = self.sets(probs).sum(axis=1) > 1
        return is_rejected

    def answers(self, probs: Float[np.ndarray, "num classes"]) -> Int[np.ndarray, " num"]:
        """Return the class to act on; of equals the first."""
        if self.costs is not None:
            return (probs @ np.array(self.costs)).argmin(axis=1)
        if self.positive is None:
            return probs.argmax(axis=1)
        rest = probs.copy()
        rest[:, self.positive] = -1.0
        is_positive = probs[:, self.positive] >= self.threshold
        return np.where(is_positive, self.positive, rest.argmax(axis=1))


def measure_decision(
    decision: Decision,
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> dict[str, Estimate]:
    """Measure on a test set what a decision promised on val.

    Returns:
        set_coverage       share of sets that hold the truth; each group counts once, as promised
        set_size           mean number of classes in a set
        rejected           share of images rejected
        accepted_accuracy  share of right answers among the images not rejected
        calibrated_nll     mean NLL in nats; an image can have any, so the range of the interval
                           ends at the largest found, or at log(classes) if that is more
        calibrated_ece     expected calibration error
        decided_accuracy   share of right answers, where a rule other than the likeliest is in force
        recall, precision  of the class that must not be missed
        escapes            share of that class's images that are given another (missed defects)
        overkill           share of the other classes' images that are given that class (good parts rejected)
        cost               mean cost of the answers
        cost_of_argmax     mean cost if the likeliest class were answered

        What has no image to be measured on (the precision of a class never answered) is left out.
    """
    probs = decision.probs(logits)
    sets, num_classes = decision.sets(probs), probs.shape[1]
    covered = sets[np.arange(truth.size), truth].astype(float)
    scaled = logits.astype(np.float64) / decision.temperature
    estimates = {
        "set_coverage": interval(covered, group, weights=_group_weights(group)),
        "set_size": interval(
            sets.sum(axis=1).astype(float), group, lowest=1.0, highest=float(num_classes)
        ),
        "calibrated_nll": estimate_nll(scaled, truth, group),
        "calibrated_ece": ece(probs, truth, group),
    }
    if decision.costs is not None:
        costs = np.array(decision.costs)
        highest = float(costs.max()) or 1.0
        by_cost, likeliest = decision.answers(probs), probs.argmax(axis=1)
        estimates["cost"] = interval(costs[truth, by_cost], group, highest=highest)
        estimates["cost_of_argmax"] = interval(costs[truth, likeliest], group, highest=highest)
    for name, (hits, among) in _shares(decision, probs, truth).items():
        estimate = share_of(hits, among, group)
        if estimate is not None:
            estimates[name] = estimate
    return estimates


def _shares(
    decision: Decision, probs: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]
) -> dict[str, tuple[Bool[np.ndarray, " num"], Bool[np.ndarray, " num"]]]:
    """Return the hits of each measure that is a share, and the images that it is a share of."""
    answers, rejected = decision.answers(probs), decision.rejected(probs)
    right, every = answers == truth, np.ones(truth.size, dtype=bool)
    shares = {"rejected": (rejected, every), "accepted_accuracy": (right, ~rejected)}
    if decision.costs is not None or decision.positive is not None:
        shares["decided_accuracy"] = (right, every)
    if decision.positive is not None:
        is_flagged, is_positive = answers == decision.positive, truth == decision.positive
        shares["recall"] = (is_flagged, is_positive)
        shares["precision"] = (is_positive, is_flagged)
        shares["escapes"] = (~is_flagged, is_positive)
        shares["overkill"] = (is_flagged, ~is_positive)
    return shares


def _quantile(
    scores: Float[np.ndarray, " num"], group: Shaped[np.ndarray, " num"], coverage: float
) -> float:
    """Return the score that `coverage` of all mass does not exceed; 1 if groups are too few.

    Rows of a group are not exchangeable with those of another, groups are: each has mass 1, shared
    equally by its rows, and the group to come has mass 1 at infinity.
    Source: Lee, Barber and Willett, Distribution-Free Inference with Hierarchical Data, 2023, whose
    bound holds at any number of groups; the pooled form of Dunn, Wasserman and Ramdas,
    Distribution-Free Prediction Sets for Two-Layer Hierarchical Models, 2023, tends to it.
    """
    weights = _group_weights(group)
    order = np.argsort(scores, kind="stable")
    mass = np.cumsum(weights[order])
    # thirds do not sum to one exactly; the slack is far below the mass of a row
    enough = mass >= coverage * (np.unique(group).size + 1) - 1e-9
    return float(scores[order][enough.argmax()]) if enough.any() else 1.0


def _group_weights(group: Shaped[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
    """Return weights of rows that sum to 1 in each group."""
    codes, sizes = np.unique(group, return_inverse=True, return_counts=True)[1:]
    weights: np.ndarray = 1 / sizes[codes]
    return weights


def _fit_threshold(
    prob: Float[np.ndarray, " num"], is_positive: Bool[np.ndarray, " num"], config: DecideConfig
) -> float:
    """Return the largest value of `prob` with the recall asked for; without one, with the best F1.

    Only at these values do the answers on val change, so no better threshold exists.
    """
    num_positive = is_positive.sum()
    if not num_positive:
        raise PredictionsError(
            f"None of the {prob.size} val images is {config.positive!r}, so no threshold can be chosen for it; draw val with images of every class, or leave decide.positive out."
        )
    values = np.unique(prob)
    hits = num_positive - np.searchsorted(np.sort(prob[is_positive]), values)
    if config.recall > 0:
        return float(values[hits / num_positive >= config.recall][-1])
    num_flagged = prob.size - np.searchsorted(np.sort(prob), values)
    f1 = 2 * hits / (num_flagged + num_positive)
    return float(values[f1 == f1.max()][-1])


def _parse_cost(text: str) -> tuple[str, str, float]:
    truth, _, rest = text.partition(">")
    answer, _, amount = rest.partition("=")
    try:
        cost = float(amount)
    except ValueError:
        cost = math.nan
    if not 0 <= cost < math.inf or ">" in rest or "=" in truth:
        raise ConfigError(
            f"decide.costs holds {text!r}; write truth>answer=cost with the names of two classes and a finite number from 0, such as crack>good=20."
        )
    return truth, answer, cost


def _cost_matrix(costs: Sequence[str], classes: Sequence[str]) -> list[list[float]]:
    matrix = 1 - np.eye(len(classes))
    for truth, answer, cost in map(_parse_cost, costs):
        matrix[_index(truth, classes), _index(answer, classes)] = cost
    rows: list[list[float]] = matrix.tolist()
    return rows


def _index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise ConfigError(
            f"decide names the class {name!r}, which is not in the data; the classes are: {', '.join(classes) or 'none, as images bear no label'}."
        )
    return list(classes).index(name)
