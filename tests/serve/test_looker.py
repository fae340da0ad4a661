"""What comes while others run is run together next, once each, whoever brings it."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from random import Random
from time import sleep

import pytest

from assay.errors import ImageError
from assay.serve.decode_process import DecodeLimits
from assay.serve.decoders import Decoders
from assay.serve.looker import Batcher, Looker


class Squares:
    """Squares numbers and keeps what was asked together; one call at a time."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.inside = threading.Lock()

    def __call__(self, items: Sequence[int]) -> list[int]:
        assert self.inside.acquire(blocking=False)
        self.batches.append(list(items))
        sleep(0.0005)
        self.inside.release()
        return [item**2 for item in items]


@pytest.mark.parametrize("most", [1, 4, 100])
def test_each_item_runs_once_and_no_two_batches_at_a_time(most):
    squares, items = Squares(), list(range(400))
    batcher: Batcher[int, int] = Batcher(squares, most)
    futures = {item: Future() for item in items}
    shuffled = Random(most).sample(items, len(items))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: batcher.put(item, futures[item]), shuffled))
    assert {item: future.result(5) for item, future in futures.items()} == {
        item: item**2 for item in items
    }
    assert sorted(chain.from_iterable(squares.batches)) == items
    assert max(map(len, squares.batches)) <= most
    assert (max(map(len, squares.batches)) > 1) == (most > 1)


def test_what_comes_meanwhile_is_taken_along_but_for_who_went_away():
    entered, leave, batches = threading.Event(), threading.Event(), []

    def run(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        entered.set()
        assert leave.wait(5)
        return list(items)

    batcher: Batcher[str, str] = Batcher(run, 3)
    futures = {name: Future() for name in "abcdef"}
    first = threading.Thread(target=batcher.put, args=("a", futures["a"]))
    first.start()
    assert entered.wait(5)
    for name in "bcdef":  # none of these waits
        batcher.put(name, futures[name])
    assert futures["c"].cancel()
    assert not futures["a"].cancel()  # under way
    leave.set()
    first.join(5)
    assert batches == [["a"], ["b", "d", "e"], ["f"]]
    assert all(futures[name].result(0) == name for name in "abdef")


def test_what_breaks_is_told_to_each_and_the_next_is_run():
    def run(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    batcher: Batcher[int, float] = Batcher(run, 2)
    broken, whole = Future(), Future()
    batcher.put(0, broken)
    batcher.put(2, whole)
    assert isinstance(broken.exception(0), ZeroDivisionError)
    assert whole.result(0) == 0.5


def test_an_image_goes_from_bytes_to_what_is_said_of_it_and_a_bad_one_to_why(here, pictures):
    opened = here.inspectors["parts"].opened["champion"]
    content = pictures[0].read_bytes()
    seen = []

    def inspect(items):
        seen.append(threading.current_thread().name)
        return [entry.size for _, entry in items]

    decoders = Decoders(2, DecodeLimits(120e6, 20.0))
    looker = Looker(decoders, inspect, 2)

    async def ask() -> list[object]:
        asked = [looker.look(opened, each) for each in (content, content[:60], content)]
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        first, bad, last = asyncio.run(ask())
    finally:
        decoders.close()
    assert first == last == (60, 80)
    assert isinstance(bad, ImageError)
    assert all(name.startswith("decode") for name in seen)


def test_what_a_sender_that_went_away_had_asked_is_left_out(here, pictures):
    opened = here.inspectors["parts"].opened["champion"]
    content = pictures[0].read_bytes()
    entered, leave, numbers = threading.Event(), threading.Event(), []

    def inspect(items):
        numbers.append(len(items))
        entered.set()
        assert leave.wait(5)
        return [None] * len(items)

    decoders = Decoders(2, DecodeLimits(120e6, 20.0))
    looker = Looker(decoders, inspect, 4)

    async def ask() -> None:
        first = asyncio.create_task(looker.look(opened, content))
        assert await asyncio.to_thread(entered.wait, 5)
        gone = asyncio.create_task(looker.look(opened, content))
        while not looker.batcher.waiting:
            await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        leave.set()
        assert await first is None

    try:
        asyncio.run(ask())
    finally:
        leave.set()
        decoders.close()
    assert numbers == [1]
