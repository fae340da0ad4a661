"""Values of one domain that are held out: which, where their rows go, and what of them training may see without labels."""

from collections import defaultdict

import numpy as np

from assay.data.draw import domain_values, give, random_key
from assay.data.manifest import Manifest
from assay.data.spellings import compose
from assay.data.split_config import SplitConfig
from assay.errors import SplitError


def hold_out(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> int:
    """Put held-out values into test_unseen, and a left-out one into val; count the rows that moved."""
    if not config.unseen_domain:
        return 0
    values = domain_values(manifest, config)
    sets_of: dict[str, set[str | None]] = defaultdict(set)
    for rows in units:
        for i in rows:
            sets_of[values[i]].add(sets[i])
    side = dict.fromkeys(_unseen_values(sets_of, config), "test_unseen")
    if config.rule == "leave-one-domain-out":
        side[_val_value(sets_of, set(side), config)] = "val"
    moved = 0
    for rows in units:
        sides = {side.get(values[i]) for i in rows}
        if len(sides) > 1:
            raise SplitError(
                f"The group {manifest.column('group')[rows[0]]!r}, with what shares a file or is joined with it, has held-out and "
                f"other values of {config.unseen_domain!r}; it must be on one side: add the domain to --data.group, "
                "take --split.crossing drop for parts that have several values, or remove the copies."
            )
        name = sides.pop()
        if name is None:
            continue
        for i in rows:
            moved += name == "test_unseen" and sets[i] not in (None, name)
            sets[i] = name
    return moved


def leave_out(manifest: Manifest, sets: list[str], config: SplitConfig) -> int:
    """Keep held-out values from train and val, in groups that have others too; count the rows that this drops."""
    values = domain_values(manifest, config)
    sets_of: dict[str, set[str | None]] = defaultdict(set)
    for value, name in zip(values, sets, strict=True):
        sets_of[value].add(name)
    unseen, dropped = _unseen_values(sets_of, config), 0
    for i, value in enumerate(values):
        if value in unseen and sets[i] != "dropped":
            is_tested = sets[i].startswith("test")
            dropped += not is_tested
            sets[i] = "test_unseen" if is_tested else "dropped"
    return dropped


def set_apart(
    manifest: Manifest, units: list[np.ndarray], sets: list[str], config: SplitConfig
) -> int:
    """Take a share of test_unseen's units out of it, of each held-out value alike and whatever the labels; count the rows."""
    values, groups = domain_values(manifest, config), manifest.column("group")

    def position(rows: np.ndarray) -> tuple[str, str]:
        group = min(groups[i] for i in rows)
        return values[rows[0]], random_key(config.seed, f"unlabelled {group}")

    unseen = sorted((rows for rows in units if sets[rows[0]] == "test_unseen"), key=position)
    if len(unseen) < 2:
        raise SplitError(
            f"test_unseen has {len(unseen)} group, and with split.unlabelled {config.unlabelled!r} some are set apart and others scored; "
            "hold out values with more groups, or set it to none."
        )
    num = min(max(1, round(config.unlabelled_share * len(unseen))), len(unseen) - 1)
    before = sets.count("test_unseen")
    give(unseen, num, "unlabelled" if config.unlabelled == "train" else "dropped", sets)
    return before - sets.count("test_unseen")


def _unseen_values(sets_of: dict[str, set[str | None]], config: SplitConfig) -> set[str]:
    """Return the values to hold out: those named, else those of a given test_unseen, else drawn ones."""
    values = sorted(sets_of)
    named = set(map(compose, config.unseen))
    unknown = sorted(named - set(values))
    if unknown:
        raise SplitError(
            f"split.unseen names {unknown[0]!r}, which no image has; the data has: {', '.join(values)}."
        )
    required = {v for v, names in sets_of.items() if "test_unseen" in names}
    drawn = sorted(values, key=lambda v: random_key(config.seed, v))[: config.num_unseen]
    unseen = named or required or set(drawn)
    if len(unseen) >= len(values):
        raise SplitError(
            f"{len(unseen)} of {len(values)} values of {config.unseen_domain!r} would be held out; "
            "at least one must stay to train on: lower --split.num-unseen."
        )
    if not required <= unseen:
        raise SplitError(
            f"The data gives images of {config.unseen_domain} {min(required - unseen)!r} to test_unseen, and split.unseen "
            f"holds out {', '.join(sorted(unseen))}; name it there too, or leave split.unseen out."
        )
    return unseen


def _val_value(sets_of: dict[str, set[str | None]], unseen: set[str], config: SplitConfig) -> str:
    """Return the value left out for val: one that no test set has, while another stays to train on."""
    trainable = [v for v in set(sets_of) - unseen if sets_of[v] & {None, "train"}]
    free = [v for v in trainable if sets_of[v] <= {None, "train"}]
    if len(trainable) < 2 or not free:
        raise SplitError(
            f"Of {len(sets_of)} values of {config.unseen_domain!r} {len(unseen)} are held out, {len(trainable)} of the others can "
            f"be trained on and {len(free)} have no image in a given test; one must stay for val and another to train "
            "on: lower --split.num-unseen, or use another rule."
        )
    named = compose(config.val_domain)
    if named and named not in free:
        raise SplitError(
            f"split.val-domain is {config.val_domain!r}; values of {config.unseen_domain!r} that are neither held out "
            f"nor in a given test: {', '.join(sorted(free))}."
        )
    return named or min(free, key=lambda v: random_key(config.seed, v))
