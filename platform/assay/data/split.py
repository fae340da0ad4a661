"""The split: which set each image is in, drawn once, on the driver, by group.

A group (a physical part) never crosses sets, nor does a file's content: groups that share a file
move together. Values of one domain may be held out entirely: their rows are `test_unseen`, and new groups of known values `test_seen`.
Without a held-out domain there is one `test`.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from assay.config import Settings
from assay.data.manifest import SPLITS, Manifest
from assay.errors import ConfigError, SplitError
from assay.shapes import UInt8

NEAR_BITS = 16
"""Two signatures that differ in at most this many of 256 bits count as near-duplicates."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Settings):
    """How the sets are drawn; sets that the data gives are kept as given."""

    seed: int = 0
    """Seed of the draw (1)."""
    val: float = 0.2
    """Share of the groups that goes to val (1)."""
    test: float = 0.2
    """Share of the groups that goes to test, or to test_seen (1)."""
    unseen_domain: str = ""
    """Domain whose held-out values make test_unseen (design, printer...); empty: none."""
    unseen: tuple[str, ...] = ()
    """Held-out values of that domain; none named: those of a given test_unseen, else drawn."""
    num_unseen: int = 3
    """Number of held-out values to draw by seed where none are named or given."""
    duplicates: Literal["refuse", "drop"] = "refuse"
    """Files that a given split has in two sets: refuse, or drop the copy in the earlier set."""

    def __post_init__(self) -> None:
        """Refuse shares that are none, and sets that leave nothing to train on."""
        if min(self.val, self.test) < 0 or self.val + self.test >= 1 or self.num_unseen < 1:
            raise ConfigError(
                f"split.val is {self.val}, split.test {self.test} and split.num-unseen {self.num_unseen}; "
                "give shares from 0 that sum to less than 1, and hold out at least 1 value."
            )


@dataclass(frozen=True)
class Split:
    """One set name per row of a manifest, and what was found while drawing."""

    sets: list[str]
    report: dict[str, int]

    def rows(self, name: str) -> np.ndarray:
        """Row numbers of one set, ascending (int64)."""
        return np.flatnonzero(np.array(self.sets) == name)

    @property
    def tests(self) -> list[str]:
        """Names of the test sets that have rows."""
        return sorted({s for s in self.sets if s.startswith("test")})

    def table(self, manifest: Manifest) -> pa.Table:
        """The manifest with the drawn sets in its `split` column."""
        index = manifest.table.column_names.index("split")
        return manifest.table.set_column(index, "split", pa.array(self.sets, pa.string()))


def draw_split(manifest: Manifest, config: SplitConfig) -> Split:
    """Assign every row to a set.

    Sets named by the data are kept, also for what shares a group or a file with them; val and test
    are drawn from the rest where the data gives none. Rows of held-out domain values become
    test_unseen whatever set they were given, since neither training nor selection may see them
    (`moved_to_unseen` counts them). Dropped copies get the set "dropped".

    Raises:
        SplitError: a group or a content on two sides of a given split, a group with seen and
            unseen values, an unknown domain or value, too few groups for a set, or a class that
            train, val or test lacks.
    """
    sets: list[str | None] = manifest.given
    report = {"groups": len(set(manifest.column("group")))}
    report["dropped"] = _settle_given(manifest, sets, config)
    units = _units(manifest, sets)
    kept = {g for g, s in zip(manifest.column("group"), sets, strict=True) if s != "dropped"}
    report["groups_joined_by_content"] = len(kept) - len(units)
    _spread_given(manifest, units, sets)
    test_name, report["moved_to_unseen"] = _hold_out(manifest, units, sets, config)
    _draw_missing(manifest, units, sets, config, test_name)
    done = ["train" if s is None else s for s in sets]
    _check_classes(manifest, done)
    return Split(done, report)


def _settle_given(manifest: Manifest, sets: list[str | None], config: SplitConfig) -> int:
    _refuse_crossing("group", manifest.column("group"), sets)
    contents = manifest.column("content")
    if config.duplicates == "refuse":
        _refuse_crossing("file content", contents, sets)
        return 0
    order = {name: place for place, name in enumerate(SPLITS)}
    last: dict[str, int] = defaultdict(int)
    for content, name in zip(contents, sets, strict=True):
        if name is not None:
            last[content] = max(last[content], order[name])
    dropped = [i for i, name in enumerate(sets) if name and order[name] < last[contents[i]]]
    for i in dropped:
        sets[i] = "dropped"
    return len(dropped)


