"""A finished training of a comparison, and what its run's directory holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from assay.bundle.card import read_card
from assay.metrics.measures import Measure
from assay.runs.folder import Run
from assay.runs.results import read_predictions, read_result
from assay.sweep.pareto import COSTS

COLUMNS = ("truth", "logits", "probs", "score", "weight")
"""Columns of a predictions table that a score follows from."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training, and what its run holds."""

    setting: str
    share: float
    seed: int
    predictions: pa.Table
    costs: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]
    """Values by test set and measure, without the main score."""
    measures: Mapping[str, Measure]
    int8: Mapping[str, float]
    """The main score of the int8 graph by test set, where one ships."""


def read_run(setting: str, share: float, seed: int, folder: Path) -> TrainedRun:
    """Read what a finished run holds.

    Raises:
        RunError: a file of it is missing or damaged.
        BundleError: its bundle's card is.
    """
    measured, result = Run(folder).record.measured or {}, read_result(folder)
    metrics: dict[str, dict[str, float]] = {}
    for test in result.tests:
        known = islice(result.sets[test].metrics.items(), 1, None)
        metrics[test] = {key: estimate.value for key, estimate in known if estimate is not None}
    int8 = read_card(folder / "bundle").int8 if "latency_int8_ms" in measured else None
    # latency of a model within a search's trial is no latency of what ships
    is_shipped = "latency_threads" in measured
    return TrainedRun(
        setting=setting,
        share=share,
        seed=seed,
        predictions=read_predictions(folder, COLUMNS),
        costs={
            key: measured[key]
            for key in COSTS
            if key in measured and (is_shipped or not key.startswith("latency"))
        },
        metrics=metrics,
        measures=result.measures,
        int8={test: int8.metrics[test].main[1].value for test in metrics} if int8 else {},
    )
