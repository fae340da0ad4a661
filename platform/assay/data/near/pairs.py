"""All near-duplicates among images: candidates first, then each pair laid over one another."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from assay.data.near.candidates import by_signature, by_words
from assay.data.near.copies import NearPair
from assay.data.near.register import LIMIT, Affine, compare, register
from assay.data.near.sketch import Sketch
from assay.data.spread import Spread, one_by_one
from assay.shapes import UInt8

PAIRS = 256
"""Pairs that are laid over one another as one piece of work: about a second."""


Candidate = tuple[Sketch, Sketch, int | None]
"""Two images, and the turn of the first that their signatures tell."""


def near_pairs(
    contents: Sequence[str],
    signatures: UInt8[np.ndarray, "n 32"],
    sketches: Sequence[Sketch],
    spread: Spread = one_by_one,
) -> list[NearPair]:
    """Find the images that are copies of one another, in ascending order.

    Args:
        contents: of the images, each once, ascending.
        signatures: of the images (`pyramid.signature`).
        sketches: of the images (`sketch.sketch`).
        spread: who does the work.
    """
    turns: dict[tuple[int, int], int | None] = dict.fromkeys(by_words(sketches, spread))
    turns |= {(i, j): turn for i, j, turn in by_signature(signatures, spread)}
    candidates = [(sketches[i], sketches[j], turn) for (i, j), turn in turns.items()]
    pieces = [candidates[i : i + PAIRS] for i in range(0, len(candidates), PAIRS)]
    values = chain.from_iterable(spread(_agreements, None, pieces, "compare"))
    return sorted(
        NearPair(contents[i], contents[j], value)
        for (i, j), value in zip(turns, values, strict=True)
        if value >= LIMIT
    )


def _agreements(_: None, candidates: Sequence[Candidate]) -> list[float]:
    # one pair after another: its steps are so short that threads take turns at the interpreter, which halves their speed
    return [_agreement(*candidate) for candidate in candidates]


def _agreement(first: Sketch, second: Sketch, turn: int | None) -> float:
    """Lay two images over one another, by the turn of their signatures if it is known, and by their keypoints."""
    by_turn = compare(first, second, turn_of(first, second, turn)) if turn is not None else None
    if by_turn and by_turn.agreement >= LIMIT:
        return by_turn.agreement
    by_points = register(first, second)
    return max((each.agreement for each in (by_turn, by_points) if each), default=0.0)


def turn_of(first: Sketch, second: Sketch, turn: int) -> Affine:
    """Map the first thumbnail, turned as `candidates.by_signature` says, onto the whole of the second."""
    height, width = first.thumbnail.shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1]], float)
    unit = corners[:, :2] / [width, height] - 0.5
    if turn >= 4:
        unit[:, 0] *= -1
    for _ in range(turn % 4):  # np.rot90: what was at the right comes to the top
        unit = np.stack([unit[:, 1], -unit[:, 0]], axis=1)
    goals = (unit + 0.5) * second.thumbnail.shape[::-1]
    matrix: np.ndarray = np.linalg.solve(corners, goals).T
    # corners lie half a pixel beyond the centres of the pixels
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return matrix
