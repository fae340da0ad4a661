"""What Prometheus is told, by way of each node's metrics port of Ray.

    assay_requests            by task and status; 429 is a full queue
    assay_request_seconds     from the first byte to the answer
    assay_waiting_requests    at each replica, with those in the graphs
    assay_batch_images        images that went through the graphs together
    assay_answers             by task, alias and label: the distribution of classes
    assay_rejected            answers left to a person
    assay_drift               see `metrics.drift`; of="requests" now, of="val" what unseen images had

Ray Serve's own meters beside them: replicas of each application, say. Counts and levels are handed to Ray twice a second
and not with each request, of whose time on the event loop they took a part.
"""

import asyncio
from collections import Counter as Sum
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from assay.metrics.drift import Drift

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


HAND_OVER_S = 0.5
"""Seconds for which counts and levels are kept here."""


class Meters:
    """Of requests, and of answers; used on one event loop."""

    def __init__(self) -> None:
        self.requests = Counter("assay_requests", "Requests.", ("task", "status"))
        self.seconds = Histogram("assay_request_seconds", "Seconds.", SECONDS, ("task",))
        self.waiting = Gauge("assay_waiting_requests", "Requests at a replica.", ("task",))
        self.batch = Histogram("assay_batch_images", "Images.", IMAGES, ("task",))
        self.answers = Counter("assay_answers", "Answers.", ("task", "alias", "label"))
        self.rejected = Counter("assay_rejected", "Left to a person.", ("task", "alias"))
        self.drift = Gauge(
            "assay_drift", "Move of mean embeddings (scatter).", ("task", "alias", "of")
        )
        self.counts: Sum[tuple[Counter, tuple[str, ...]]] = Sum()
        self.levels: dict[tuple[Gauge, tuple[str, ...]], float] = {}
        """What is not handed over yet, by meter and the values of its tags."""

    def count(self, task: str, status: int, seconds: float) -> None:
        """Take note of a request."""
        self._add(self.requests, task, str(status))
        self.seconds.observe(seconds, {"task": task})

    def set_waiting(self, task: str, num: int) -> None:
        """Take note of how many requests are here."""
        self._set(self.waiting, num, task)

    def count_answer(self, task: str, parts: dict[str, Any], drift: Drift | None) -> None:
        """Take note of a reply."""
        if not parts.get("views"):
            return
        alias = parts["model"]["alias"]
        value = drift.value if drift else None
        if drift is not None and value is not None:
            self._set(self.drift, value, task, alias, "requests")
            self._set(self.drift, drift.val, task, alias, "val")
        if not parts["answer"]:
            return
        self._add(self.answers, task, alias, parts["answer"]["label"])
        if parts["answer"]["rejected"]:
            self._add(self.rejected, task, alias)

    def _add(self, meter: Counter, *tags: str) -> None:
        self._wait()
        self.counts[meter, tags] += 1

    def _set(self, meter: Gauge, level: float, *tags: str) -> None:
        self._wait()
        self.levels[meter, tags] = level

    def _wait(self) -> None:
        """See to it that what is noted next is handed over."""
        if not self.counts and not self.levels:
            asyncio.get_running_loop().call_later(HAND_OVER_S, self.hand_over)

    def hand_over(self) -> None:
        """Give Ray what was noted."""
        counts, levels = self.counts, self.levels
        self.counts, self.levels = Sum(), {}
        for (counter, tags), num in counts.items():
            counter.inc(num, _named(counter, tags))
        for (gauge, tags), level in levels.items():
            gauge.set(level, _named(gauge, tags))


def _named(meter: Counter | Gauge, tags: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(meter.info["tag_keys"], tags, strict=True))
