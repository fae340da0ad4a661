"""What is odd about images of several domains, in sentences."""

from collections.abc import Sequence

import numpy as np

from assay.data.dataset import Column
from assay.shapes import Int, Int64


def domain_doubts(
    classes: Sequence[str],
    truth: Int[np.ndarray, " rows"],
    domain: Column,
    group: Column,
    train: Int64[np.ndarray, " train"],
) -> list[str]:
    """Say which domains of train have one class alone, and which groups have several classes or domains."""
    doubts = []
    for code in np.unique(domain.codes[train]).tolist():
        present = np.unique(truth[train][domain.codes[train] == code])
        if len(present) == 1:
            doubts.append(
                f"All images of train of {domain.values[code]!r} are of the class {classes[present[0]]!r}, so that what tells this domain tells the class; "
                "give images of another class, or leave the domain out."
            )
    mixed = _several(group.codes, truth)
    if len(mixed):
        doubts.append(
            f"{len(mixed)} of {len(group.values)} groups have images of several classes, first {group.values[mixed[0]]!r}, so no answer is judged by the group; "
            "correct the labels, unless they change within a group."
        )
    crossing = _several(group.codes, domain.codes)
    if len(crossing):
        doubts.append(
            f"{len(crossing)} of {len(group.values)} groups are of several domains, first {group.values[crossing[0]]!r}; "
            "correct the domain, or name it in --data.group where numbers begin anew in each."
        )
    return doubts


def _several(
    codes: Int[np.ndarray, " rows"], values: Int[np.ndarray, " rows"]
) -> Int64[np.ndarray, " several"]:
    """Return the codes that stand beside more than one value."""
    pairs = np.unique(np.stack([codes, values]).astype(np.int64), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    return names[counts > 1]
