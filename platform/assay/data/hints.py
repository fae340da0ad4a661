"""Hints: what the data seem to give, and no setting names: sets under another name, parts of several images.

Else sets are drawn beside published ones, or images of one part lie on both sides of a split, and nobody is told.
"""

import re
import sys
from collections.abc import Mapping, Sequence

from assay.data.folder import SPLITS
from assay.data.spellings import fold_name

SET_NAMES = {"set", "subset", "dataset", "split", "partition", "phase", "fold", "stage", "mode"}
SET_NAMES |= {"usage", "use", "role", "purpose", "tvt"}
SET_WORDS = {"", "train", "training", "trn", "val", "valid", "validation", "dev", "eval"}
SET_WORDS |= {"test", "testing", "tst", "holdout", "unassigned"}
"""Words of what a column of given sets may be called, and its cells, where it is not called split."""
_SETS = {"train", "training", "val", "valid", "validation", "test", "testing"}
SET_FLAGS = {f"{start}{name}" for start in ("is ", "is", "") for name in _SETS}
FLAG_WORDS = {"", "0", "1", "true", "false", "yes", "no", "y", "n", "t", "f"}
"""The same of a column that says yes or no of one set."""

PART_NAMES = {"part", "group", "serial", "sn", "unit", "piece", "workpiece", "specimen", "lot"}
PART_NAMES |= {"batch", "print", "panel", "board", "wafer", "coil", "patient", "subject"}
"""Words of what a column that names parts may be called."""


def seem_named(name: str) -> bool:
    """Tell whether a column may give sets or parts, by its name."""
    return bool(_cells_of_sets(name) or _words(name) & PART_NAMES)


def say_hints(
    place: str, columns: Mapping[str, Sequence[str]], drawn: Sequence[str], are_parts: bool
) -> None:
    """Say which columns, or folders of paths, look as if they gave sets or parts.

    Args:
        place: where the data stand, for a sentence.
        columns: fields that no setting names, whose cells are empty where there is no value.
        drawn: paths of the images that sets are drawn of; none where sets are given, or not asked for.
        are_parts: every image is a part of its own.
    """
    for name, cells in columns.items():
        values = {fold_name(cell) for cell in cells}
        if drawn and values - {""} and values <= _cells_of_sets(name):
            _say_sets(place, f"its column or field {name!r}")
        elif are_parts and _words(name) & PART_NAMES and 1 < len(values - {""}) < len(cells) / 1.5:
            print(
                f"{place} has {len(values)} values for {len(cells)} images in {name!r}, and data.group is empty, so that each image is a part of its own and images "
                f"of one part may lie in train and test; give --data.group {name}, if it names parts.",
                file=sys.stderr,
            )
    folders = {next((f for f in path.split("/")[:-1] if f in SPLITS), "") for path in drawn}
    if "" not in folders and len(folders) > 1:
        _say_sets(place, f"the folders of its paths ({', '.join(sorted(folders))})")


def _say_sets(place: str, where: str) -> None:
    print(
        f"{place} has sets in {where}, which are not used, so that others are drawn; name a column or field by --data.split and write "
        f"{', '.join(SPLITS)} into it, if they are to be kept.",
        file=sys.stderr,
    )


def _cells_of_sets(name: str) -> set[str]:
    """Return what cells of a column of this name hold if it gives sets; nothing where it does not."""
    folded = " ".join(re.split(r"[\W_]+", fold_name(name)))
    if folded in SET_FLAGS:
        return FLAG_WORDS
    return SET_WORDS if _words(name) & SET_NAMES else set()


def _words(name: str) -> set[str]:
    """Split a column's name into words, without what says that it is a name or a number: serialNo, part_id, PartID."""
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return {re.sub(r"(?<=..)(ids?|no|nr|num|number|name)$", "", word) for word in words}
