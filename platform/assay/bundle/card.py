"""bundle.json: what a bundle says of itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.data.images.white import White
from assay.errors import BundleError
from assay.files import write_json
from assay.metrics.comparison import Comparison
from assay.metrics.decide import Decision
from assay.metrics.summary import Summary
from assay.typed import MisfitError, from_json, to_json

SCHEMA = 4


@dataclass(frozen=True, kw_only=True)
class Golden:
    """An image of the data, and what the bundle answers for it."""

    image: str = ""
    """Its file in the bundle."""
    probs: Mapping[str, float] = field(default_factory=dict)
    """Answer of the fp32 graphs, by name."""
    int8: Mapping[str, float] | None = None
    """Answer of the int8 graphs, where there are any."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The int8 graphs on the rows that the run was judged on."""

    metrics: Mapping[str, Summary]
    comparisons: list[Comparison]
    """With the fp32 graphs."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Contents of bundle.json."""

    schema: int = SCHEMA
    task: str = ""
    run: str = ""
    classes: list[str]
    pipeline: Mapping[str, Any]
    """How an image becomes the input of the graphs; what it holds follows from its `kind`."""
    page: int | None = None
    """Which image of a file that holds several is read, from 0; none: such a file is refused."""
    white: White | None = None
    """Of images of more than 8 bits, where training saw any."""
    decision: Decision | None = None
    """None where masks are drawn."""
    thresholds: list[int] | None = None
    """Of masks, one per class."""
    metrics: Mapping[str, Summary] = field(default_factory=dict)
    """The numbers of the run, by set."""
    int8: Int8 | None = None
    data: str = ""
    """Fingerprint of the manifest."""
    code: Mapping[str, Any] = field(default_factory=dict)
    """Versions it was made with."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of every other file."""
    golden: Golden = field(default_factory=Golden)
    embedding: Mapping[str, Any] | None = None
    """What its embeddings were on the data; see `metrics.drift`."""


def read_card(folder: Path) -> Card:
    """Read the card of a bundle.

    Raises:
        BundleError: it is missing or damaged, or of another schema.
    """
    path = folder / "bundle.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} is no bundle ({error}); give a folder that holds bundle.json."
        ) from None
    if not isinstance(values, dict) or "schema" not in values:
        raise BundleError(f"{path} is no bundle's card; export the bundle again.")
    schema = values["schema"]
    if schema != SCHEMA:
        remedy = "update Assay" if schema > SCHEMA else "export the bundle again"
        raise BundleError(f"{folder} has schema {schema}, this Assay knows {SCHEMA}; {remedy}.")
    try:
        return from_json(Card, values)
    except MisfitError as misfit:
        raise BundleError(f"{path}: {misfit}. Export the bundle again.") from None


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a bundle, whole or not at all."""
    write_json(folder / "bundle.json", to_json(card))
