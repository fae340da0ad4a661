"""A batch in parts: which rows, and the same update."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assay.train.accumulate import parts_of
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]


@pytest.mark.parametrize(("size", "num"), [(8, 1), (8, 2), (7, 3), (1, 3)])
def test_every_row_is_in_one_part(size, num):
    batch = {"row": np.arange(size), "x": np.arange(2 * size).reshape(size, 2)}
    parts = parts_of(batch, num)
    assert len(parts) == num
    assert sum(part.share for part in parts) == pytest.approx(1)
    rows = np.concatenate([part.batch["row"] for part in parts if part.share])
    np.testing.assert_array_equal(rows, batch["row"])
    for part in parts:  # of none stands the first
        np.testing.assert_array_equal(part.batch["x"][:, 0], 2 * part.batch["row"])
        assert part.share == pytest.approx(len(part.batch["row"]) / size if part.share else 0)


def trained(folder, accumulate):
    job = replace(toy.make_job(folder, toy.make_config()), accumulate=accumulate)
    work(job, job.stream())
    return load_file(folder / "best" / "weights.safetensors")


def test_a_run_in_parts_learns_what_a_whole_one_does(tmp_path):
    whole = trained(tmp_path / "whole", 1)
    for num in (2, 7):  # batches have 5 rows, the last 1
        parts = trained(tmp_path / str(num), num)
        for name, tensor in whole.items():
            assert torch.allclose(parts[name], tensor, atol=1e-5), name
