"""Duplicates: rows of one part or one file, which may not cross sets, and images that nearly equal.

A copy that was turned, cropped by a few percent, recompressed or brightened is another file, of which the split knows
nothing. Parts pictured in one jig look alike by nature, so near-duplicates are reported and never
refused.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from assay.data.folder import SPLITS
from assay.errors import SplitError
from assay.shapes import Float32, UInt8

NEAR_BITS = 16
"""Two signatures that differ in at most this many of 256 bits count as near-duplicates."""


ROWS, TWINS = 256, 2048
"""Rows compared at once: eight turns of the first with the second fill a processor's cache."""


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
        if name is not None:
            last[content] = max(last[content], order[name])
    dropped = [i for i, name in enumerate(sets) if name and order[name] < last[contents[i]]]
    for i in dropped:
        sets[i] = "dropped"
    return len(dropped)


def join_rows(columns: list[list[str]], rows: list[int]) -> list[np.ndarray]:
    """Divide rows into units that share no key in any column (union-find); each ascending."""
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


@dataclass(frozen=True, order=True)
class NearDuplicate:
    """A row that nearly equals one of the set it is compared with; sorts by distance."""

    bits: int
    """Bits of 256 in which the two signatures differ, at the best of the eight turns and of the crops."""
    row: int
    set: str
    twin: int
    """The nearest row of the other set; the first of equally near ones."""


def near_duplicates(
    signatures: UInt8[np.ndarray, "rows 32"],
    sets: Sequence[str],
    against: Literal["train", "val"] = "train",
    cropped: UInt8[np.ndarray, "rows crops 32"] | None = None,
) -> list[NearDuplicate]:
    """Find rows of later sets that nearly equal some row of train, or of val; the nearest pairs first.

    Compared are 256-bit signatures (`pyramid.signature`) under the eight flips and quarter turns,
    and upright those of either image whole with the other `cropped` (`pyramid.cropped_signatures`).
    Against train stand val and the tests, against val the tests alone: what is chosen or fitted on
    val should not be tested on copies of it either.
    """
    names = np.array(sets)
    twins = np.flatnonzero(names == against)
    rows = np.flatnonzero(np.isin(names, _later(sets, against)))
    if cropped is None:
        cropped = np.zeros((len(names), 0, 32), np.uint8)
    twin_signs, num_crops = _signs(signatures[twins]), cropped.shape[1]
    twin_crops = _signs(cropped[twins].reshape(-1, 32))
    pairs = []
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS]
        whole, crops = _signs(signatures[block]), _signs(cropped[block].reshape(-1, 32))
        crops = np.moveaxis(crops.reshape(len(block), num_crops, 256), 1, 0)
        overlap, nearest = _nearest(np.concatenate([_turns(whole), crops]), twin_signs)
        of_crops, nearest_crop = _nearest(whole[None], twin_crops)
        nearest = np.where(of_crops > overlap, nearest_crop // max(1, num_crops), nearest)
        overlap = np.maximum(overlap, of_crops)
        bits = (256 - overlap) / 2
        pairs += [
            NearDuplicate(int(bits[i]), int(block[i]), sets[block[i]], int(twins[nearest[i]]))
            for i in np.flatnonzero(bits <= NEAR_BITS)
        ]
    return sorted(pairs)


def counts(
    duplicates: Sequence[NearDuplicate],
    sets: Sequence[str],
    against: Literal["train", "val"] = "train",
) -> dict[str, int]:
    """Count near-duplicates per set that was compared, zeros included."""
    of_set = Counter(duplicate.set for duplicate in duplicates)
    return {name: of_set[name] for name in _later(sets, against)}


def _later(sets: Sequence[str], against: str) -> list[str]:
    return [name for name in SPLITS[SPLITS.index(against) + 1 :] if name in sets]


def _signs(signatures: UInt8[np.ndarray, "rows 32"]) -> Float32[np.ndarray, "rows 256"]:
    """Turn bits into -1 and 1, so that a product counts equal bits less different ones."""
    return np.unpackbits(signatures, axis=1).astype(np.float32) * 2 - 1


def _turns(signs: Float32[np.ndarray, "rows 256"]) -> Float32[np.ndarray, "8 rows 256"]:
    square = signs.reshape(-1, 16, 16)
    return np.stack(
        [
            np.rot90(side, turn, axes=(1, 2)).reshape(-1, 256)
            for side in (square, square[:, :, ::-1])
            for turn in range(4)
        ]
    )


def _nearest(
    looks: Float32[np.ndarray, "looks rows 256"], twins: Float32[np.ndarray, "twins 256"]
) -> tuple[Float32[np.ndarray, " rows"], np.ndarray]:
    """Find for each row its largest product of any look with any of `twins`, and whose it is."""
    num = looks.shape[1]
    best = np.full(num, -np.inf, dtype=np.float32)
    nearest = np.zeros(num, dtype=np.int64)
    for start in range(0, len(twins), TWINS):
        overlap = looks.reshape(-1, 256) @ twins[start : start + TWINS].T
        overlap = overlap.reshape(len(looks), num, -1)
        largest = overlap.max(0)
        first = largest.argmax(1)
        product = largest[np.arange(num), first]
        better = product > best
        best[better], nearest[better] = product[better], first[better] + start
    return best, nearest
