"""Memory that ends is one sentence, which names what helps there."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.errors import ResourceError
from assay.train.memory import judging, learning, memory_faults
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
        with memory_faults(CPU, *learning(batch, 2, accumulate, recomputes)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    text = str(raised.value)
    assert all(part in text for part in named)
    assert not any(part in text for part in unnamed)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):  # noqa: SIM117
        with memory_faults(CPU, *judging(1)):
            raise RuntimeError("shapes differ")


def test_one_image_is_judged_no_fewer_at_a_time():
    assert "--train.eval-batch-size 1," in judging(3)[1]
    assert "--train.eval-batch-size" not in judging(1)[1]


def allocate(*arguments, **names):
    torch.empty(1 << 60)  # more than any machine has


class Unbuilt:
    """A task that is not built."""

    Config, __init__ = TASK.Config, allocate


@pytest.mark.parametrize(
    ("place", "tier", "words"),
    [
        ("assay.train.loop.Loop._update", "disk", "in an update, at 3 images .* --accumulate 4"),
        ("assay.train.predict.Predictor.predict", "disk", "in judging, at 3 .*-batch-size 1, "),
        ("assay.train.predict.Predictor.probe", "disk", "in judging"),
        ("assay.train.worker.Predictor", "disk", "in judging, at 3 images"),
        ("assay.train.task.Task.hold", "device", "--tier disk"),
        ("assay.train.worker.load_task", "disk", "smaller network"),
    ],
)
def test_a_run_that_has_no_memory_left_ends_in_a_sentence(
    tmp_path, monkeypatch, place, tier, words
):
    job = replace(toy.make_job(tmp_path, toy.make_config()), accumulate=2, tier=tier)
    stream = job.stream()
    is_built = place.endswith("load_task")
    monkeypatch.setattr(place, (lambda source: Unbuilt) if is_built else allocate)
    with pytest.raises(ResourceError, match=words):
        work(job, stream)


def test_a_run_goes_on_with_fewer_images_judged_at_a_time(tmp_path, monkeypatch):
    job = toy.make_job(tmp_path, toy.make_config())
    with monkeypatch.context() as patch:
        patch.setattr("assay.train.worker.Predictor", allocate)
        with pytest.raises(ResourceError):
            work(job, job.stream())
    train = job.config["train"] | {"eval_batch_size": 1}
    again = replace(job, config=job.config | {"train": train})
    monkeypatch.setattr("assay.train.loop.Loop._update", allocate)  # all is learnt already
    work(again, again.stream())
    assert (job.folder / "predictions.parquet").exists()
