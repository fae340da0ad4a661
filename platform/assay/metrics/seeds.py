"""Several seeds of one setting as one table: seeds repeat a training, and are no further samples."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from assay.errors import PredictionsError
from assay.metrics.predictions import scores_of


def average_seeds(tables: Sequence[pa.Table]) -> pa.Table:
    """Average each sample's main score over the runs of several seeds, as a table of scores.

    A sample's weight is the mean of its weights, and its score the mean of its scores by these; so
    a mean over samples is that of all runs' rows together, and its n that of one run.

    Args:
        tables: Predictions, at least one.

    Raises:
        PredictionsError: The runs were judged on other samples, or by another score.
    """
    tables = [table.sort_by("id") for table in tables]
    samples = tables[0].select(["id", "split", "group"])
    metric = scores_of(tables[0])[0]
    total, weight, unweighted = np.zeros((3, len(samples)))
    for table in tables:
        name, scores, weights = scores_of(table)
        if name != metric or not table.select(samples.column_names).equals(samples):
            raise PredictionsError(
                f"Seeds of one setting have other samples, sets or groups, or are scored by {name} and by {metric}; "
                "average runs that differ in their seed of training alone."
            )
        total, weight = total + scores * weights, weight + weights
        unweighted += scores
    mean = np.divide(total, weight, out=unweighted / len(tables), where=weight > 0)
    table = samples.append_column("score", pa.array(mean))
    table = table.append_column("weight", pa.array(weight / len(tables)))
    return table.replace_schema_metadata({"score": metric})
