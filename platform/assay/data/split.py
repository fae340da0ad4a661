"""The split: which set each image is in, drawn once, on the driver, by group.

A group (a physical part) never crosses sets, nor does a file's content: groups that share a file, or
whose names differ in case or spaces alone, move together; so do, if asked, near-duplicates. Values of one domain may be held out
entirely: their rows are `test_unseen`, and new groups of known values `test_seen`. Without a
held-out domain there is one `test`. What val is drawn from, and so what the model is selected by,
is the rule.
"""

import hashlib
from collections import defaultdict
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Interval

from assay.config import Seed, Settings
from assay.data.duplicates import join_rows, refuse_crossing, settle_copies, spread_sets
from assay.data.manifest import Manifest
from assay.data.near.copies import NearPair, clusters
from assay.data.spellings import compose, fold_name
from assay.errors import ConfigError, SplitError

RULES = {
    "training-domain": "training-domain validation",
    "leave-one-domain-out": "leave-one-domain-out validation",
    "oracle": "oracle",
}
"""How each rule of `SplitConfig.rule` is shown."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Settings, section="split"):
    """How the sets are drawn; sets that the data gives are kept as given."""

    seed: Seed = 0
    """Seed of the draw."""
    val: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the groups that goes to val; under the rule oracle, of those of test_unseen."""
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the groups that goes to test, or to test_seen."""
    unseen_domain: str = ""
    """Domain whose held-out values make test_unseen (design, printer...); empty: none."""
    unseen: tuple[str, ...] = ()
    """Held-out values of that domain; none named: those of a given test_unseen, else drawn."""
    num_unseen: Annotated[int, Interval(ge=1, le=1_000_000)] = 3
    """Number of held-out values to draw by seed where none are named or given."""
    crossing: Literal["refuse", "drop"] = "refuse"
    """Groups with held-out and other values (a part under several lights): refuse, or draw the sets as if none were held out, then leave held-out values out of train and val; those of test groups are test_unseen."""
    duplicates: Literal["refuse", "drop"] = "refuse"
    """Files that a given split has in two sets: refuse, or drop the copy in the earlier set."""
    near_duplicates: Literal["report", "group"] = "report"
    """Images that are copies but for a turn, a crop, light or a codec: report them, or keep them in one set, and drop those in an earlier set than a given later one has."""
    train_share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of train's groups that is trained on, of each class at least one; a smaller share's groups are among a larger one's."""
    unlabelled: Literal["none", "train", "drop"] = "none"
    """Whether a share of test_unseen's groups, drawn without a look at labels, is not scored: their images enter training without labels, which is transductive and marked so (train), or stay out, as for a run beside such a one (drop)."""
    unlabelled_share: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """That share; of both parts at least one group."""
    rule: Literal["training-domain", "leave-one-domain-out", "oracle"] = "training-domain"
    """What val is, by which the model is selected (Gulrajani & Lopez-Paz 2021, section 3).

    training-domain: groups of the values that are trained on. leave-one-domain-out: one more value
    of the held-out domain, whole, which is then not trained on; one fold, not the mean over all
    values in turn. oracle: groups of test_unseen's values, so that the model is selected by the
    domain it is tested on; its results say nothing of a new domain and are marked as oracle.
    """
    val_domain: str = ""
    """For leave-one-domain-out: the value that is val; empty: drawn by seed."""

    def __post_init__(self) -> None:
        """Refuse sets that leave nothing to train on, and rules without a domain."""
        super().__post_init__()
        if self.val + self.test >= 1:
            raise ConfigError(
                f"split.val is {self.val} and split.test {self.test}; give shares from 0 that sum to less than 1."
            )
        if self.rule != "training-domain" and not self.unseen_domain:
            raise ConfigError(
                f"split.rule is {self.rule!r} and split.unseen-domain is empty; name the domain whose values are held "
                "out, or use the rule training-domain."
            )
        if self.crossing == "drop" and (self.rule != "training-domain" or not self.unseen_domain):
            raise ConfigError(
                f"split.crossing is 'drop', split.unseen-domain {self.unseen_domain!r} and split.rule {self.rule!r}; "
                "crossing groups need a held-out domain and the rule training-domain."
            )
        if self.unlabelled != "none" and (self.crossing == "drop" or not self.unseen_domain):
            raise ConfigError(
                f"split.unlabelled is {self.unlabelled!r}, split.unseen-domain {self.unseen_domain!r} and split.crossing {self.crossing!r}; "
                "images to be seen without labels are of a held-out domain whose groups cross to no other."
            )
        if self.val_domain and self.rule != "leave-one-domain-out":
            raise ConfigError(
                f"split.val-domain is {self.val_domain!r} and split.rule {self.rule!r}; "
                "only leave-one-domain-out takes a value for val: choose that rule, or leave the value out."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        is_none = self.unlabelled == "none"
        return {"unlabelled_share": "split.unlabelled is none"} if is_none else {}


@dataclass(frozen=True)
class Split:
    """One set name per row of a manifest, and what was found while drawing."""

    sets: list[str]
    report: dict[str, int]
    groups: list[str] | None = None
    """Group of each row where near-copies are joined: what is judged counts a part once, whatever its copies are called."""

    def regroup(self, manifest: Manifest) -> Manifest:
        """Return the manifest with groups joined as they were for the sets."""
        if self.groups is None:
            return manifest
        index = manifest.table.column_names.index("group")
        return Manifest(manifest.table.set_column(index, "group", pa.array(self.groups)))

    def rows(self, name: str) -> np.ndarray:
        """Return the row numbers of one set, ascending (int64)."""
        return np.flatnonzero(np.array(self.sets) == name)

    @property
    def tests(self) -> list[str]:
        """Names of the test sets that have rows."""
        return sorted({s for s in self.sets if s.startswith("test")})

    def table(self, manifest: Manifest) -> pa.Table:
        """Return the manifest with the drawn sets in its `split` column, and groups as they are joined."""
        table = self.regroup(manifest).table
        index = table.column_names.index("split")
        return table.set_column(index, "split", pa.array(self.sets, pa.string()))


def draw_split(manifest: Manifest, config: SplitConfig, pairs: Sequence[NearPair] = ()) -> Split:
    """Assign every row to a set.

    Sets named by the data are kept, also for what shares a group or a file with them; val and test
    are drawn from the rest where the data gives none. Rows of held-out domain values become
    test_unseen whatever set they were given, since neither training nor selection may see them
    (`moved_to_unseen` counts them). Dropped copies, and what a share of train leaves out, get the
    set "dropped"; images of test_unseen that training sees without their labels the set "unlabelled".

    Args:
        manifest: what is to be split.
        config: how.
        pairs: near-duplicates among its rows, of which only `near_duplicates` "group" takes notice.

    Raises:
        SplitError: a group or a content on two sides of a given split, a group with values on two
            sides, an unknown domain or value, too few groups or values for a set, a given val
            where the rule makes its own, or a class that train, val or test lacks.
    """
    sets: list[str | None] = manifest.declared_sets
    groups, contents = manifest.column("group"), manifest.column("content")
    if config.rule != "training-domain" and "val" in sets:
        raise SplitError(
            f"The data gives {sets.count('val')} image(s) to val, and split.rule {config.rule!r} makes val itself; "
            "use the rule training-domain, or give those images to train."
        )
    report = {"groups": len(set(groups))}
    refuse_crossing("group", groups, sets)
    report["dropped"] = settle_copies(contents, sets, config.duplicates)
    copies = contents
    if config.near_duplicates == "group":
        copies = clusters(contents, pairs)
        report["near_dropped"] = settle_copies(copies, sets, "drop")
    units = _join_units(groups, contents, copies, sets, report)
    spread_sets(groups, units, sets)
    may_cross = config.crossing == "drop"
    if not may_cross:
        report["moved_to_unseen"] = _hold_out(manifest, units, sets, config)
    if config.rule == "oracle":
        _draw_oracle(manifest, units, sets, config)
    _draw_missing(manifest, units, sets, config)
    drawn = ["train" if s is None else s for s in sets]
    if may_cross:
        report["left_out"] = _leave_out(manifest, drawn, config)
    if config.unlabelled != "none":
        report["unlabelled"] = _set_apart(manifest, units, drawn, config)
    _check_classes(manifest, drawn)
    if config.train_share < 1:
        report["left_out_of_train"] = _thin_train(manifest, units, drawn, config)
    joined = None
    if config.near_duplicates == "group":
        joined = list(groups)
        for rows in units:
            for row in rows.tolist():
                joined[row] = groups[rows[0]]
    return Split(drawn, report, joined)


def _join_units(
    groups: list[str],
    contents: list[str],
    copies: list[str],
    sets: list[str | None],
    report: dict[str, int],
) -> list[np.ndarray]:
    """Join the rows of one part, one file or one cluster of copies, but for dropped ones, and report how many groups that joins."""
    rows = [i for i, s in enumerate(sets) if s != "dropped"]
    parts = [fold_name(g) for g in groups]
    num_parts = len({parts[i] for i in rows})
    units = join_rows([parts, contents], rows)
    report["groups_joined_by_name"] = len({groups[i] for i in rows}) - num_parts
    report["groups_joined_by_content"] = num_parts - len(units)
    if copies is contents:
        return units
    joined = join_rows([parts, copies], rows)
    report["groups_joined_by_near_duplicates"] = len(units) - len(joined)
    return joined


def _random_key(seed: int, text: str) -> str:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).hexdigest()


