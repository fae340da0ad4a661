"""Promotion: what may take an alias, and the way back."""

import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from assay.bundle.aliases import Alias
from assay.bundle.card import Card, read_card
from assay.bundle.registry import RESERVED, TASK_NAME, Record, Registry
from assay.bundle.trial import apart, try_bundle
from assay.errors import PredictionsError, RegistryError
from assay.metrics.checks import check
from assay.metrics.compare import compare
from assay.metrics.comparison import Comparison
from assay.typed import to_json


def promote(
    registry: Registry, folder: Path, predictions: pa.Table, alias: Alias, reason: str = ""
) -> Record:
    """Put a bundle behind an alias, if nothing stands against it or a reason overrules that.

    Args:
        registry: where to.
        folder: the bundle.
        predictions: of its run.
        alias: champion, or challenger, which may be worse than the champion.
        reason: why to promote in spite of objections; recorded.

    Raises:
        BundleError: it does not verify; no reason overrules that, since no server would open it.
        RegistryError: something stands against it, and there is no reason.
        PredictionsError: its test rows cannot be judged.
    """
    card = read_card(folder)
    task = _task_of(card, folder)
    with apart(folder, card) as copy:
        try_bundle(copy)
        if card.pipeline.get("int8"):
            try_bundle(copy, "int8")
    before = registry.holder(task, alias)
    test_rows = predictions.filter(pc.starts_with(predictions["split"], "test"))
    if test_rows.num_rows:
        check(test_rows)  # the next one is compared on them
    metrics = {name: numbers for name, numbers in card.metrics.items() if name.startswith("test")}
    comparisons, objections = _compare_with_champion(registry, task, test_rows)
    if alias != "champion":
        objections = []
    if not metrics or not test_rows.num_rows:
        objections.append("it has no judged test set")
    if objections and not reason.strip():
        raise RegistryError(
            f"{card.run} is not promoted: {'; '.join(objections)}. Mend that, or overrule it by --force REASON, which is recorded."
        )
    version, sha256 = registry.add(folder, test_rows)
    now = time.time()
    record = Record(
        id=_record_id(now),
        task=task,
        alias=alias,
        version=version,
        sha256=sha256,
        kind="promoted",
        time=now,
        previous=_previous(before, sha256),
        reason=reason if objections else "",
        objections=objections,
        run=card.run,
        data=card.data,
        code=dict(card.code),
        metrics=to_json(metrics),
        comparisons=[comparison.to_dict() for comparison in comparisons],
    )
    registry.point(record)
    return record


def promote_again(registry: Registry, task: str, version: str, alias: Alias) -> Record:
    """Put a version that the registry has behind an alias, if nothing stands against it.

    Raises:
        BundleError: it does not verify any more.
        RegistryError: there is no such version, or something stands against it.
    """
    records = [record for record in registry.history(task) if record.version == version]
    if not records:
        raise RegistryError(
            f"{task} has no version {version[:40]!r}; the registry's history lists those there are."
        )
    return promote(registry, registry.fetch(records[-1]), registry.test_rows(records[-1]), alias)


def _task_of(card: Card, folder: Path) -> str:
    """Return the task of a bundle, or refuse a name that is no folder of the registry.

    Raises:
        RegistryError: it is none, or is reserved.
    """
    if not TASK_NAME.fullmatch(card.task):
        raise RegistryError(
            f"{folder} is of the task {card.task[:80]!r}; a task's name is a-z, 0-9 and _, and begins with a letter."
        )
    if card.task in RESERVED:
        raise RegistryError(
            f"{folder} is of the task {card.task!r}, a name that the server needs itself ({', '.join(sorted(RESERVED))}); rename the task's file and train it under that name."
        )
    return card.task


def _previous(before: Record | None, sha256: str) -> str:
    """Return what a rollback goes back to; the same bundle once more is no step."""
    if before is None:
        return ""
    return before.previous if before.sha256 == sha256 else before.id


def _compare_with_champion(
    registry: Registry, task: str, test_rows: pa.Table
) -> tuple[list[Comparison], list[str]]:
    """Compare a candidate with the champion on the same test rows; return also what speaks against it."""
    champion = registry.holder(task, "champion")
    if champion is None or not test_rows.num_rows:
        return [], []
    tables = {"candidate": test_rows, "champion": registry.test_rows(champion)}
    try:
        comparisons = compare(tables)
    except PredictionsError as error:
        return [], [f"it cannot be compared with the champion {champion.version} ({error})"]
    return comparisons, [
        f"on {c.set} it is significantly worse than the champion {champion.version} ({c.metric} {c.difference.value:+.3f}, p = {c.p_holm:.2g})"
        for c in comparisons
        if c.side == "worse"
    ]


def roll_back(registry: Registry, task: str, alias: Alias) -> Record:
    """Put in force what the record in force replaced; again, what was before that.

    Raises:
        RegistryError: there is no record to go back from or to.
        BundleError: the earlier bundle does not verify any more.
    """
    present = registry.holder(task, alias)
    if present is None or not present.previous:
        tasks = ", ".join(registry.tasks()) or "none"
        raise RegistryError(
            f"{task} has no earlier {alias} in {registry.address} to go back to; tasks with records: {tasks}."
        )
    earlier = registry.record(task, present.previous)
    try_bundle(registry.fetch(earlier))
    now = time.time()
    record = replace(earlier, id=_record_id(now), kind="rolled back", time=now)
    registry.point(record)
    return record


def _record_id(now: float) -> str:
    return f"{int(now * 1e6):018d}-{uuid4().hex[:8]}"
