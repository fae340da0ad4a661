"""Which pairs of images are worth laying over one another: all pairs are compared, at little cost each, by a block of rows at a time.

Two cues. Signatures (`pyramid.signature`) under the eight flips and quarter turns need no
keypoints. Keypoints are sorted into visual words (Sivic & Zisserman 2003), drawn from the data's
own; images that share many rare words, as they are or mirrored, may be copies whatever their
rotation or crop.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from scipy import sparse

from assay.data.near.sketch import Sketch, mirrored, to_units
from assay.data.spread import Spread, one_by_one
from assay.shapes import Float32, UInt8

NEAR_BITS = 16
"""Signatures of candidates differ in at most this many of 256 bits; unrelated ones in about 100."""


NUM_WORDS = 4096
"""Half of them mirror images of the other half."""


MOST = 6
"""Candidates of an image by either cue: the best ones. In a jig all signatures are near."""


_NEAREST = 3
"""Words that a keypoint counts for, since noise may move it across a border."""


_ROWS, _TWINS = 256, 2048
"""Rows compared at once: eight turns of the first with the second fill a processor's cache."""


_PAIRS = 8_000_000
"""Most pairs of a block of rows with all others: some 32 MB for each number that is said of a pair."""


def by_signature(
    signatures: UInt8[np.ndarray, "n 32"], spread: Spread = one_by_one
) -> list[tuple[int, int, int]]:
    """List pairs (first, second, turn) of near signatures of which one is among the `MOST` nearest to the other.

    Turn t of the first is nearest to the second: `np.rot90` t % 4 times, from 4 on after mirroring.
    """
    signs = np.unpackbits(signatures, axis=1).astype(np.float32) * 2 - 1
    pairs: dict[tuple[int, int], int] = {}
    for block in spread(_near_rows, signs, _blocks(len(signs)), "signatures"):
        for i, j, turn in block:
            pairs.setdefault((i, j), turn)
    return [(i, j, turn) for (i, j), turn in sorted(pairs.items())]