def _hold_out(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> int:
    """Put held-out values into test_unseen, and a left-out one into val; count the rows that moved."""
    if not config.unseen_domain:
        return 0
    values = _values(manifest, config)
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


def _leave_out(manifest: Manifest, sets: list[str], config: SplitConfig) -> int:
    """Keep held-out values from train and val, in groups that have others too; count the rows that this drops."""
    values = _values(manifest, config)
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


def _set_apart(
    manifest: Manifest, units: list[np.ndarray], sets: list[str], config: SplitConfig
) -> int:
    """Take a share of test_unseen's units out of it, of each held-out value alike and whatever the labels; count the rows."""
    values, groups = _values(manifest, config), manifest.column("group")

    def position(rows: np.ndarray) -> tuple[str, str]:
        group = min(groups[i] for i in rows)
        return values[rows[0]], _random_key(config.seed, f"unlabelled {group}")

    unseen = sorted((rows for rows in units if sets[rows[0]] == "test_unseen"), key=position)
    if len(unseen) < 2:
        raise SplitError(
            f"test_unseen has {len(unseen)} group, and with split.unlabelled {config.unlabelled!r} some are set apart and others scored; "
            "hold out values with more groups, or set it to none."
        )
    num = min(max(1, round(config.unlabelled_share * len(unseen))), len(unseen) - 1)
    before = sets.count("test_unseen")
    _give(unseen, num, "unlabelled" if config.unlabelled == "train" else "dropped", sets)
    return before - sets.count("test_unseen")


def _values(manifest: Manifest, config: SplitConfig) -> list[str]:
    if config.unseen_domain not in manifest.domains:
        raise SplitError(
            f"split.unseen-domain is {config.unseen_domain!r}; the data has: {', '.join(manifest.domains) or 'no domain'}."
        )
    return manifest.column(f"domain.{config.unseen_domain}")


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
    drawn = sorted(values, key=lambda v: _random_key(config.seed, v))[: config.num_unseen]
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
    return named or min(free, key=lambda v: _random_key(config.seed, v))


def _draw_oracle(
    manifest: Manifest, units: list[np.ndarray], sets: list[str | None], config: SplitConfig
) -> None:
    """Draw val from test_unseen, which keeps at least as many groups of each class."""
    unseen = [rows for rows in units if sets[rows[0]] == "test_unseen"]
    for stratum in _strata(manifest, unseen, config, least=2):
        num = min(max(1, round(config.val * len(stratum))), len(stratum) // 2)
        _give(stratum, num, "val", sets)
    if "val" not in sets:
        raise SplitError(
            f"{len(unseen)} group(s) of held-out values are too few to draw val from them (at least 2 are needed); "
            "hold out more values, or use another rule."
        )


def _draw_missing(
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
            rest = _give(rest, min(max(1, round(share * len(stratum))), most), name, sets)
    for name in shares:
        if name not in sets:
            raise SplitError(
                f"{len(free)} groups are too few to draw {name} (at least 3 of a kind are needed); "
                "add parts, or give the sets in the data."
            )


def _thin_train(
    manifest: Manifest, units: list[np.ndarray], sets: list[str], config: SplitConfig
) -> int:
    """Leave a share of train's units, the first by a random key of each kind of class; count the rows that this drops."""
    groups = manifest.column("group")
    trained = [[i for i in rows if sets[i] == "train"] for rows in units]
    kinds = _by_class(manifest, [np.array(rows) for rows in trained if rows])
    dropped = 0
    for members in kinds.values():
        order = sorted(
            members, key=lambda rows: _random_key(config.seed, min(groups[i] for i in rows))
        )
        for rows in order[max(1, round(config.train_share * len(order))) :]:
            dropped += len(rows)
            for i in rows:
                sets[i] = "dropped"
    return dropped


def _give(
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


def _strata(
    manifest: Manifest, units: list[np.ndarray], config: SplitConfig, least: int
) -> list[list[np.ndarray]]:
    """Divide units by their classes; those of one value of the held-out domain stand together.

    Kinds of fewer than `least` units are pooled. The order of the values and of the units in them
    is drawn by seed.
    """
    labels, groups = manifest.column("label"), manifest.column("group")
    domain = manifest.column(f"domain.{config.unseen_domain}") if config.unseen_domain else labels
    strata = _by_class(manifest, units)
    pooled: list[np.ndarray] = []
    for key in [k for k, members in strata.items() if len(members) < least]:
        pooled += strata.pop(key)
    if pooled:
        strata[("",)] = pooled

    def position(classes: tuple[str, ...], rows: np.ndarray) -> tuple[str, str]:
        kind = "/".join([*classes, min(domain[i] for i in rows)])
        group = min(groups[i] for i in rows)
        return _random_key(config.seed, kind), _random_key(config.seed, group)

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


def _check_classes(manifest: Manifest, sets: list[str]) -> None:
    if manifest.masks:
        return  # labels only spread the draw; what masks hold is for the task to check
    labels = np.array(manifest.column("label"))
    for name in sorted({"train", *sets} - {"dropped", "test_unseen", "unlabelled"}):
        missing = sorted(set(manifest.classes) - set(labels[np.array(sets) == name]))
        if missing:
            num = len(set(np.array(manifest.column("group"))[labels == missing[0]]))
            raise SplitError(
                f"The class {missing[0]!r} has no image in {name} ({num} group(s) in all); every class needs a group "
                "in train, val and test: add parts of it, leave the class out, or hold out other values."
            )
