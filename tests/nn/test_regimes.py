"""Regimes against the papers' words, on a network whose blocks share a module and have statistics."""

from itertools import pairwise
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.errors import ConfigError
from assay.nn.optim import OptimConfig, build_optimizer, set_rates
from assay.nn.regimes import RegimeConfig, find_parts, freeze, multipliers, rest

REGIMES = get_args(get_type_hints(RegimeConfig)["regime"])


class Net(nn.Module):
    """A stem with a parameter of its own beside modules, and stages as most networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(4))
        self.stem = nn.Linear(3, 4)
        self.stages = nn.ModuleList(stage() for _ in range(3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = self.stem(vectors) + self.token
        for each in self.stages:
            vectors = each(vectors)
        return self.norm(vectors)

    def blocks(self) -> list[list[str]]:
        names = [name for name, _ in self.named_parameters()]
        stages = [[n for n in names if n.startswith(f"stages.{i}.")] for i in range(3)]
        stages[-1] += ["norm.weight", "norm.bias"]
        return [["token", "stem.weight", "stem.bias"], *stages]


def stage() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3))


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.head = Net(), nn.Linear(4, 2)


def test_parts_are_the_largest_modules_of_one_block() -> None:
    net = Net()
    parts = find_parts(net, net.blocks())
    assert parts == [["token", "stem."], ["stages.0."], ["stages.1."], ["stages.2.", "norm."]]
    for part, names in zip(parts, net.blocks(), strict=True):
        meant = {n for n, _ in net.named_parameters() if n.startswith(tuple(part))}
        assert meant == set(names)
    whole = [name for name, _ in net.named_parameters()]
    assert find_parts(net, [whole]) == [[""]]


def moving(regime: RegimeConfig, updates: int, num: int) -> tuple[Task, set[str]]:
    """Train a task for the first `num` of `updates`, as the loop does; say which tensors moved."""
    torch.manual_seed(0)
    task = Task()
    freeze(regime, task.network, task.network.blocks())
    parts = find_parts(task.network, task.network.blocks())
    optim = OptimConfig(lr=0.01, schedule="constant", weight_decay=0.1, decays="all")
    groups = multipliers(parts, regime.rates(4, 0.0))
    optimizer = build_optimizer(task, optim, groups)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    for step in range(num):
        rates = regime.rates(4, step / updates)
        groups = multipliers(parts, rates)
        set_rates(optimizer, optim, groups, step / updates)
        task.train()
        rest(task.network, parts, rates, regime.keeps_statistics)
        optimizer.zero_grad()
        task.head(task.network(torch.randn(8, 3))).square().sum().backward()
        for group in optimizer.param_groups:
            if group["prefix"] in groups and groups[group["prefix"]].lr == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        optimizer.step()
    state = task.state_dict()
    return task, {name for name, old in before.items() if not torch.equal(old, state[name])}


def of(*blocks: int) -> set[str]:
    """Names of the head's tensors and those of some blocks, statistics among them."""
    starts = [("token", "stem."), ("stages.0.",), ("stages.1.",), ("stages.2.", "norm.")]
    names = Task().state_dict()
    begins = tuple(f"network.{start}" for block in blocks for start in starts[block])
    return {n for n in names if n.startswith(("head.", *begins))}


CASES = {
    "scratch": [(10, (0, 1, 2, 3))],
    "features": [(10, ())],
    "partial": [(10, (2, 3))],
    "full": [(10, (0, 1, 2, 3))],
    "lp-ft": [(3, ()), (10, (0, 1, 2, 3))],
    "layerwise": [(10, (0, 1, 2, 3))],
    "gradual": [(2, ()), (3, (3,)), (4, (2, 3)), (5, (1, 2, 3)), (10, (0, 1, 2, 3))],
}
"""Updates done of ten, and the blocks that have moved by then."""


@pytest.mark.parametrize("statistics", ["kept", "moved"])
@pytest.mark.parametrize("name", REGIMES)
def test_what_is_said_to_be_trained_moves_and_nothing_else(name: Any, statistics: Any) -> None:
    """Weights, and the statistics of batch normalisation, which move without any gradient unless they are kept."""
    regime = RegimeConfig(regime=name, blocks=2, statistics=statistics)
    kept = ("running_mean", "running_var", "num_batches_tracked")
    for num, blocks in CASES[name]:
        task, moved = moving(regime, 10, num)
        expected = of(*blocks)
        if name != "scratch" and statistics == "kept":
            assert any(tensor.endswith(kept) for tensor in of(0, 1, 2, 3))
            expected = {tensor for tensor in expected if not tensor.endswith(kept)}
        assert moved == expected, (name, num)
    said = sum(p.numel() for p in task.parameters() if p.requires_grad)
    parameters = dict(task.named_parameters())
    assert said == sum(parameters[key].numel() for key in moved & parameters.keys())


def test_rates_fall_from_the_head_down() -> None:
    """Of three blocks: the last learns at decay times the head's rate, the one below at its square."""
    assert RegimeConfig(regime="layerwise", decay=0.5).rates(3, 0.7) == [0.125, 0.25, 0.5]
    assert RegimeConfig(regime="full", body_lr=0.2).rates(3, 0.0) == [0.2] * 3


@given(st.sampled_from(REGIMES), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_what_is_trained_stays_so_and_nothing_below_it_learns_faster(
    name: Any, num_blocks: int, blocks: int, seed: int
) -> None:
    regime = RegimeConfig(regime=name, blocks=blocks, head_share=0.3, unfrozen_by=0.6)
    rows = [regime.rates(num_blocks, (seed % 7 + step) / 20) for step in range(12)]
    assert all(len(row) == num_blocks for row in rows)
    for row in rows:
        assert all(low <= high for low, high in pairwise(row))
    for before, after in pairwise(rows):
        assert all(old <= new for old, new in zip(before, after, strict=True))
    assert regime.rates(num_blocks, regime.settled_by) == regime.rates(num_blocks, 1.0)


def test_more_blocks_than_there_are_are_refused() -> None:
    net = Net()
    freeze(RegimeConfig(regime="partial", blocks=4), net, net.blocks())
    with pytest.raises(ConfigError, match=r"blocks 5 is not possible: the network has 4 blocks"):
        freeze(RegimeConfig(regime="partial", blocks=5), net, net.blocks())


def test_settings_without_effect_are_those_that_change_no_rate() -> None:
    others = {"blocks": 2, "body_lr": 0.5, "decay": 0.3, "head_share": 0.6, "unfrozen_by": 0.9}
    for name in REGIMES:
        base = RegimeConfig(regime=name)
        for field, value in others.items():
            changed = RegimeConfig(**{"regime": name, field: value})
            progress = [i / 20 for i in range(21)]
            same = all(base.rates(5, p) == changed.rates(5, p) for p in progress)
            assert same == (field in base.idle()), (name, field)
        assert ("statistics" in base.idle()) == (name in ("scratch", "features"))
