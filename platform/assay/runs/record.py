"""run.json: how far a run came, where it was launched, and what it is a run of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from assay.config import fingerprint
from assay.data.masks.account import MaskAccount
from assay.data.near.copies import Leak
from assay.errors import RunError
from assay.files import RESTORE, read_json, write_json
from assay.typed import MisfitError, from_json, rest, to_json

SCHEMA = 1

LOUD = 0.02
"""Share of a test set with near-copies in train from which that is said."""

State = Literal["new", "running", "stopped", "failed", "finished"]

Stage = Literal["val", "test", "bundle"]
"""Where a run ended: judged on val (a trial of a search), on test too (a trial of a grid of folds), or shipped."""

STAGES: tuple[Stage, ...] = get_args(Stage)
"""In their order."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a run, on one set of machines."""

    time: float | None = None
    """Seconds since 1970; None where an older Assay did not note it."""
    workers: int | None = None
    strategy: str | None = None
    device: str | None = None
    sweep: str = ""
    """The sweep that it is a trial of, or ""."""
    stamp: Mapping[str, str] = rest()
    """Versions and machine, by name."""


_UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One look at the test sets."""

    time: float
    """Seconds since 1970."""
    rule: str = _UNKNOWN
    """What val was drawn by."""
    assay: str = _UNKNOWN
    """Version of the package."""
    code: str = _UNKNOWN
    """Digest of the package's sources."""
    host: str = _UNKNOWN
    tried: int = 1
    """Configurations among which val had chosen this one."""
    decide: Mapping[str, Any] | None = None
    """Settings of `decide`; None where an older Assay did not record them."""
    graph: str = ""
    """What was scored besides the run's own weights: int8."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An image that was left out."""

    row: int
    """Its row in the manifest as it was given."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Contents of run.json; a new run has none of it."""

    schema: int = 0
    state: State = "new"
    stage: Stage = "bundle"
    """How far a finished run was taken."""
    task: str = ""
    name: str = ""
    """As people read it: the task, or the baseline that the run is."""
    reason: str = ""
    """Why it failed."""
    launches: tuple[Launch, ...] = ()
    """The oldest first."""
    seconds: float | None = None
    """Of training and judging, over all launches that came to their end."""
    warnings: tuple[str, ...] = ()
    split: Mapping[str, int] | None = None
    """What drawing the split counted: groups, copies dropped, near duplicates by set."""
    leaks: Mapping[str, Leak] | None = None
    """Images with a near-copy in train, by set, as published where the data gives the tests, else as drawn."""
    quarantined: tuple[Quarantined, ...] = ()
    white: float | None = None
    """The white level of images of more than 8 bits, where there were any."""
    masks: Mapping[str, MaskAccount] | None = None
    """What became of the files that masks were asked from, by kind of mask."""
    data: str = ""
    """Fingerprint of the manifest."""
    recipe: str = ""
    """Equal for runs that differ in their seed alone."""
    content: str = ""
    """Equal for runs that differ in their code alone."""
    settings: str = ""
    """Digest of what config.json holds; an older Assay did not note it."""
    code: Mapping[str, str] | None = None
    """Digest of each file that decides what is trained; the task's own is called `task`."""
    scorings: tuple[Scoring, ...] = ()
    """Looks at the test sets, the oldest first; they end with the run's folder alone."""
    measured: Mapping[str, float] | None = None
    """What it costs: num_params, num_trainable, macs and trainable_macs of one image, train_s; of the shipped graphs
    latency_ms, latency_int8_ms and latency_threads (a search has latency_ms of the model within its trial)."""
    others: Mapping[str, Any] = rest()
    """What this Assay does not know; kept as it is."""

    @property
    def mark(self) -> str:
        """Name what the run computes, as its other files do; "" where an older Assay did not note all of it."""
        return fingerprint([self.content, dict(self.code)]) if self.content and self.code else ""

    def leaks_said(self) -> list[str]:
        """Say of each test set whose near-copies in train are too many to be passed over, or that nobody looked for any."""
        if self.leaks is None:
            return [
                "Near-duplicates were not looked for: how many test images have a near-copy in train is not known."
            ]
        is_left_out = (self.split or {}).get("near_dropped", 0) > 0
        end = (
            "what is near them was left out of train here"
            if is_left_out
            else "this split's score says little of parts that were not trained on"
        )
        return [
            f"{100 * leak.share:.0f} % of the {name} images ({leak.near} of {leak.num}) have a near-copy in train"
            f"{' as published' if is_left_out else ''}; {end}."
            for name, leak in self.leaks.items()
            if name.startswith("test") and leak.share > LOUD
        ]

    def masks_said(self) -> list[str]:
        """Say what of the masks was not used, or was used with a doubt."""
        return [
            f"masks ({kind}): {text}."
            for kind, account in (self.masks or {}).items()
            for text in account.sentences()
        ]


def as_record(kind: type[T], values: Any, path: Path) -> T:
    """Turn what a file of a run holds into its record.

    Raises:
        RunError: a field is missing or of another type; names the file and the field.
    """
    try:
        return from_json(kind, values)
    except MisfitError as misfit:
        raise RunError(
            f"{path}: {misfit}. Restore the file, or train again with --again."
        ) from None


def read_record(folder: Path) -> RunRecord:
    """Read run.json of a run that has one.

    Raises:
        RunError: it is missing or damaged, or was written by a newer Assay.
    """
    path = folder / "run.json"
    values = read_json(path)
    schema = schema_of(values)
    if schema > SCHEMA:
        raise RunError(
            f"{folder} was written by a newer Assay (schema {schema}, this one knows {SCHEMA}); "
            "update Assay, or train again with --again."
        )
    if not schema:  # which none of ours lacks
        raise RunError(f"{path} is damaged (it says no schema); {RESTORE}.")
    return as_record(RunRecord, values, path)


def record_of(folder: Path) -> RunRecord:
    """Read run.json, or nothing where the run is new.

    Raises:
        RunError: it is damaged, or was written by a newer Assay.
    """
    return read_record(folder) if (folder / "run.json").exists() else RunRecord()


def schema_of(values: Mapping[str, Any]) -> int:
    """Return the schema that a file says it has, 0 where it says none."""
    schema = values.get("schema", 0)
    return schema if isinstance(schema, int) else 0


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json, without the fields that have their defaults."""
    write_json(folder / "run.json", to_json(replace(record, schema=SCHEMA), sparse=True))
