"""A finished run's directory, small and hostile, and the page that is made of it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.metrics.figure import Figure, Series
from assay.metrics.measures import STANDARD
from assay.typed import to_json

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["mill", HOSTILE, "lathe & saw"]
VOID = {"meta", "br", "img", "link", "input", "hr", "rect"}


def _estimate(value: float, spread: float = 0.1, num: int = 40) -> dict[str, Any]:
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "num": num, "num_groups": num // 2}


def _summary(accuracy: float) -> dict[str, Any]:
    shares = ("accuracy", "group_accuracy", "set_coverage", "rejected", "patches_on_signal")
    metrics = {name: _estimate(accuracy) for name in shares}
    of_class = {"num": 10, "recall": _estimate(accuracy), "precision": _estimate(0.5)}
    classes = {name: of_class for name in CLASSES}
    classes[HOSTILE] = of_class | {"precision": None}
    sure = {"low": 0.6, "high": 0.7, "num": 40, "confidence": 0.65, "accuracy": _estimate(0.7)}
    return {
        "num": 40,
        "num_groups": 20,
        "metrics": metrics | {"vote_accuracy": None, "nll": _estimate(0.5)},
        "classes": classes,
        "confusion": [[9, 1, 0], [0, 10, 0], [2, 0, 18]],
        "families": {"model": {"accuracy": _estimate(0.9), "within": None}},
        "domains": {"design": {"Clip": _estimate(0.9), HOSTILE: _estimate(0.25)}},
        "worst_domain": ["design", HOSTILE],
        "reliability": [sure],
        "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "aurc": _estimate(0.1)},
        "views": [
            {"views": 1, "accuracy": _estimate(0.7)},
            {"views": 2, "accuracy": _estimate(0.8)},
        ],
    }


def _result() -> dict[str, Any]:
    figure = Figure(title=f"Own {HOSTILE}", kind="bar", series={"a": Series(x=[HOSTILE], y=[0.5])})
    rule = "training-domain validation"
    scoring = {"time": 0.0, "rule": rule, "assay": "0.1.0", "code": "abc", "host": "secret-host"}
    fit = {"temperature": 1.25, "coverage": 0.9, "quantile": 0.5, "num": 40, "num_groups": 20}
    return {
        "schema": 1,
        "rule": rule,
        "oracle": False,
        "seed": 3,
        "classes": CLASSES,
        "decision": fit | {"costs": None, "positive": None, "threshold": None},
        "sets": {"val": _summary(0.9), "test_seen": _summary(0.812), "test_unseen": _summary(0.7)},
        "measures": to_json(STANDARD),
        "figures": [figure.to_dict()],
        "tried": 1,
        "scorings": [scoring | {"tried": 1, "decide": {}}],
    }


def _comparison(p_holm: float = 0.002, difference: float = 0.4) -> dict[str, Any]:
    bounds = {"value": difference, "low": difference - 0.1, "high": difference + 0.1}
    pair = {
        "first_name": "fingerprint",
        "name": "random",
        "first": _estimate(0.812),
        "second": _estimate(0.412),
        "difference": _estimate(0.4) | bounds,
        "p": p_holm / 2,
        "p_holm": p_holm,
        "verdict": "is not read",
        "mcnemar": {"unit": "groups", "only_first": 9, "only_second": 1, "p": 0.02},
    }
    compared = [
        {"set": name, "metric": metric} | pair
        for name in ("test_seen", "test_unseen")
        for metric in ("accuracy", "group_accuracy")
    ]
    sets = {"test_seen": {"metrics": _summary(0.4)["metrics"]}}
    return {
        "method": "fingerprint",
        "comparisons": compared,
        "runs": {"random": {"folder": "r", "seed": 3, "sets": sets}},
    }


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def _record() -> dict[str, Any]:
    launch = {"time": 0.0, "workers": 2, "strategy": "ddp", "device": "cpu"}
    return {
        "schema": 1,
        "state": "finished",
        "task": "fingerprint",
        "seconds": 3725.0,
        "measured": {
            "num_params": 115_088.0,
            "num_trainable": 20_736.0,
            "macs": 1.814e9,
            "trainable_macs": 907e6,
            "train_s": 3661.0,
        },
        "launches": [launch | {"assay": "0.1.0", "host": "secret-host"}],
        "recipe": "aaaabbbbcccc",
        "data": "ddddeeeeffff",
        "split": {"groups": 20, "dropped": 2, "near_duplicates_test_seen": 7},
        "quarantined": [{"row": 3, "reason": "/home/alice/parts/a.png is truncated"}],
    }


def _write_curve(folder: Path) -> None:
    lines = [{"kind": "start", "step": 0, "epoch": 0, "total": 4}]
    for step in (1, 2, 2, 3, 4):  # step 2 twice: a resumed run
        scalars = {"loss": 1.0 / step, "lr": 0.1, "data_wait": 0.5}
        lines.append({"kind": "step", "step": step, "epoch": 0} | scalars)
    lines.append({"kind": "val", "step": 2, "epoch": 0, "accuracy": 0.75, "nll": 0.9, "val_s": 1})
    lines.append({"kind": "val", "step": 4, "epoch": 1, "accuracy": 0.75, "nll": 0.5, "val_s": 1})
    lines.append({"kind": "epoch", "step": 4, "epoch": 1, "samples_per_s": 12.0, "memory_mb": 1000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_split(folder: Path) -> None:
    columns = {
        "id": [str(i) for i in range(12)],
        "split": ["train"] * 6 + ["val"] * 3 + ["test_seen"] * 2 + ["test_unseen"],
        "group": [f"g{i // 2}" for i in range(12)],
        "label": [CLASSES[i % 3] for i in range(12)],
        "domain.design": ["Clip"] * 11 + [HOSTILE],
    }
    pq.write_table(pa.table(columns), folder / "split.parquet")


def _write_samples(folder: Path) -> None:
    folder.mkdir()
    cv2.imwrite(str(folder / "0.jpg"), np.zeros((40, 60, 3), np.uint8))
    row = {"id": HOSTILE, "split": "test_seen", "group": "g", "domains": {"design": HOSTILE}}
    image = {"image": "0.jpg", "width": 60, "height": 40}
    boxes = [[0.0, 0.0, 30.0, 20.0], [30.0, 20.0, 60.0, 40.0]]
    answer = {"truth": CLASSES[0], "answer": HOSTILE, "prob": 0.987, "right": False}
    sample = {"kind": "error", "rejected": True, "boxes": boxes, "attn": [0.2, 0.8]}
    sample |= row | image | answer
    right = sample | {"kind": "example", "right": True, "answer": CLASSES[0], "prob": 0.655}
    pair = {"split": "test_seen", "bits": 5, "id": "one", "twin": "two"}
    pair |= {"image": "0.jpg", "twin_image": "0.jpg"}
    _write(folder, "samples.json", {"samples": [sample, right], "near": [pair]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's directory, small and hostile."""
    folder = tmp_path / "fingerprint-0123456789ab"
    folder.mkdir()
    config = {
        "data": {"root": "/home/alice/parts"},
        "split": {"unseen_domain": "design", "seed": 0},
        "train": {"select": "accuracy", "epochs": 2},
        "model": {"name": HOSTILE, "gates": True},
    }
    _write(folder, "run.json", _record())
    _write(folder, "config.json", config)
    _write(folder, "result.json", _result())
    _write(folder, "comparison.json", _comparison())
    _write_curve(folder)
    _write_split(folder)
    _write_samples(folder / "samples")
    return folder


class Page(HTMLParser):
    """Elements of a page in order, its text, and whether every element is closed where it belongs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def hostile():
    """A name of classes, domains and models that would run if it were not text."""
    return HOSTILE


@pytest.fixture(scope="session")
def estimate():
    """Makes a number with an interval."""
    return _estimate


@pytest.fixture(scope="session")
def result():
    """Makes what result.json says."""
    return _result


@pytest.fixture(scope="session")
def comparison():
    """Makes what comparison.json says."""
    return _comparison


@pytest.fixture(scope="session")
def write():
    """Writes a value as JSON into a folder."""
    return _write


@pytest.fixture(scope="session")
def page_of():
    """Reads a page into its elements and its text."""
    return Page
