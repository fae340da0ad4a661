"""The order of an epoch: global batches of row numbers, and each worker's share of them.

An order is a function of seed and epoch alone. Every entry is served exactly once, whatever the
number of workers, and owns a random key, so that what is drawn for it does not depend on who
serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.shapes import Int64, UInt64


@dataclass(frozen=True)
class Step:
    """One global batch, or one worker's share of it."""

    epoch: int
    index: int
    rows: Int64[np.ndarray, " batch"]
    entries: Int64[np.ndarray, " batch"]
    num_global: int

    def share(self, rank: int, world_size: int) -> "Step":
        """Take every world_size-th entry from `rank` on; may be empty."""
        mine = slice(rank, None, world_size)
        return Step(self.epoch, self.index, self.rows[mine], self.entries[mine], self.num_global)


def steps_of(batches: Sequence[np.ndarray], epoch: int) -> list[Step]:
    """Give the batches of one epoch, and the entries in them, their numbers."""
    steps, start = [], 0
    for index, batch in enumerate(batches):
        rows = np.asarray(batch, dtype=np.int64)
        steps.append(Step(epoch, index, rows, np.arange(start, start + len(rows)), len(rows)))
        start += len(rows)
    return steps


def uniform_order(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffle all rows and cut them into batches; the last batch may be smaller."""
    shuffled = np.random.default_rng([seed, epoch, 0x0DE]).permutation(rows)
    return [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]


def group_order(
    rows: np.ndarray, group: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Serve groups in turn, in shuffled rounds, each time the next of its shuffled rows; as many entries as there are rows.

    A group of many rows is served no more often than one of few. The last batch may be smaller.

    Args:
        rows: row numbers.
        group: number of each one's group.
        batch_size: entries of a batch.
        seed: of what is drawn.
        epoch: number of the epoch.
    """
    rng = np.random.default_rng([seed, epoch, 0x6A0])
    order = rng.permutation(len(rows))
    order = order[np.argsort(group[order], kind="stable")]
    _, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    num_rounds = -(-len(rows) // len(sizes))
    rounds = [
        order[(starts + turn % sizes)[rng.permutation(len(sizes))]] for turn in range(num_rounds)
    ]
    served = rows[np.concatenate(rounds)[: len(rows)]]
    return [served[i : i + batch_size] for i in range(0, len(served), batch_size)]


def fixed_order(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut rows as they stand into batches, for judging: batches are the same for any number of workers."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def entry_keys(seed: int, epoch: int, entries: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Draw a 64-bit random key for each entry (SplitMix64 over seed, epoch and entry)."""
    key = _mix(np.full(len(entries), seed, dtype=np.uint64))
    key = _mix(key ^ np.uint64(epoch & 0xFFFFFFFF))
    return _mix(key ^ entries.astype(np.uint64))


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
