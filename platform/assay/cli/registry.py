"""Commands for winners: which run answers, behind which alias, since when and why.

assay promote RUN                 make it the champion of its task
assay registry                    who answers, and the history
assay rollback TASK               return to the one before
"""

import json
from typing import Annotated

import pyarrow as pa
import tyro

from assay.bundle.aliases import ALIASES, Alias
from assay.bundle.card import Card, read_card
from assay.bundle.promotion import promote, roll_back
from assay.bundle.registry import Record, Registry
from assay.data.walk import show
from assay.errors import RunError
from assay.metrics.checks import check, refuse_other_truths, refuse_strangers
from assay.metrics.estimate import Estimate, bracket, signed
from assay.runs import listing
from assay.runs.listing import RunSummary
from assay.runs.mirror import needs_judged
from assay.runs.remote import open_storage
from assay.runs.results import read_split, refuse_other
from assay.typed import to_json

Name = Annotated[str, tyro.conf.Positional]


_RUNS = "runs"


_REGISTRY = "registry"


def promote_run(
    run: Name,
    alias: Alias = "champion",
    registry: str = _REGISTRY,
    storage: str = _RUNS,
    force: str = "",
) -> None:
    """Put a run's bundle behind an alias; refused where it is worse than the champion.

    Args:
        run: The run.
        alias: What it becomes.
        registry: Folder or URI of the registry.
        storage: Folder or URI of the runs.
        force: Why it is promoted in spite of objections; recorded.
    """
    summary = listing.judged(run, open_storage(storage, run, needs_judged))
    bundle = summary.folder / "bundle"
    if not (bundle / "bundle.json").is_file():
        raise RunError(f"{summary.folder.name} has no bundle; run the task again, which ships one.")
    card, predictions = read_card(bundle), summary.predictions()
    refuse_other(summary.folder, "bundle", card.mark)
    refuse_edited(card, summary, predictions)
    split = read_split(summary.folder, ("id", "group", "split", "content"))
    check(predictions)
    refuse_strangers(predictions, split)
    refuse_other_truths(predictions, split)
    record = promote(Registry(registry), bundle, predictions, alias, force)
    print(f"{record.task} {record.version} is {record.alias} (run {record.run})")
    for objection in record.objections:
        print(f"  forced: {objection}; reason: {record.reason}")
    for comparison in record.comparisons:
        difference = signed(Estimate(**comparison["difference"]))
        print(f"  {comparison['set']}: {difference}, {comparison['verdict']}")


def refuse_edited(card: Card, summary: RunSummary, predictions: pa.Table) -> None:
    """Refuse a card that says something else than the run that the bundle lies in.

    Raises:
        RunError: it does.
    """
    told, judged = (
        json.dumps({name: to_json(numbers) for name, numbers in sets.items()}, sort_keys=True)
        for sets in (card.metrics, summary.sets)
    )
    pairs = {
        "task": (card.task, summary.task),
        "data": (card.data, summary.record.data),
        "metrics": (told, judged),
    }
    if card.decision:
        classes = (predictions.schema.metadata or {}).get(b"classes", b"").decode()
        pairs["classes"] = json.dumps(card.classes), classes
    for name, (of_card, of_run) in pairs.items():
        if of_run and of_card != of_run:
            raise RunError(
                f"{summary.folder.name} has other {name} in bundle/bundle.json than beside it; restore the file, or judge the run again: assay judge {summary.folder}."
            )


def show_registry(task: str = "", registry: str = _REGISTRY) -> None:
    """Show who answers for each task, with lineage, and the history.

    Args:
        task: Only this one.
        registry: Folder or URI of the registry.
    """
    records, num = Registry(registry), 0
    for name in records.tasks():
        held = [records.holder(name, alias) for alias in ALIASES] if task in ("", name) else []
        history = records.history(name) if held else []
        if not (any(held) or history):  # some other folder
            continue
        num += 1
        print(name)
        for record in filter(None, held):
            _print_holder(record)
        print("  history")
        for record in history:
            why = f"; forced: {show(record.reason)}" if record.reason else ""
            print(
                f"    {listing.when(record.time)}  {record.alias:10s}  {record.version}  {show(record.kind)}{why}"
            )
    if not num:
        raise RunError(
            f"The registry {registry} holds nothing{f' of the task {task}' if task else ''}; promote a run by assay promote RUN."
        )


def _print_holder(record: Record) -> None:
    print(f"  {record.alias}: {record.version} since {listing.when(record.time)}")
    assay = record.code.get("assay")
    print(f"    run {show(record.run)}, data {show(record.data)}, Assay {show(str(assay))}")
    for name, summary in record.metrics.items():
        try:
            metric, score = next(iter(summary["metrics"].items()))
            print(
                f"    {show(name)}: {show(metric)} {bracket(Estimate(**score))}, n = {summary['num']}"
            )
        except Exception:  # whatever a record of another's holds in their place
            print(f"    {show(name)}: its numbers cannot be read")


def rollback(task: Name, alias: Alias = "champion", registry: str = _REGISTRY) -> None:
    """Return an alias to the bundle that it had before; both stay in the history.

    Args:
        task: The task.
        alias: Which alias.
        registry: Folder or URI of the registry.
    """
    record = roll_back(Registry(registry), task, alias)
    print(f"{record.task} {record.version} is {record.alias} again (run {record.run})")
