"""Images that are copies of one another: their clusters, and what they mean for a split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assay.data.duplicates import join_rows
from assay.data.folder import SPLITS


@dataclass(frozen=True, order=True)
class NearPair:
    """Two images that are copies of one another, by their contents, first < second."""

    first: str
    second: str
    agreement: float
    """Correlation of their detail, from `register.LIMIT` to 1."""


@dataclass(frozen=True)
class NearDuplicate:
    """A row that is a copy of one of the set it is compared with."""

    agreement: float
    """Correlation of their detail."""
    row: int
    set: str
    twin: int
    """The nearest row of the other set; the first of equally near ones."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """How many images of a set have a near-copy in train."""

    num: int
    """Images."""
    near: int
    """Those with a near-copy."""
    classes: Mapping[str, tuple[int, int]]
    """Both by class."""

    @property
    def share(self) -> float:
        """Share of the images that have a near-copy in train."""
        return self.near / self.num


def clusters(contents: Sequence[str], pairs: Sequence[NearPair]) -> list[str]:
    """Name the cluster of every row by the first content in it; a chain of pairs is one cluster."""
    unique = sorted(set(contents))
    number = {content: i for i, content in enumerate(unique)}
    links = [
        (number[pair.first], number[pair.second])
        for pair in pairs
        if pair.first in number and pair.second in number
    ]
    cluster: dict[str, str] = {}
    for unit in join_rows([unique], list(range(len(unique))), links):
        cluster |= {unique[i]: unique[unit[0]] for i in unit}
    return [cluster[content] for content in contents]


def near_duplicates(
    pairs: Sequence[NearPair],
    contents: Sequence[str],
    sets: Sequence[str | None],
    against: str = "train",
) -> list[NearDuplicate]:
    """Find the rows of later sets that are copies of a row of train, or of val; the nearest pairs first.

    Against train stand val and the tests, against val the tests alone: what is chosen or fitted on
    val should not be tested on copies of it either.
    """
    twins: dict[str, int] = {}
    for row, (content, name) in enumerate(zip(contents, sets, strict=True)):
        if name == against:
            twins.setdefault(content, row)
    best = {content: (1.0, -row) for content, row in twins.items()}
    for pair in pairs:
        for content, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if other in twins:
                match = pair.agreement, -twins[other]
                best[content] = max(match, best.get(content, match))
    later = SPLITS[SPLITS.index(against) + 1 :]
    copies = [
        NearDuplicate(best[content][0], row, name, -best[content][1])
        for row, (content, name) in enumerate(zip(contents, sets, strict=True))
        if name in later and content in best
    ]
    return sorted(copies, key=lambda copy: (-copy.agreement, copy.row))


def leaks(
    duplicates: Sequence[NearDuplicate], sets: Sequence[str | None], labels: Sequence[str]
) -> dict[str, Leak]:
    """Count near-copies of train by set that is later than it, and by class; sets without one included."""
    of_row = Counter(zip(sets, labels, strict=True))
    of_copy = Counter((each.set, labels[each.row]) for each in duplicates)
    answer = {}
    for name in SPLITS[1:]:
        classes = sorted(label for key, label in of_row if key == name)
        if classes:
            counts = {label: (of_row[name, label], of_copy[name, label]) for label in classes}
            num, near = (sum(column) for column in zip(*counts.values(), strict=True))
            answer[name] = Leak(num=num, near=near, classes=counts)
    return answer
