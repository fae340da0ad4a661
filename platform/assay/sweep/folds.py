"""Does it hold on a design it never saw? Folds over the values of one column, and what they say.

A fold trains on m values (designs, printers, exposures, builds) and is tested on all others. Folds
are a grid: which values are trained on is never searched. Each choice of values is drawn so that
all values are tested about equally often, and every setting sees the same folds and seeds.

    updates    a fold of few values has few images; its epochs are multiplied, so that every fold
               has about as many updates as one of the most values
    intervals  over the tested values, the unit that the question is about; where a single value is
               looked at, over its groups
    tests      of two settings: on the same rows of the same folds, over the tested values, all
               comparisons corrected together (Holm)
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.train.task_config import TaskConfig, TrainConfig

Trained = tuple[str, ...]
"""Values that a fold trains on."""


@dataclass(frozen=True)
class Fold:
    """One training: on which values, by which setting and seed."""

    setting: str
    trained: Trained
    tested: tuple[str, ...]
    seed: int
    config: TaskConfig
    draw: int = 0
    """Which of the setting's draws of hyperparameters."""

    @property
    def num_trained(self) -> int:
        """The m of the report."""
        return len(self.trained)

    @property
    def name(self) -> str:
        """As people read it."""
        if len(self.trained) <= len(self.tested):
            values = f"on {', '.join(self.trained)}"
        else:
            values = f"without {', '.join(self.tested)}"
        draw = f", draw {self.draw}" if self.draw else ""
        return f"{self.setting} {values}, seed {self.seed}{draw}"


def choices(values: Sequence[str], num: int, wanted: int, seeds: int) -> list[list[Trained]]:
    """List for each seed sets of `num` values to train on: all of them, or `wanted` that are drawn.

    What was held out least often until then, over all seeds, is held out next; chance decides
    between equals. More seeds leave the draws of the first as they were.
    """
    values = sorted(values)
    if not wanted or wanted >= math.comb(len(values), num):
        return [list(itertools.combinations(values, num))] * seeds
    rng, counts = random.Random(0), dict.fromkeys(values, 0)
    return [_draw_sets(values, num, wanted, rng, counts) for _ in range(seeds)]


def _draw_sets(
    values: Sequence[str], num: int, wanted: int, rng: random.Random, counts: dict[str, int]
) -> list[Trained]:
    """Draw the sets of one seed, and count how often each value is held out."""
    sets: list[Trained] = []
    while len(sets) < wanted:
        order = sorted(counts, key=lambda value: (counts[value], rng.random()))
        unseen = order[: len(values) - num]
        if _without(values, unseen) in sets:  # even counts leave few choices: any other will do
            unseen = rng.sample(values, len(values) - num)
        if _without(values, unseen) not in sets:
            sets.append(_without(values, unseen))
            for value in unseen:
                counts[value] += 1
    return sets


def _without(values: Sequence[str], unseen: Sequence[str]) -> Trained:
    return tuple(value for value in values if value not in unseen)


def plan(
    settings: Mapping[str, Sequence[TaskConfig]],
    manifest: Manifest,
    column: str,
    sizes: Sequence[int],
    wanted: int,
    seeds: int,
) -> list[Fold]:
    """List all folds: for each size and seed a draw of choices, and each of them by every setting and draw of it.

    Raises:
        ConfigError: the data has no such column, too few values, or no such size.
    """
    if column not in manifest.domains:
        raise ConfigError(
            f"--fold-column is {column!r}; the data has the domains: {', '.join(manifest.domains) or 'none'}. Name one, and name it in --data.domains."
        )
    values = sorted(set(manifest.column(f"domain.{column}")))
    if len(values) < 2:
        raise ConfigError(
            f"All images have one value of {column!r} ({', '.join(values)}), of which none can be held out; name another --fold-column, or take more images."
        )
    wrong = [size for size in sizes if not 0 < size < len(values)]
    if wrong or not sizes:
        raise ConfigError(
            f"Training on {', '.join(map(str, wrong)) or 'no'} of {len(values)} values of {column!r} leaves nothing to train or to test on; allowed are 1 to {len(values) - 1}."
        )
    return list(_folds(settings, values, column, sorted(set(sizes)), wanted, seeds))


def _folds(
    settings: Mapping[str, Sequence[TaskConfig]],
    values: Sequence[str],
    column: str,
    sizes: Sequence[int],
    wanted: int,
    seeds: int,
) -> Iterator[Fold]:
    sets = {size: choices(values, size, wanted, seeds) for size in sizes}
    # the sizes in turn: a sweep that is looked at early has something of each
    for seed in range(seeds):
        for size in reversed(sizes):
            for trained in sets[size][seed]:
                tested = _without(values, trained)
                for name, draws in settings.items():
                    for draw, base in enumerate(draws):
                        config = _config(base, column, tested, seed, max(sizes) / size)
                        yield Fold(name, trained, tested, seed, config, draw)


def _config(
    config: TaskConfig, column: str, tested: tuple[str, ...], seed: int, longer: float
) -> TaskConfig:
    """Give a setting the fold's split, its seed, and as many updates as the largest fold has."""
    split = config.split
    split = replace(split, unseen_domain=column, unseen=tested, seed=split.seed + seed)
    return replace(config, split=split, train=repeated(config.train, seed, longer))


def repeated(train: TrainConfig, seed: int, longer: float) -> TrainConfig:
    """Give a training another seed, and so many times the epochs and the epochs between looks at val."""
    epochs, every = round(train.epochs * longer), max(1, round(train.val_every * longer))
    return replace(train, epochs=epochs, val_every=every, seed=train.seed + seed)
