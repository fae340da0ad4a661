"""Memory that ends is one sentence, which names what helps."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.errors import ResourceError
from assay.train.memory import memory_faults
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("batch", "accumulate", "recomputes", "named", "unnamed"),
    [
        (6, 1, False, ["at 3 images", "--accumulate 2", "--recompute"], []),
        (6, 2, True, ["at 2 images", "--accumulate 4", "--strategy fsdp"], ["--recompute"]),
        (2, 1, False, ["at 1 image at", "--recompute"], ["--accumulate"]),
    ],
)
def test_the_sentence_names_what_helps(batch, accumulate, recomputes, named, unnamed):
    with pytest.raises(ResourceError) as raised:  # noqa: SIM117
        with memory_faults(CPU, batch, 2, accumulate, recomputes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    text = str(raised.value)
    assert all(part in text for part in named)
    assert not any(part in text for part in unnamed)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):  # noqa: SIM117
        with memory_faults(CPU, 1, 1, 1, False):
            raise RuntimeError("shapes differ")


def test_a_run_that_has_no_memory_left_ends_in_a_sentence(tmp_path, monkeypatch):
    job = replace(toy.make_job(tmp_path, toy.make_config()), accumulate=2)

    def allocate(*arguments):
        torch.empty(1 << 60)  # more than any machine has

    monkeypatch.setattr("assay.train.loop.Loop._update", allocate)
    with pytest.raises(ResourceError, match="--accumulate 4"):
        work(job, job.stream())
