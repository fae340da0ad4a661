"""Prediction in fixed batches; with several workers see test_distributed.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.train.predict import Predictor
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]


@pytest.mark.parametrize(("limit", "looks_served"), [(1 << 29, 1), (0, 4), (200, 4)])
def test_a_set_is_prepared_once_where_it_fits(tmp_path, limit, looks_served):
    config = toy.ToyConfig()
    job = toy.make_job(tmp_path, config)
    rows, inner, looks = job.split.rows("val"), job.stream(), []

    def counted(steps, train):
        assert not train
        looks.append([len(step.rows) for step in steps])
        return inner(steps, train)

    task = TASK(config, job.dataset)
    predictor = Predictor(task, counted, rows, limit)
    first, *others = [predictor.predict() for _ in range(4)]
    assert looks == [[3, 3, 1]] * looks_served
    assert np.array_equal(first["row"], rows)
    for other in others:
        assert np.array_equal(other["logits"], first["logits"])
    with torch.no_grad():
        for _ in range(2):  # weights of now, whatever is kept
            task.head.bias += 1
            moved = predictor.predict()["logits"]
    np.testing.assert_allclose(moved, first["logits"] + 2, rtol=1e-5)
