"""`assay promote`: a bundle is of the run that it lies in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.bundle.card import read_card
from assay.cli.registry import refuse_edited
from assay.errors import RunError
from assay.runs import listing
from assay.runs.results import Result

CLASSES = ["m1", "m2"]


@pytest.mark.parametrize(
    "edited",
    [
        {"task": "other"},
        {"data": "e" * 12},
        {"metrics": {}},
        {"classes": CLASSES[::-1]},
    ],
)
def test_a_bundle_that_says_something_else_than_its_run_is_refused(
    make_run: Callable[..., Path],
    judged: Callable[..., Result],
    tmp_path: Path,
    make_bundle: Any,
    edited: dict[str, Any],
) -> None:
    """Its answers would stand under the numbers of others, or under each other's names."""
    folder = make_run(tmp_path, "toy-run", 0.9, data="d" * 12)
    result = judged(folder)
    card = read_card(make_bundle(tmp_path / "bundle", "toy"))
    card = replace(card, classes=CLASSES, metrics=result.sets)
    summary = listing.read(folder)
    refuse_edited(card, summary, summary.predictions())
    with pytest.raises(RunError, match=rf"other {next(iter(edited))} in bundle/bundle\.json"):
        refuse_edited(replace(card, **edited), summary, summary.predictions())
