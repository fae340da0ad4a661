"""Meters: what Ray is told of requests and answers, and when."""

import asyncio

import pytest

from assay.serve import meters
from assay.serve.meters import Meters


class Recorder:
    """In the place of a meter of Ray: keeps what it is told."""

    def __init__(self, name, description, *rest):
        self.info = {"name": name, "tag_keys": rest[-1]}
        self.told = []

    def inc(self, num, tags):
        self.told.append((num, tags))

    set = observe = inc


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(meters, kind, Recorder)
    monkeypatch.setattr(meters, "HAND_OVER_S", 0.05)


def parts(label, rejected=False):
    return {
        "views": [{}],
        "model": {"alias": "champion"},
        "answer": {"label": label, "rejected": rejected},
    }


def test_sums_and_last_levels_are_told_once_in_a_while():
    async def serve():
        told = Meters()
        for num in (1, 2, 1, 0):
            told.set_waiting("parts", num)
        for status in (200, 200, 429):
            told.count("parts", status, 0.01)
        told.count_answer("parts", parts("a"), None)
        told.count_answer("parts", parts("a", rejected=True), None)
        told.count_answer("parts", {"status": 404}, None)
        assert not told.requests.told
        await asyncio.sleep(0.2)
        return told

    told = asyncio.run(serve())
    assert told.waiting.told == [(0, {"task": "parts"})]
    assert told.requests.told == [
        (2, {"task": "parts", "status": "200"}),
        (1, {"task": "parts", "status": "429"}),
    ]
    assert told.answers.told == [(2, {"task": "parts", "alias": "champion", "label": "a"})]
    assert told.rejected.told == [(1, {"task": "parts", "alias": "champion"})]
    assert [seconds for seconds, _ in told.seconds.told] == [0.01] * 3


def test_what_comes_after_is_told_too_and_nothing_twice():
    async def serve():
        told = Meters()
        told.count("parts", 200, 0.01)
        await asyncio.sleep(0.2)
        told.count("parts", 200, 0.01)
        await asyncio.sleep(0.2)
        return told

    assert asyncio.run(serve()).requests.told == [(1, {"task": "parts", "status": "200"})] * 2