def _spread_given(manifest: Manifest, units: list[np.ndarray], sets: list[str | None]) -> None:
    """Give rows without a set that of the rows they must stay with."""
    for rows in units:
        given = sorted({name for i in rows if (name := sets[i]) is not None})
        if len(given) > 1:
            raise SplitError(
                f"The group {manifest.column('group')[rows[0]]!r} is tied by copies of its files to groups given to "
                f"{' and to '.join(given)}; a file may be in one set only: correct the split or remove the copies."
            )
        for i in rows if given else ():
            sets[i] = given[0]


def _refuse_crossing(what: str, keys: list[str], sets: list[str | None]) -> None:
    sides: dict[str, set[str]] = defaultdict(set)
    for key, name in zip(keys, sets, strict=True):
        if name is not None:
            sides[key].add(name)
    crossing = sorted(key for key, names in sides.items() if len(names) > 1)
    if crossing:
        raise SplitError(
            f"The given split has {len(crossing)} {what}(s) in more than one set, first {crossing[0]!r} in "
            f"{' and '.join(sorted(sides[crossing[0]]))}; a {what} may be in one set only. "
            "Correct the split"
            + (
                "."
                if what == "group"
                else ", or pass --split.duplicates drop to leave out the earlier copies."
            )
        )


def _units(manifest: Manifest, sets: list[str | None]) -> list[np.ndarray]:
    """Rows that must stay together: joined by group and by content (union-find)."""
    parent = list(range(len(manifest)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for keys in (manifest.column("group"), manifest.column("content")):
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            if sets[i] != "dropped":
                parent[find(i)] = find(first.setdefault(key, i))
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(manifest)):
        if sets[i] != "dropped":
            members[find(i)].append(i)
    return [np.array(rows) for rows in members.values()]


def _keyed(seed: int, text: str) -> str:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).hexdigest()


