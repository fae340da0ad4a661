"""Parts of a step do not overlap and add up to it."""

from contextlib import suppress

from assay.train import stopwatch as module
from assay.train.stopwatch import Stopwatch


def test_what_is_timed_within_a_part_is_taken_out_of_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    with watch.part("forward"):
        now[0] += 1
        with watch.part("cut"):
            now[0] += 4
            with watch.part("wait"):
                now[0] += 16
        now[0] += 2
    with suppress(KeyError), watch.part("cut"):  # also where it fails
        now[0] += 8
        raise KeyError
    assert watch.lap() == {"forward": 3.0, "cut": 12.0, "wait": 16.0}
    assert watch.lap() == {}