def _near_rows(
    signs: Float32[np.ndarray, "n 256"], block: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """List the pairs of a block of rows with those that are nearest to them."""
    start, end = block
    nearness, turns = _compare(signs[start:end], signs)
    nearness[np.arange(end - start), np.arange(start, end)] = -256
    pairs = []
    for i, row in enumerate(_best(nearness), start):
        near = nearness[i - start]
        for j in row[near[row] >= 256 - 2 * NEAR_BITS].tolist():
            turn = int(turns[i - start, j])
            if j < i:  # a rotation is undone by the opposite one, a mirroring by itself
                turn = turn if turn >= 4 else -turn % 4
            pairs.append((min(i, j), max(i, j), turn))
    return pairs


def _blocks(num: int) -> list[tuple[int, int]]:
    """Cut so many rows into blocks: first and last but one."""
    rows = min(_ROWS, max(1, _PAIRS // max(num, 1)))
    return list(pairwise([*range(0, num, rows), num]))


def _best(table: Float32[np.ndarray, "rows n"]) -> list[np.ndarray]:
    """Give the columns of the `MOST` largest values of each row, the largest first and of equal ones the first."""
    if table.shape[1] <= MOST:
        return list(np.argsort(-table, axis=1, kind="stable"))
    least = np.partition(table, -MOST, axis=1)[:, -MOST]
    best = []
    for row, bound in zip(table, least, strict=True):
        columns = np.flatnonzero(row >= bound)
        best.append(columns[np.argsort(-row[columns], kind="stable")][:MOST])
    return best


def _compare(
    rows: Float32[np.ndarray, "rows 256"], twins: Float32[np.ndarray, "twins 256"]
) -> tuple[Float32[np.ndarray, "rows twins"], UInt8[np.ndarray, "rows twins"]]:
    """Count equal bits less different ones at the best turn of each row, and say which turn that is."""
    looks, products, turns = _turns(rows).reshape(-1, 256), [], []
    for start in range(0, len(twins), _TWINS):
        product = (looks @ twins[start : start + _TWINS].T).reshape(8, len(rows), -1)
        products.append(product.max(0))
        turns.append(product.argmax(0).astype(np.uint8))
    return np.concatenate(products, axis=1), np.concatenate(turns, axis=1)


def _turns(signs: Float32[np.ndarray, "rows 256"]) -> Float32[np.ndarray, "8 rows 256"]:
    square = signs.reshape(-1, 16, 16)
    return np.stack(
        [
            np.rot90(side, turn, axes=(1, 2)).reshape(-1, 256)
            for side in (square, square[:, :, ::-1])
            for turn in range(4)
        ]
    )


def by_words(sketches: Sequence[Sketch], spread: Spread = one_by_one) -> list[tuple[int, int]]:
    """List pairs (first, second) of which one is among the `MOST` that share most with the other."""
    words = _draw_words(sketches)
    if not len(words):
        return []
    described = [sketch.descriptors for sketch in sketches]
    parts = [described[i : i + _ROWS] for i in range(0, len(described), _ROWS)]
    bags = _weigh(sparse.vstack(list(spread(_count_words, words, parts, "words")), "csr"))
    # the mirror image of word i is word i + half, and the other way round
    turned = bags[:, np.roll(np.arange(len(words)), len(words) // 2)].tocsr()
    blocks = spread(_sharing_rows, (bags, turned), _blocks(len(sketches)), "shared words")
    return sorted(set(chain.from_iterable(blocks)))


def _sharing_rows(
    bags: tuple[sparse.csr_matrix, sparse.csr_matrix], block: tuple[int, int]
) -> list[tuple[int, int]]:
    """List the pairs of a block of rows with those that share most words with them, mirrored or not."""
    start, end = block
    rows = bags[0][start:end]
    shared = np.maximum(*((rows @ bag.T).toarray() for bag in bags))
    shared[np.arange(end - start), np.arange(start, end)] = 0
    return [
        (min(i, j), max(i, j))
        for i, row in enumerate(_best(shared), start)
        for j in row[shared[i - start, row] > 0].tolist()
    ]


def _draw_words(sketches: Sequence[Sketch]) -> Float32[np.ndarray, "words 128"]:
    """Draw descriptors, the same ones for the same images, and add their mirror images."""
    sizes = np.array([len(sketch.points) for sketch in sketches])
    num = min(NUM_WORDS // 2, int(sizes.sum()))
    drawn = np.sort(np.random.default_rng(0).choice(int(sizes.sum()), num, replace=False))
    owners = np.repeat(np.arange(len(sketches)), sizes)[drawn]
    starts = np.cumsum(sizes) - sizes
    words = [sketches[i].units[k - starts[i]] for i, k in zip(owners, drawn, strict=True)]
    table = np.array(words, np.float32).reshape(-1, 128)
    return np.concatenate([table, mirrored(table)])


def _count_words(
    words: Float32[np.ndarray, "words 128"], described: Sequence[UInt8[np.ndarray, "_ 128"]]
) -> sparse.csr_matrix:
    """Say of each image, by its descriptors, which words it has."""
    rows, columns = [], []
    for row, descriptors in enumerate(described):
        nearness = to_units(descriptors) @ words.T
        nearest = np.argpartition(-nearness, min(_NEAREST, len(words) - 1), axis=1)[:, :_NEAREST]
        present = np.unique(nearest)
        rows.append(np.full(len(present), row))
        columns.append(present)
    places = np.concatenate(rows), np.concatenate(columns)
    shape = len(described), len(words)
    return sparse.csr_matrix((np.ones(len(places[0]), np.float32), places), shape)


def _weigh(bags: sparse.csr_matrix) -> sparse.csr_matrix:
    """Weigh words by rarity and give every image's words the length 1; a word and its mirror image weigh the same."""
    counts = np.asarray(bags.sum(0)).ravel()
    counts += np.roll(counts, len(counts) // 2)
    weighted = bags @ sparse.diags(np.log1p(bags.shape[0] / np.maximum(counts, 1)))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    return sparse.csr_matrix(
        sparse.diags(1 / np.maximum(lengths, 1e-9)) @ weighted, dtype=np.float32
    )
