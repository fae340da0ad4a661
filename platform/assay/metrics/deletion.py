"""The deletion test: what blanking the patches that were chosen costs, beside blanking as many others.

Evidence that is evidence is missed; where the accuracy stays, the answer came from elsewhere.
"""

import numpy as np
import pyarrow as pa

from assay.metrics.estimate import Estimate, interval
from assay.metrics.measures import Measure

MEASURES = {
    "accuracy_without_chosen": Measure("Without chosen patches", "accuracy where they are blank"),
    "accuracy_without_random": Measure(
        "Without random patches", "accuracy where as many are blank"
    ),
    "evidence": Measure(
        "Evidence", "accuracy that blanking chosen patches costs beyond random ones"
    ),
}


def measure(rows: pa.Table) -> dict[str, Estimate]:
    """Measure accuracy with the chosen patches blank, with random ones blank, and what more the first costs."""
    if "logits_without_chosen" not in rows.column_names:
        return {}
    truth, group = rows["truth"].to_numpy(), np.array(rows["group"].to_pylist())
    right = {}
    for name in ("chosen", "random"):
        logits = np.array(rows[f"logits_without_{name}"].to_pylist())
        right[name] = (logits.argmax(1) == truth) * 1.0
    without = {f"accuracy_without_{name}": interval(hits, group) for name, hits in right.items()}
    return without | {"evidence": interval(right["random"] - right["chosen"], group, lowest=-1.0)}
