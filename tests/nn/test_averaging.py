"""Averages of weights against closed forms; swad's valley against the paper's algorithm over all weights kept."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.nn.averaging import AverageConfig, WeightAverage


def module_of(config: AverageConfig) -> nn.Module:
    """Two weights, a norm, and the average as a part of the module itself."""
    module = nn.Module()
    module.layer = nn.Linear(2, 1, bias=False)
    module.norm = nn.BatchNorm1d(1)
    module.average = WeightAverage(config, module)
    return module


def set_weights(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        module.layer.weight.fill_(value)
        module.norm.running_mean.fill_(10 * value)


def averaged(module: nn.Module) -> tuple[float, float]:
    with module.average.in_place(module):
        return module.layer.weight[0, 0].item(), float(module.norm.running_mean)


def updated(config: AverageConfig, values: list[float]) -> nn.Module:
    module = module_of(config)
    for number, value in enumerate(values):
        set_weights(module, value)
        module.average.update(module, number / len(values))
    return module


def test_uniform_is_the_mean_from_where_it_begins():
    values = [5.0, -3.0, 1.0, 2.0, 4.0]
    module = updated(AverageConfig(weights="uniform", begins=0.4), values)
    assert averaged(module) == pytest.approx((7 / 3, 70 / 3))
    assert module.layer.weight[0, 0].item() == 4.0  # back in their place


def test_nothing_averaged_leaves_the_weights():
    module = updated(AverageConfig(weights="uniform", begins=1.0), [5.0, -3.0])
    assert averaged(module) == (-3.0, -30.0)


def test_ema_is_the_recursion_whose_decay_rises():
    values = list(np.random.default_rng(0).normal(size=300))
    module = updated(AverageConfig(weights="ema", begins=0.0, decay=0.9), values)
    mean = values[0]
    for number, value in enumerate(values[1:], start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        mean = decay * mean + (1 - decay) * value
    assert averaged(module)[0] == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_the_weights_come_back_whatever_happens():
    module = updated(AverageConfig(weights="uniform", begins=0.0), [1.0, 3.0])

    def judge() -> None:
        with module.average.in_place(module):
            assert module.layer.weight[0, 0].item() == 2.0
            raise KeyError

    with pytest.raises(KeyError):
        judge()
    assert module.layer.weight[0, 0].item() == 3.0


def test_the_average_stands_in_the_state_and_goes_on():
    config = AverageConfig(weights="uniform", begins=0.0)
    first = updated(config, [1.0, 3.0])
    second = module_of(config)
    second.load_state_dict(first.state_dict())
    set_weights(second, 8.0)
    second.average.update(second, 0.9)
    assert averaged(second)[0] == pytest.approx(4.0)


def valley(losses: list[float], converged: int, overfit: int, tolerance: float):
    """First and last look of Cha et al.'s valley, from all losses at once; None where none began.

    Looks at the end that are above the tolerance, and too few to end the valley, stay out.
    """
    starts = [
        i for i in range(len(losses) - converged + 1) if losses[i] == min(losses[i : i + converged])
    ]
    if not starts:
        return None
    after = starts[0] + converged
    threshold = np.mean(losses[starts[0] : after]) * (1 + tolerance)
    above = [loss > threshold for loss in losses]
    ends = [
        i for i in range(after, len(losses)) if all((above + [False] * overfit)[i : i + overfit])
    ]
    last = min(ends, default=len(losses))
    return starts[0], max((i for i in range(after, last) if not above[i]), default=after - 1)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3]),
)
def test_swads_valley_is_the_papers(losses, converged, overfit, tolerance):
    """Two updates between looks; all weights from the look at its start to the look at its end."""
    settings: dict[str, Any] = {"converged_looks": converged, "overfit_looks": overfit}
    config = AverageConfig(weights="swad", begins=0.0, tolerance=tolerance, **settings)
    module, weights = module_of(config), np.random.default_rng(0).normal(size=2 * len(losses))
    for number, weight in enumerate(weights):
        set_weights(module, weight)
        module.average.update(module, number / len(weights))
        if number % 2:
            module.average.look(module, float(losses[number // 2]))
    bounds = valley(losses, converged, overfit, tolerance)
    if bounds is None:
        assert math.isinf(module.average.threshold)
        return
    start, end = bounds
    expected = weights[2 * start + 1 : 2 * end + 2]
    assert int(module.average.num) == len(expected)
    assert averaged(module)[0] == pytest.approx(expected.mean(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("weights", ["last", "uniform", "ema", "swad"])
def test_settings_without_effect_are_named(weights):
    idle = AverageConfig(weights=weights).idle()
    assert ("decay" in idle) == (weights != "ema")
    assert ("tolerance" in idle) == (weights != "swad")
    assert ("begins" in idle) == (weights == "last")
