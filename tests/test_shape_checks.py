"""What checks arrays while tests run finds what is wrong: in functions, in methods, in fields."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from assay.metrics.scores.classes import row_nll, softmax
from assay.nn.domains.base import TrainBatch
from assay.nn.texture import TextureNet


def test_a_function_is_given_what_it_names() -> None:
    with pytest.raises(TypeCheckError, match="logits"):
        softmax(np.zeros(3))
    # each is as it should be, together they are not
    with pytest.raises(TypeCheckError, match="truth"):
        row_nll(np.zeros((3, 2)), np.zeros(4, int))


def test_a_method_is_given_what_it_names() -> None:
    net = TextureNet()
    assert net(torch.zeros(1, 3, 32, 32)).shape[0] == 1
    with pytest.raises(TypeCheckError, match="patches"):
        net.forward(torch.zeros(1, 3, 32, 33))


def test_fields_are_held_to_what_they_name() -> None:
    rows, column = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    fields = (torch.zeros(2), column, column, column, 0.0, "main")
    TrainBatch(rows, rows, rows, *fields)
    with pytest.raises(TypeCheckError):
        TrainBatch(rows, rows, torch.zeros(3, 3), *fields)


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_begins_anew_and_checks_the_first_calls(turn: str) -> None:
    with pytest.raises(TypeCheckError):
        softmax(np.zeros((1, 2, 3)))
    for _ in range(19):
        softmax(np.zeros((1, 2)))
    assert softmax(np.zeros((1, 2, 3))).shape == (1, 2, 3)
