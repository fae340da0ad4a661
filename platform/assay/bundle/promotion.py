"""Promotion: what may take an alias, and the way back."""

import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from assay.bundle.bundle import Bundle
from assay.bundle.registry import _TASK, Alias, Record, Registry
from assay.errors import PredictionsError, RegistryError
from assay.metrics.compare import SIGNIFICANT, Comparison, compare
from assay.typed import to_json


def promote(
    registry: Registry, folder: Path, judged: pa.Table, alias: Alias, reason: str = ""
) -> Record:
    """Put a bundle behind an alias, if nothing stands against it or a reason overrules that.

    Args:
        registry: where to.
        folder: the bundle.
        judged: predictions of its run.
        alias: champion, or challenger, which may be worse than the champion.
        reason: why to promote in spite of objections; recorded.

    Raises:
        BundleError: it does not verify; no reason overrules that, since no server would open it.
        RegistryError: something stands against it, and there is no reason.
    """
    card = Bundle(folder).card
    task = card.task
    unsafe = [name for name in card.sha256 if Path(name).name != name or name.startswith(".")]
    if not _TASK.fullmatch(task) or unsafe:
        raise RegistryError(
            f"{folder} is of the task {task!r} with files {', '.join(unsafe) or 'of plain names'}; a task's name is a-z, 0-9 and _, and files lie in the bundle itself."
        )
    holder = registry.holder(task, alias)
    judged = judged.filter(pc.starts_with(judged["split"], "test"))
    tests = {name: own for name, own in card.metrics.items() if name.startswith("test")}
    champion = registry.holder(task, "champion")
    comparisons, objections = _against(registry, champion, judged)
    if alias != "champion":
        objections = []
    if not tests or not judged.num_rows:
        objections.append("it has no judged test set")
    if objections and not reason.strip():
        raise RegistryError(
            f"{card.run} is not promoted: {'; '.join(objections)}. Mend that, or overrule it by --force REASON, which is recorded."
        )
    version, sha256 = registry.add(folder, judged)
    previous = "" if holder is None else holder.previous if holder.sha256 == sha256 else holder.id
    now = time.time()
    record = Record(
        id=_name(now), task=task, alias=alias, version=version, sha256=sha256, kind="promoted",
        time=now, previous=previous, reason=reason if objections else "",
        objections=objections, run=card.run, data=card.data, code=dict(card.code),
        metrics=to_json(tests), comparisons=[one.to_dict() for one in comparisons],
    )  # fmt: skip
    registry.point(record)
    return record


def _against(
    registry: Registry, champion: Record | None, judged: pa.Table
) -> tuple[list[Comparison], list[str]]:
    """The candidate against the champion on the same test rows, and what speaks against it."""
    if champion is None or not judged.num_rows:
        return [], []
    try:
        found = compare({"candidate": judged, "champion": registry.judged(champion)})
    except PredictionsError as error:
        return [], [f"it cannot be compared with the champion {champion.version} ({error})"]
    worse = [one for one in found if one.p_holm < SIGNIFICANT and one.difference.value < 0]
    return found, [
        f"on {one.set} it is significantly worse than the champion {champion.version} ({one.metric} {one.difference.value:+.3f}, p = {one.p_holm:.2g})"
        for one in worse
    ]


def roll_back(registry: Registry, task: str, alias: Alias) -> Record:
    """Put in force what the record in force replaced; again, what was before that.

    Raises:
        RegistryError: there is no record to go back from or to.
        BundleError: the earlier bundle does not verify any more.
    """
    present = registry.holder(task, alias)
    if present is None or not present.previous:
        known = ", ".join(registry.tasks()) or "none"
        raise RegistryError(
            f"{task} has no earlier {alias} in {registry.place} to go back to; tasks with records: {known}."
        )
    earlier = registry.record(task, present.previous)
    Bundle(registry.fetch(earlier))
    now = time.time()
    record = replace(earlier, id=_name(now), kind="rolled back", time=now)
    registry.point(record)
    return record


def _name(now: float) -> str:
    return f"{int(now * 1e6):018d}-{uuid4().hex[:8]}"
