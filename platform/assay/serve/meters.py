"""What Prometheus is told, by way of each node's metrics port of Ray.

    assay_requests            by task and status; 429 is a full queue
    assay_request_seconds     from the first byte to the answer
    assay_waiting_requests    at each replica, with those in the graphs
    assay_batch_images        images that went through the graphs together
    assay_answers             by task, alias and label: the distribution of classes
    assay_rejected            answers left to a person
    assay_drift               see `metrics.drift`; of="requests" now, of="val" what unseen images had

Ray Serve's own meters beside them: replicas of each application, say.
"""

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from assay.metrics.drift import Drift

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


class Meters:
    """Of requests, and of answers."""

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

    def count(self, task: str, status: int, seconds: float) -> None:
        """Take note of a request."""
        self.requests.inc(1, {"task": task, "status": str(status)})
        self.seconds.observe(seconds, {"task": task})

    def count_answer(self, task: str, parts: dict[str, Any], drift: Drift | None) -> None:
        """Take note of a reply."""
        if not parts.get("views"):
            return
        tags = {"task": task, "alias": parts["model"]["alias"]}
        value = drift.value if drift else None
        if drift is not None and value is not None:
            self.drift.set(value, tags | {"of": "requests"})
            self.drift.set(drift.val, tags | {"of": "val"})
        if not parts["answer"]:
            return
        self.answers.inc(1, tags | {"label": parts["answer"]["label"]})
        if parts["answer"]["rejected"]:
            self.rejected.inc(1, tags)
