"""Duplicates: rows of one part or one file, which may not cross sets. Near-duplicates: see `near`."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from assay.data.folder import SPLITS
from assay.errors import SplitError


def refuse_crossing(
    what: str, keys: list[str], sets: list[str | None], remedy: str = "correct the split"
) -> None:
    """Refuse a given split that has rows of one key in two sets.

    Raises:
        SplitError: it has; the text names the first key and ends with the remedy.
    """
    sides: dict[str, set[str]] = defaultdict(set)
    for key, name in zip(keys, sets, strict=True):
        if name is not None:
            sides[key].add(name)
    crossing = sorted(key for key, names in sides.items() if len(names) > 1)
    if crossing:
        raise SplitError(
            f"The given split has {len(crossing)} {what}(s) in more than one set, first {crossing[0]!r} in "
            f"{' and '.join(sorted(sides[crossing[0]]))}; a {what} may be in one set only: {remedy}."
        )


def settle_copies(
    contents: list[str], sets: list[str | None], duplicates: Literal["refuse", "drop"]
) -> int:
    """Refuse files given to two sets, or give the copies in earlier sets to "dropped" and count them.

    Raises:
        SplitError: a file is in two sets and copies are to be refused.
    """
    if duplicates == "refuse":
        remedy = "correct it, or pass --split.duplicates drop to leave out the earlier copies"
        refuse_crossing("file content", contents, sets, remedy)
        return 0
    order = {name: position for position, name in enumerate(SPLITS)}
    last: dict[str, int] = defaultdict(int)
    for content, name in zip(contents, sets, strict=True):
        if name in order:
            last[content] = max(last[content], order[name])
    dropped = [
        i for i, name in enumerate(sets) if name in order and order[name] < last[contents[i]]
    ]
    for i in dropped:
        sets[i] = "dropped"
    return len(dropped)


def join_rows(
    columns: list[list[str]], rows: list[int], links: Sequence[tuple[int, int]] = ()
) -> list[np.ndarray]:
    """Divide rows into units that no link joins and that share no key in any column (union-find); each ascending."""
    parent = {i: i for i in rows}

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for keys in columns:
        first: dict[str, int] = {}
        for i in rows:
            parent[find(i)] = find(first.setdefault(keys[i], i))
    for i, j in links:
        parent[find(j)] = find(i)
    members: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        members[find(i)].append(i)
    return [np.array(unit) for unit in members.values()]


def spread_sets(groups: list[str], units: list[np.ndarray], sets: list[str | None]) -> None:
    """Give rows without a set that of the rows they must stay with.

    Raises:
        SplitError: a unit has rows given to two sets.
    """
    for rows in units:
        names = sorted({name for i in rows if (name := sets[i]) is not None})
        if len(names) > 1:
            raise SplitError(
                f"The group {groups[rows[0]]!r} is tied, by another spelling of its name or by copies of its files, to "
                f"groups given to {' and to '.join(names)}; a part and a file may be in one set only: correct the split "
                "or the names, or remove the copies."
            )
        for i in rows if names else ():
            sets[i] = names[0]
