"""Many pieces of one work on all CPUs that Ray has."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import ray

from assay.cluster.nodes import up
from assay.data.spread import one_by_one
from assay.errors import AssayError
from assay.progress import progress_bar

AHEAD = 2
"""Pieces per CPU that are handed over at a time, so that no process waits for its next."""


def over_cluster(
    work: Callable[[Any, Any], Any], shared: Any, pieces: Sequence[Any], label: str
) -> Iterator[Any]:
    """Do the pieces in Ray's tasks, where a Ray is; see `data.spread.Spread`."""
    if not ray.is_initialized():
        yield from one_by_one(work, shared, pieces, label)
        return
    task: Any = ray.remote(num_cpus=1)(_do)
    held, running, bar = [ray.put(shared)], deque[Any](), progress_bar(len(pieces), label)
    for piece in pieces:
        running.append(task.remote(work, held, piece))
        # asked anew each time, since a cluster may grow by what waits
        if len(running) >= AHEAD * max(up()["CPU"], 1):
            yield _finish(running.popleft(), bar)
    while running:
        yield _finish(running.popleft(), bar)
    bar.close()


def _do(work: Callable[[Any, Any], Any], held: list[Any], piece: Any) -> Any:
    try:
        return work(_recall(held[0]), piece), None
    except AssayError as error:  # Ray would wrap it
        return None, error


@lru_cache(maxsize=2)
def _recall(held: Any) -> Any:
    """Return what every piece needs; a process reads it once."""
    return ray.get(held)


def _finish(running: Any, bar: Any) -> Any:
    answer, error = ray.get(running)
    bar.update()
    if error is not None:
        raise error
    return answer
