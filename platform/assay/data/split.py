"""The split: which set each image is in, drawn once, on the driver, by group.

A group (a physical part) never crosses sets, nor does a file's content: groups that share a file, or
whose names differ in case or spaces alone, move together; so do, if asked, near-duplicates. Values of one domain may be held out
entirely: their rows are `test_unseen`, and new groups of known values `test_seen`. Without a
held-out domain there is one `test`. What val is drawn from, and so what the model is selected by,
is the rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from assay.data.draw import draw_missing, draw_oracle, thin_train
from assay.data.duplicates import join_rows, refuse_crossing, settle_copies, spread_sets
from assay.data.holdout import hold_out, leave_out, set_apart
from assay.data.manifest import Manifest
from assay.data.near.copies import NearPair, clusters
from assay.data.spellings import fold_name
from assay.data.split_config import SplitConfig
from assay.errors import SplitError


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
    if config.rule != "training-domain":
        _refuse_given_val(sets, config.rule)
    report = {"groups": len(set(groups))}
    refuse_crossing("group", groups, sets)
    report["dropped"] = settle_copies(contents, sets, config.duplicates)
    copies, is_grouped = contents, config.near_duplicates == "group"
    if is_grouped:
        copies = clusters(contents, pairs)
        report["near_dropped"] = settle_copies(copies, sets, "drop")
    units = _join_units(groups, contents, copies, sets, report)
    spread_sets(groups, units, sets)
    drawn = _draw(manifest, units, sets, config, report)
    _check_classes(manifest, drawn)
    if config.train_share < 1:
        report["left_out_of_train"] = thin_train(manifest, units, drawn, config)
    return Split(drawn, report, _joined(groups, units) if is_grouped else None)


def _refuse_given_val(sets: Sequence[str | None], rule: str) -> None:
    if "val" in sets:
        raise SplitError(
            f"The data gives {sets.count('val')} image(s) to val, and split.rule {rule!r} makes val itself; "
            "use the rule training-domain, or give those images to train."
        )


def _draw(
    manifest: Manifest,
    units: list[np.ndarray],
    sets: list[str | None],
    config: SplitConfig,
    report: dict[str, int],
) -> list[str]:
    """Hold out, draw the sets that are missing, and set apart what is held out and crosses or is seen without labels."""
    may_cross = config.crossing == "drop"
    if not may_cross:
        report["moved_to_unseen"] = hold_out(manifest, units, sets, config)
    if config.rule == "oracle":
        draw_oracle(manifest, units, sets, config)
    draw_missing(manifest, units, sets, config)
    drawn = ["train" if s is None else s for s in sets]
    if may_cross:
        report["left_out"] = leave_out(manifest, drawn, config)
    if config.unlabelled != "none":
        report["unlabelled"] = set_apart(manifest, units, drawn, config)
    return drawn


def _joined(groups: list[str], units: list[np.ndarray]) -> list[str]:
    """Name the rows of each unit by its first row's group."""
    joined = list(groups)
    for rows in units:
        for row in rows.tolist():
            joined[row] = groups[rows[0]]
    return joined


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
