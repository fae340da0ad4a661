"""bundle.json: what a bundle says of itself."""

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.data.images.white import White
from assay.errors import BundleError
from assay.files import open_file, parse_json, sha256_of, write_json
from assay.metrics.alarm import Alarm
from assay.metrics.comparison import Comparison
from assay.metrics.decide import Decision
from assay.metrics.summary import Summary
from assay.typed import MisfitError, from_json, to_json

SCHEMA = 4


NAME = "bundle.json"

_LOCATION = re.compile(rb"location\x12(.)(.{1,255})", re.DOTALL)
"""How a graph names a file of weights: the key of an entry, then the length of its value and the value (onnx.proto, external_data)."""


CACHE = Path("~/.cache/assay-bundles")
"""Where bundles of elsewhere are copied to, each into a folder by the SHA-256 of its card."""


MOST_BYTES = 64 << 20
"""Largest card."""


MOST_FILES = 64
"""Most other files of a bundle."""


_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    mark: str = ""
    """Of the run's run.json."""
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
    alarms: list[Alarm] = field(default_factory=list)
    """Over the frames of a print, on the logit of the class that the decision calls positive."""
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
    path = folder / NAME
    try:
        with open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} is no bundle ({error}); give a folder that holds {NAME}."
        ) from None
    return parse_card(content, path)


def parse_card(content: bytes, path: Path | str) -> Card:
    """Read the card of a bundle from the bytes of bundle.json, which anyone may have written.

    Raises:
        BundleError: it is damaged, of another schema, too large, or names files that cannot be
            beside it.
    """
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        values = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} is no bundle's card ({error}); give a folder that holds {NAME}."
        ) from None
    if not isinstance(values, dict) or type(values.get("schema")) is not int:
        raise BundleError(f"{path} is no bundle's card; export the bundle again.")
    schema = values["schema"]
    if schema != SCHEMA:
        remedy = "update Assay" if schema > SCHEMA else "export the bundle again"
        raise BundleError(f"{path} has schema {schema}, this Assay knows {SCHEMA}; {remedy}.")
    try:
        card = from_json(Card, values)
    except (MisfitError, RecursionError) as misfit:
        raise BundleError(f"{path}: {misfit}. Export the bundle again.") from None
    _check_files(card, path)
    _check_numbers(card, path)
    return card


def _check_numbers(card: Card, path: Path | str) -> None:
    """Refuse numbers that no training leaves, by which a bundle would answer wrongly without a word.

    Raises:
        BundleError: there is one.
    """
    num, white = len(card.classes), card.white.value if card.white else 1.0
    checks = {
        "classes": num == len(set(card.classes)),
        "page": card.page is None or card.page >= 0,
        "white": 0 < white < math.inf,
        "thresholds": card.thresholds is None or len(card.thresholds) == num,
    }
    if decision := card.decision:
        costs = decision.costs or []
        checks |= {
            "decision.temperature": 0 < decision.temperature < math.inf,
            "decision.coverage": 0 < decision.coverage < 1,
            "decision.quantile": 0 <= decision.quantile <= 1,
            "decision.threshold": 0 <= (decision.threshold or 0) <= 1,
            "decision.positive": 0 <= (decision.positive or 0) < num,
            "decision.costs": not costs or [len(row) for row in costs] == [num] * num,
        }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise BundleError(
            f"{path}: field {wrong[0]!r} is none that training leaves; export the bundle again."
        )


def _check_files(card: Card, path: Path | str) -> None:
    """Refuse a card that names files elsewhere, or is opened with files whose content it does not say.

    Raises:
        BundleError: it does.
    """
    if len(card.sha256) > MOST_FILES:
        raise BundleError(f"{path} names {len(card.sha256)} files; at most {MOST_FILES} are taken.")
    for name, digest in card.sha256.items():
        if not _FILE_NAME.fullmatch(name) or name == NAME or not _SHA256.fullmatch(digest):
            raise BundleError(
                f"{path} names the file {name[:80]!r} with the hash {digest[:80]!r}; files lie beside it under plain names, each with its SHA-256. Export the bundle again."
            )
    graphs, int8 = card.pipeline.get("graphs") or [], card.pipeline.get("int8") or []
    if not all(isinstance(names, list) for names in (graphs, int8)):
        raise BundleError(f"{path} does not list its graphs; export the bundle again.")
    needed = [*(f"{graph}.onnx" for graph in (*graphs, *int8)), card.golden.image]
    unhashed = [name for name in needed if name not in card.sha256]
    if unhashed:
        raise BundleError(
            f"{path} has no hash of {', '.join(unhashed)[:200] or 'a golden image'}, so nobody can tell whether it is what was exported; export the bundle again."
        )


def check_content(folder: Path, card: Card) -> None:
    """Compare the files of a bundle with their hashes.

    Raises:
        BundleError: one is missing, is no file, or was changed.
    """
    for name, digest in card.sha256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise BundleError(
                f"{folder / name} is missing or was changed after export; export the bundle again."
            )
    _refuse_unhashed(folder, card)


def _refuse_unhashed(folder: Path, card: Card) -> None:
    """Refuse a graph that keeps weights in a file without a hash."""
    for graph in (name for name in card.sha256 if name.endswith(".onnx")):
        if not (folder / graph).stat().st_size:
            continue  # does not load
        with (
            open_file(folder / graph) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            named = {match[2][: match[1][0]] for match in _LOCATION.finditer(content)}
        unknown = named - {name.encode() for name in card.sha256}
        if unknown:
            raise BundleError(
                f"{folder / graph} keeps weights in {min(unknown)!r}, which has no hash in {NAME}, so that nobody can tell whether they are what was "
                "exported; export the bundle again."
            )


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a bundle, whole or not at all."""
    write_json(folder / NAME, to_json(card))
