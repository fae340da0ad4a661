"""Bundles of several tasks in one process: opened when a task is asked for, the longest unused put away.

A promotion of a task whose bundles are open is opened beside them, as everywhere; of one that is put
away it is taken note of. A bundle that does not open leaves what answered before it.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from assay.bundle.providers import Provider
from assay.bundle.registry import Registry
from assay.errors import AssayError
from assay.serve.inspector import Inspector
from assay.serve.limits import RefusedError

AGAIN_S = 10.0
"""Seconds until bundles that did not open are tried again."""


OPENING = 2
"""Tasks whose bundles are opened at a time: one that takes long to come from object storage holds no other up."""


logger = logging.getLogger("ray.serve")


@dataclass
class Slot:
    """A task's place."""

    inspector: Inspector
    config: Mapping[str, Any] = field(default_factory=dict)
    """What is to answer; see `Inspector.configure`."""
    held: Mapping[str, Any] | None = None
    """What answered last."""
    refused: Mapping[str, Any] | None = None
    """What did not open."""
    again: float = 0.0
    """When it is tried again."""
    described: tuple[Mapping[str, Any], dict[str, Any]] | None = None
    waiting: int = 0
    """Requests that wait until it is open."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of who opens it."""


class Shelf:
    """Inspectors of tasks, of which so many are open.

    Args:
        registry: where their bundles are.
        threads: that the graphs of each may use.
        provider: what runs the graphs.
        clock: seconds.
    """

    def __init__(
        self,
        registry: Registry,
        threads: int,
        provider: Provider,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry, self.threads, self.provider = registry, threads, provider
        self.clock = clock
        self.most = 1
        self.slots: OrderedDict[str, Slot] = OrderedDict()
        """By task, the longest unused first."""
        self.opener = ThreadPoolExecutor(OPENING)

    async def configure(self, config: Mapping[str, Any]) -> None:
        """Take note of bundles by `tasks`, and of `most_open` of them; bring what is open to its new form.

        Args:
            config: `tasks` holds the record of each alias by task; the rest is as for an inspector.
        """
        self.most = config["most_open"]
        for task in set(self.slots) - set(config["tasks"]):
            del self.slots[task]
        for task, ids in config["tasks"].items():
            if task not in self.slots:
                inspector = Inspector(self.registry, task, self.threads, self.provider)
                self.slots[task] = Slot(inspector)
            self.slots[task].config = {**ids, "variant": config["variant"], "keep": config["keep"]}
        slots = self.slots.values()
        present = [slot for slot in slots if slot.inspector.opened or slot.lock.locked()]
        await asyncio.gather(*map(self._bring, present))

    async def take(self, task: str) -> Inspector:
        """Return a task's inspector, opened; what it holds is to be taken before anything is waited for.

        Raises:
            RefusedError: its champion does not open.
        """
        slot = self.slots[task]
        self.slots.move_to_end(task)
        if not slot.inspector.opened:
            slot.waiting += 1
            try:
                await asyncio.shield(self._bring(slot))  # goes on where who asked does not wait
            finally:
                slot.waiting -= 1
        if not slot.inspector.opened:
            raise RefusedError(503, "This task's bundle does not open; try again later.", 10)
        return slot.inspector

    async def _bring(self, slot: Slot) -> None:
        """Bring a task to its configuration, unless that was done meanwhile, or failed of late."""
        async with slot.lock:
            config, is_open = slot.config, bool(slot.inspector.opened)
            is_late = slot.refused == config and self.clock() < slot.again
            if is_late or (is_open and slot.held == config):
                return
            if not is_open:
                self._make_room()
            work = partial(_open, slot.inspector, config, slot.held)
            answers = await asyncio.get_running_loop().run_in_executor(self.opener, work)
            slot.held = answers or slot.held
            if answers != config:
                slot.refused, slot.again = config, self.clock() + AGAIN_S

    def _make_room(self) -> None:
        """Put away what is the longest unused, so that another may be opened; never what is waited for."""
        opened = [slot for slot in self.slots.values() if slot.inspector.opened]
        idle = [slot for slot in opened if not slot.waiting and not slot.lock.locked()]
        for slot in idle[: max(0, len(opened) + 1 - self.most)]:
            slot.inspector.put_away()

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Tell of every task what answers for it, or will; nothing where its card cannot be read."""
        slots = list(self.slots.items())
        told = await asyncio.to_thread(lambda: [_describe(slot) for _, slot in slots])
        return {task: each for (task, _), each in zip(slots, told, strict=True)}


def _open(
    inspector: Inspector, config: Mapping[str, Any], before: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Open bundles, or where their champion does not open those of before; return which of them answer."""
    if _opens(inspector, config):
        return config
    if before is None or before == config or not _opens(inspector, before):
        return None
    inspector.refused["champion"] = config["champion"]
    return before


def _opens(inspector: Inspector, config: Mapping[str, Any]) -> bool:
    try:
        inspector.configure(config)
    except Exception:  # whatever it is, the inspector has said it
        return False
    return "champion" not in inspector.refused


def _describe(slot: Slot) -> dict[str, Any]:
    if slot.inspector.opened:
        return slot.inspector.describe()
    config = slot.config
    if slot.described is None or slot.described[0] != config:
        try:
            slot.described = config, slot.inspector.look_up(config)
        except AssayError as error:
            logger.error(f"{slot.inspector.task} does not say what it holds: {error}")
            return {}
    return slot.described[1]
