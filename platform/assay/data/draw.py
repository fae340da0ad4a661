"""Which groups become val and test, drawn by a seed: one of each kind at least, in their proportions."""

import hashlib
from collections import defaultdict
from collections.abc import MutableSequence, Sequence
from functools import partial
from typing import Any

import numpy as np

from assay.data.manifest import Manifest
from assay.data.split_config import SplitConfig
from assay.errors import SplitError


def random_key(seed: int, text: str) -> str:
    """Return a text's place in an order drawn by a seed, whatever other texts there are."""
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).hexdigest()


def draw_oracle(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> None:
    """Draw val from test_unseen, which keeps at least as many groups of each class."""
    unseen = [rows for rows in units if sets[rows[0]] == "test_unseen"]
    for stratum in _strata(manifest, unseen, config, least=2):
        num = min(max(1, round(config.val * len(stratum))), len(stratum) // 2)
        give(stratum, num, "val", sets)
    if "val" not in sets:
        raise SplitError(
            f"{len(unseen)} group(s) of held-out values are too few to draw val from them (at least 2 are needed); "
            "hold out more values, or use another rule."
        )


def draw_missing(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> None:
    """Draw test and val, unless the data gives them, from the rows without a set and those of train."""
    names = {s for s in sets if s not in (None, "test_unseen", "dropped")}
    shares: dict[str, float] = {}
    if config.test and not any(name.startswith("test") for name in names):
        shares["test_seen" if config.unseen_domain else "test"] = config.test
    if config.val and "val" not in names:
        shares["val"] = config.val
    free = [rows for rows in units if all(sets[i] in (None, "train") for i in rows)]
    for stratum in _strata(manifest, free, config, least=3):
        if len(stratum) < 3:
            continue
        rest = stratum
        for position, (name, share) in enumerate(shares.items()):
            # one each at least, also for the sets that follow and for train
            most = len(rest) - (len(shares) - position)
            rest = give(rest, min(max(1, round(share * len(stratum))), most), name, sets)
    for name in shares:
        if name not in sets:
            raise SplitError(
                f"{len(free)} groups are too few to draw {name} (at least 3 of a kind are needed); "
                "add parts, or give the sets in the data."
            )


def thin_train(
    manifest: Manifest, units: list[np.ndarray], sets: list[str], config: SplitConfig
) -> int:
    """Leave a share of train's units, the first by a random key of each kind of class; count the rows that this drops."""
    groups = manifest.column("group")
    trained = [[i for i in rows if sets[i] == "train"] for rows in units]
    kinds = _by_class(manifest, [np.array(rows) for rows in trained if rows])
    dropped = 0
    for members in kinds.values():
        order = sorted(
            members, key=lambda rows: random_key(config.seed, min(groups[i] for i in rows))
        )
        for rows in order[max(1, round(config.train_share * len(order))) :]:
            dropped += len(rows)
            for i in rows:
                sets[i] = "dropped"
    return dropped


def give(
    units: list[np.ndarray], num: int, name: str, sets: MutableSequence[Any]
) -> list[np.ndarray]:
    """Give `num` of the units to a set and return the others.

    Evenly spaced positions keep the proportions of what the units were sorted by.
    """
    picked = {int((j + 0.5) * len(units) / num) for j in range(num)}
    for position in picked:
        for i in units[position]:
            sets[i] = name
    return [rows for position, rows in enumerate(units) if position not in picked]


def domain_values(manifest: Manifest, config: SplitConfig) -> list[str]:
    """Return the value of the held-out domain of each row.

    Raises:
        SplitError: the data has no such domain.
    """
    if config.unseen_domain not in manifest.domains:
        raise SplitError(
            f"split.unseen-domain is {config.unseen_domain!r}; the data has: {', '.join(manifest.domains) or 'no domain'}."
        )
    return manifest.column(f"domain.{config.unseen_domain}")


def _strata(
    manifest: Manifest, units: list[np.ndarray], config: SplitConfig, least: int
) -> list[list[np.ndarray]]:
    """Divide units by their classes; those of one value of the held-out domain stand together.

    Kinds of fewer than `least` units are pooled. The order of the values and of the units in them
    is drawn by seed.
    """
    labels, groups = manifest.column("label"), manifest.column("group")
    domain = domain_values(manifest, config) if config.unseen_domain else labels
    strata = _by_class(manifest, units)
    pooled: list[np.ndarray] = []
    for key in [k for k, members in strata.items() if len(members) < least]:
        pooled += strata.pop(key)
    if pooled:
        strata[("",)] = pooled

    def position(classes: tuple[str, ...], rows: np.ndarray) -> tuple[str, str]:
        kind = "/".join([*classes, min(domain[i] for i in rows)])
        group = min(groups[i] for i in rows)
        return random_key(config.seed, kind), random_key(config.seed, group)

    return [
        sorted(members, key=partial(position, classes))
        for classes, members in sorted(strata.items())
    ]


def _by_class(
    manifest: Manifest, units: Sequence[np.ndarray]
) -> dict[tuple[str, ...], list[np.ndarray]]:
    """Divide units by the classes that their rows have."""
    labels = manifest.column("label")
    kinds: dict[tuple[str, ...], list[np.ndarray]] = defaultdict(list)
    for rows in units:
        kinds[tuple(sorted({labels[i] for i in rows}))].append(rows)
    return kinds
