"""Schedules against torch's and closed forms; groups and rates; LAMB against its equations."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from assay.errors import ConfigError
from assay.nn.optim import Multiplier, OptimConfig, build_optimizer, lr_factor, set_rates


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.trunk2 = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 2)


def members(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(p)] for name, p in net.named_parameters() if id(p) in groups}


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_onecycle_is_the_reference_recipe(warmup):
    """OneCycle(cos, div 25, final_div 1000) of torch, which places its T steps on [0, 1]."""
    total = 100
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    schedule = OneCycleLR(
        reference,
        max_lr=1.0,
        total_steps=total,
        pct_start=warmup,
        div_factor=25,
        final_div_factor=1000,
        anneal_strategy="cos",
        cycle_momentum=False,
    )
    peak = warmup * total - 1
    for step in range(total):
        if step <= peak:
            progress = warmup * step / peak
        else:
            progress = warmup + (1 - warmup) * (step - peak) / (total - 1 - peak)
        factor = lr_factor(OptimConfig(warmup=warmup), progress)
        assert factor == pytest.approx(reference.param_groups[0]["lr"], rel=1e-6, abs=1e-9), step
        reference.step()
        if step < total - 1:
            schedule.step()


def test_cosine_and_constant_have_their_closed_forms():
    cosine = OptimConfig(schedule="cosine", warmup=0.2, start_factor=0.1, final_factor=0.01)
    assert lr_factor(cosine, 0.0) == pytest.approx(0.1)
    assert lr_factor(cosine, 0.1) == pytest.approx(0.55)
    assert lr_factor(cosine, 0.2) == pytest.approx(1.0)
    assert lr_factor(cosine, 0.6) == pytest.approx(0.505)
    assert lr_factor(cosine, 1.0) == pytest.approx(0.01)
    for progress in (0.3, 0.5, 0.77):
        turn = math.pi * (progress - 0.2) / 0.8
        expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(turn))
        assert lr_factor(cosine, progress) == pytest.approx(expected)
    constant = OptimConfig(schedule="constant")
    assert {lr_factor(constant, p / 10) for p in range(11)} == {1.0}


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_without_warmup_the_first_rate_is_the_highest(schedule):
    assert lr_factor(OptimConfig(schedule=schedule, warmup=0.0), 0.0) == pytest.approx(1.0)


def test_vectors_do_not_decay_and_the_longest_prefix_wins():
    net = Net()
    prefixes = {"trunk": Multiplier(lr=0.1), "trunk.0.": Multiplier(lr=0.5, weight_decay=2.0)}
    config = OptimConfig(lr=1.0, weight_decay=0.03, schedule="constant")
    optimizer = build_optimizer(net, config, prefixes)
    assert set_rates(optimizer, config, prefixes, 0.5) == 1.0
    rates = {
        name: (group["lr"], pytest.approx(group["weight_decay"]))
        for name, group in members(net, optimizer).items()
    }
    assert rates == {
        "trunk.0.weight": (0.5, 0.06),
        "trunk.0.bias": (0.5, 0.0),
        "trunk.1.weight": (0.1, 0.0),
        "trunk.1.bias": (0.1, 0.0),
        "trunk2.weight": (0.1, 0.03),
        "head.weight": (1.0, 0.03),
        "head.bias": (1.0, 0.0),
    }


@pytest.mark.parametrize("optimizer_name", ["adamw", "lamb"])
def test_rates_follow_the_schedule_and_a_multiplier_of_zero_freezes(optimizer_name):
    net = Net()
    config = OptimConfig(optimizer=optimizer_name, lr=0.01)
    prefixes = {"head.": Multiplier(lr=0.0)}
    optimizer = build_optimizer(net, config, prefixes)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    rates = []
    for step in range(10):
        rates.append(set_rates(optimizer, config, prefixes, step / 10))
        net.zero_grad()
        net.head(net.trunk2(net.trunk(torch.ones(1, 3)))).square().sum().backward()
        assert members(net, optimizer)["trunk.0.weight"]["lr"] == rates[-1]
        optimizer.step()
    assert rates == [config.lr * lr_factor(config, step / 10) for step in range(10)]
    assert len(set(rates)) == 10
    moved = {name: not torch.equal(p, before[name]) for name, p in net.named_parameters()}
    assert not moved["head.weight"]
    assert not moved["head.bias"]
    assert moved["trunk.0.weight"]
    assert moved["trunk2.weight"]


def test_frozen_parameters_are_left_out_and_an_empty_rest_is_refused():
    net = Net()
    net.trunk.requires_grad_(False)
    trained = members(net, build_optimizer(net, OptimConfig(), {}))
    assert set(trained) == {"trunk2.weight", "head.weight", "head.bias"}
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="left to train"):
        build_optimizer(net, OptimConfig(), {})


def test_lamb_updates_are_the_papers():
    """You et al. 2020, algorithm 2: r + decay * x, scaled to the norm of x; the loop alone clips."""
    net = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    net.weight.data.copy_(x)
    config = OptimConfig(optimizer="lamb", lr=0.1, weight_decay=0.01, schedule="constant")
    optimizer = build_optimizer(net, config, {})
    first, second = torch.zeros(2, 2), torch.zeros(2, 2)
    for step, scale in enumerate((0.3, 50.0, 1.0), start=1):
        set_rates(optimizer, config, {}, step / 4)
        gradient = scale * torch.tensor([[1.0, -1.0], [0.5, 2.0]])
        net.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        ratio = (first / (1 - 0.9**step)) / (second / (1 - 0.999**step)).sqrt()
        update = ratio + 0.01 * x
        x = x - 0.1 * x.norm() / update.norm() * update
        assert torch.allclose(net.weight, x, atol=1e-4), step


def test_adamw_is_torchs():
    optimizer = build_optimizer(Net(), OptimConfig(), {})
    assert type(optimizer) is torch.optim.AdamW


def test_adams_decay_is_part_of_the_gradient():
    """Kingma and Ba 2015, algorithm 1, on the gradient of the loss plus decay * x^2 / 2."""
    net = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    net.weight.data.copy_(x)
    config = OptimConfig(optimizer="adam", lr=0.1, weight_decay=0.5, schedule="constant")
    optimizer = build_optimizer(net, config, {})
    first, second = torch.zeros(2, 2), torch.zeros(2, 2)
    for step in range(1, 4):
        set_rates(optimizer, config, {}, step / 4)
        net.weight.grad = step * torch.tensor([[1.0, -1.0], [0.5, 2.0]])
        gradient = net.weight.grad + 0.5 * x
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        x = x - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(net.weight, x, atol=1e-5), step


def test_nothing_falls_to_zero_by_equal_shares():
    with pytest.raises(ConfigError, match=r"exponential and optim\.final-factor 0"):
        OptimConfig(schedule="exponential", final_factor=0.0)


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"lr": -1.0}, {"warmup": 1.0}, {"warmup": -0.1}])
def test_values_outside_their_range_are_refused(fields):
    with pytest.raises(ConfigError, match=r"optim\.(lr|warmup) is .*; it must be"):
        OptimConfig(**fields)
