"""The order of an epoch: global batches of row numbers, and each worker's share of them.

An order is a function of seed and epoch alone. Every entry is served exactly once, whatever the
number of workers, and owns a random key, so that what is drawn for it does not depend on who
serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.shapes import Int, Int64, UInt64


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


def balanced_order(
    rows: Int64[np.ndarray, " n"],
    domains: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    batch_size: int,
    seed: int,
    epoch: int,
    rows_per_group: int = 1,
) -> list[np.ndarray]:
    """Draw full batches in which every domain has as many rows as any other, and those of distinct groups.

    An epoch has as many batches as it needs for `len(rows)`, but is no pass over all rows: domains are
    drawn equally, and the groups of a domain in turn (`uniform_over_groups` and `distinct_groups` of
    WILDS, Koh et al. 2021). So rows of a rare domain or a small group come several times in an epoch, and
    of others not all come. A group comes twice in a batch only where its domain has too few groups.
    Where a batch cannot be shared out equally, or is smaller than the number of domains, the surplus
    goes from domain to domain. No batch has more rows than there are.

    Args:
        rows: row numbers.
        domains: domain code of each of them.
        groups: group code of each of them.
        batch_size: rows of a batch.
        seed: with `epoch`, what the order is a function of.
        epoch: number of the pass.
        rows_per_group: rows of a group that stand together; fewer where a share of the batch ends.
    """
    rng = np.random.default_rng([seed, epoch, 0xD03])
    codes = np.unique(domains)
    turns = [_GroupTurns(rows[domains == c], groups[domains == c], rng) for c in codes]
    batch_size = min(batch_size, max(len(rows), 1))
    share, surplus = divmod(batch_size, len(codes))
    batches = []
    for number in range(-(-len(rows) // batch_size)):
        batch: list[int] = []
        for place, turn in enumerate(turns):
            has_more = (place - number * surplus) % len(codes) < surplus
            batch += turn.take(share + has_more, rows_per_group)
        batches.append(np.array(batch, dtype=np.int64))
    return batches


class _GroupTurns:
    """The groups of one domain, which take turns; each goes through its own rows over and over, shuffled anew."""

    def __init__(self, rows: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> None:
        self.rng = rng
        self.members = [rows[groups == group] for group in np.unique(groups)]
        self.left: list[list[int]] = [[] for _ in self.members]
        self.waiting: list[int] = []

    def take(self, num: int, rows_per_group: int) -> list[int]:
        """Take the next rows, of groups that differ as long as there are others."""
        taken: list[int] = []
        used: set[int] = set()
        while len(taken) < num:
            if not self.waiting:
                turn = self.rng.permutation(len(self.members)).tolist()
                # taken from the end, where those stand that the batch lacks
                self.waiting = sorted(turn, key=lambda group: group not in used)
            group = self.waiting.pop()
            used.add(group)
            taken += self._rows(group, min(rows_per_group, num - len(taken)))
        return taken

    def _rows(self, group: int, num: int) -> list[int]:
        if not self.left[group]:
            self.left[group] = self.rng.permutation(self.members[group]).tolist()
        rows = self.left[group][-num:]
        del self.left[group][-num:]
        return rows


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