def _hold_out(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> tuple[str, int]:
    """Put held-out values into test_unseen; the other test set's name, and how many rows moved."""
    if not config.unseen_domain:
        return "test", 0
    if config.unseen_domain not in manifest.domains:
        raise SplitError(
            f"split.unseen-domain is {config.unseen_domain!r}; the data has: {', '.join(manifest.domains) or 'no domain'}."
        )
    values = manifest.column(f"domain.{config.unseen_domain}")
    held = _held_values(values, sets, config)
    moved = 0
    for rows in units:
        inside = {values[i] in held for i in rows}
        if len(inside) == 2:
            raise SplitError(
                f"The group {manifest.column('group')[rows[0]]!r}, with what shares a file with it, has held-out and "
                f"other values of {config.unseen_domain!r}; it must be on one side: add the domain to --data.group, "
                "or remove the copies."
            )
        if inside == {True}:
            moved += sum(sets[i] not in (None, "test_unseen") for i in rows)
            for i in rows:
                sets[i] = "test_unseen"
    return "test_seen", moved


def _held_values(values: list[str], sets: list[str | None], config: SplitConfig) -> set[str]:
    known = sorted(set(values))
    unknown = sorted(set(config.unseen) - set(known))
    if unknown:
        raise SplitError(
            f"split.unseen names {unknown[0]!r}, which no image has; the data has: {', '.join(known)}."
        )
    given = {v for v, name in zip(values, sets, strict=True) if name == "test_unseen"}
    drawn = sorted(known, key=lambda v: _keyed(config.seed, v))[: config.num_unseen]
    held = set(config.unseen) or given or set(drawn)
    if len(held) >= len(known):
        raise SplitError(
            f"{len(held)} of {len(known)} values of {config.unseen_domain!r} would be held out; "
            "at least one must stay to train on: lower --split.num-unseen."
        )
    if not given <= held:
        raise SplitError(
            f"The data gives images of {config.unseen_domain} {min(given - held)!r} to test_unseen, and split.unseen "
            f"holds out {', '.join(sorted(held))}; name it there too, or leave split.unseen out."
        )
    return held


def _draw_missing(
    manifest: Manifest,
    units: list[np.ndarray],
    sets: list[str | None],
    config: SplitConfig,
    test_name: str,
) -> None:
    given = {s for s in sets if s not in (None, "test_unseen", "dropped")}
    shares = {test_name: 0.0 if any(s.startswith("test") for s in given) else config.test}
    shares["val"] = 0.0 if "val" in given else config.val
    free = [rows for rows in units if all(sets[i] in (None, "train") for i in rows)]
    asked = {name: share for name, share in shares.items() if share}
    for stratum in _strata(manifest, free, config):
        left = list(stratum)
        for place, (name, share) in enumerate(asked.items() if len(stratum) >= 3 else ()):
            # one each at least, also for the sets that follow and for train
            most = len(left) - (len(asked) - place)
            num = min(max(1, round(share * len(stratum))), most)
            # evenly spaced positions keep the proportions of what the stratum was sorted by
            picked = {int((j + 0.5) * len(left) / num) for j in range(num)}
            for position in picked:
                for i in left[position]:
                    sets[i] = name
            left = [rows for position, rows in enumerate(left) if position not in picked]
    for name in asked:
        if name not in sets:
            raise SplitError(
                f"{len(free)} groups are too few to draw {name} (at least 3 of a kind are needed); "
                "add parts, or give the sets in the data."
            )


def _strata(
    manifest: Manifest, units: list[np.ndarray], config: SplitConfig
) -> list[list[np.ndarray]]:
    """Units with the same classes; those of one value of the held-out domain stand together.

    The order of the values and of the units in them is drawn by seed.
    """
    labels, groups = manifest.column("label"), manifest.column("group")
    domain = manifest.column(f"domain.{config.unseen_domain}") if config.unseen_domain else labels
    strata: dict[tuple[str, ...], list[np.ndarray]] = defaultdict(list)
    for rows in units:
        strata[tuple(sorted({labels[i] for i in rows}))].append(rows)
    pooled: list[np.ndarray] = []
    for key in [k for k, members in strata.items() if len(members) < 3]:
        pooled += strata.pop(key)
    if pooled:
        strata[("",)] = pooled
    return [
        sorted(
            members,
            key=lambda rows: (
                _keyed(config.seed, "/".join([*classes, min(domain[i] for i in rows)])),
                _keyed(config.seed, min(groups[i] for i in rows)),
            ),
        )
        for classes, members in sorted(strata.items())
    ]


def _check_classes(manifest: Manifest, sets: list[str]) -> None:
    labels = np.array(manifest.column("label"))
    for name in sorted(set(sets) - {"dropped", "test_unseen"}):
        missing = sorted(set(manifest.classes) - set(labels[np.array(sets) == name]))
        if missing:
            num = len(set(np.array(manifest.column("group"))[labels == missing[0]]))
            raise SplitError(
                f"The class {missing[0]!r} has no image in {name} ({num} group(s) in all); every class needs a group "
                "in train, val and test: add parts of it or leave the class out."
            )


def near_duplicates(
    signatures: UInt8[np.ndarray, "rows 32"], sets: list[str], block: int = 2048
) -> dict[str, int]:
    """Count rows of val and of each test set that nearly equal some train row.

    Compared are 256-bit signatures (`pixels.signature`) under the eight flips and quarter turns.
    Parts pictured in one jig look alike by nature, so this is reported and never refused.
    """
    bits = np.unpackbits(signatures, axis=1).reshape(-1, 16, 16).astype(np.float32) * 2 - 1
    names = np.array(sets)
    train = bits[names == "train"].reshape(-1, 256)
    counts: dict[str, int] = {}
    for name in sorted(set(sets) - {"train", "dropped"}):
        rows = bits[names == name]
        turned = [
            np.rot90(f, turn, axes=(1, 2)).reshape(-1, 256)
            for f in (rows, rows[:, :, ::-1])
            for turn in range(4)
        ]
        found = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(train), block):
            for variant in turned:
                distance = (256 - variant @ train[start : start + block].T) / 2
                found |= (distance <= NEAR_BITS).any(axis=1)
        counts[name] = int(found.sum())
    return counts
