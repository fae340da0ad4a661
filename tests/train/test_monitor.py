"""The monitors' thresholds, what they let pass, and that stopping and resuming changes nothing.

What they find in looks at val stands in test_monitor_looks.py, what each bug meets in a whole loop in test_planted.py
and test_planted_stops.py, two workers in test_distributed.py.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.errors import ConfigError, RunError
from assay.nn.optim import Multiplier, OptimConfig, build_optimizer, set_rates
from assay.runs import telemetry
from assay.runs.telemetry import Telemetry
from assay.runs.watch import watch
from assay.train.monitor import (
    EXPLODED_FACTOR,
    EXPLODED_UPDATES,
    LEVEL_UPDATES,
    MAX_NONFINITE,
    MAX_WITHOUT_GRADIENT,
    Limit,
    Monitor,
)
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
NAN, INF = math.nan, math.inf


def monitor_of(*limits: Limit, optim: OptimConfig | None = None, total: int = 10**6):
    """Make a monitor, and the list of its warnings."""
    warnings: list[str] = []
    return Monitor(optim or OptimConfig(), limits, total, "abc", warnings.append), warnings


def updates_until_stop(
    monitor: Monitor, losses=(), norms=(), values=(), scaled: bool = False
) -> int:
    """Count the updates before the monitor stopped; -1: it did not."""
    length = max(len(losses), len(norms), len(values))
    losses, norms = losses or [1.0] * length, norms or [1.0] * length
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        limited = {"x": float(values[number])} if values and values[number] is not None else {}
        try:
            monitor.check_update(number + 1, float(loss), float(norm), scaled, limited)
        except RunError:
            return number
    return -1


@pytest.mark.parametrize(
    ("losses", "norms", "scaled", "stop"),
    [
        ([1, NAN, NAN, 1, NAN, INF, -INF, 1], [], False, 6),
        ([], [1, NAN, INF, NAN], False, MAX_NONFINITE),
        ([NAN, 1, 1, 1], [1, NAN, NAN, 1], False, 2),
        ([], [INF] * 9, True, -1),
        ([NAN] * 9, [], True, MAX_NONFINITE - 1),
    ],
)
def test_what_is_not_finite_is_counted_in_a_row(losses, norms, scaled, stop):
    """A scaled loss may overflow in its gradient, not in itself."""
    assert updates_until_stop(monitor_of()[0], losses, norms, scaled=scaled) == stop


def test_a_run_of_few_updates_stops_where_none_of_them_was_finite():
    assert updates_until_stop(monitor_of(total=2)[0], [NAN, NAN]) == 1
    assert updates_until_stop(monitor_of(total=2)[0], [NAN, 1]) == -1


def test_gradients_of_zero_are_counted_in_a_row():
    one_less = [0.0] * (MAX_WITHOUT_GRADIENT - 1)
    assert updates_until_stop(monitor_of()[0], [], [*one_less, 1e-30, *one_less]) == -1
    assert updates_until_stop(monitor_of()[0], [], [1.0, *one_less, 0.0]) == MAX_WITHOUT_GRADIENT


@pytest.mark.parametrize(
    ("level", "bound"),
    [(3.0, 3 + 3 * EXPLODED_FACTOR), (0.01, 0.01 + EXPLODED_FACTOR), (-5.0, 45.0)],
)
def test_a_loss_explodes_a_factor_above_where_it_began(level, bound):
    """The level is a mean, at least 1 in size, that no loss which is not finite enters."""
    first = [NAN, *[level - 1, level + 1] * (LEVEL_UPDATES // 2)]
    above, at = [bound * 1.001] * EXPLODED_UPDATES, [bound * 0.999] * 300
    stop = len(first) + EXPLODED_UPDATES - 1
    assert updates_until_stop(monitor_of()[0], first + above) == stop
    assert updates_until_stop(monitor_of()[0], first + at) == -1
    assert updates_until_stop(monitor_of()[0], first + above[1:]) == -1


def test_a_penalty_that_sets_in_late_is_no_explosion():
    """The level is measured once the loss has its last form, and an explosion after it is one."""
    plain, late = [1.0] * 300, [150.0] * 300
    assert updates_until_stop(monitor_of(total=600)[0], plain + late) == 300 + EXPLODED_UPDATES - 1
    settling = Monitor(OptimConfig(), (), 600, "abc", pytest.fail, 0.5)
    assert updates_until_stop(settling, plain + late) == -1
    settling = Monitor(OptimConfig(), (), 600, "abc", pytest.fail, 0.5)
    exploding = plain + late[:100] + [150.0 * (1 + EXPLODED_FACTOR) + 1] * 100
    assert updates_until_stop(settling, exploding) == 400 + EXPLODED_UPDATES - 1


def test_an_explosion_may_come_and_go_and_outliers_may_not_add_up():
    first = [1.0] * LEVEL_UPDATES
    mostly = [100.0, 100.0, 1.0] * EXPLODED_UPDATES
    assert updates_until_stop(monitor_of()[0], first + mostly) == LEVEL_UPDATES + 3 * 48 + 1
    assert updates_until_stop(monitor_of()[0], first + [1e9, 1.0, 1.0] * 500) == -1


@given(
    schedule=st.sampled_from(["onecycle", "cosine", "constant"]),
    warmup=st.floats(0, 0.999),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    total=st.integers(1, 300),
    lr=st.floats(1e-8, 10),
)
def test_no_true_schedule_is_stopped(schedule, warmup, start, final, total, lr):
    """Of any length and shape, with groups at their own rates and groups at rest."""
    optim = OptimConfig(
        schedule=schedule, warmup=warmup, start_factor=start, final_factor=final, lr=lr
    )
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    prefixes = {"0.": Multiplier(lr=0.3), "1.": Multiplier(lr=0.0)}
    optimizer = build_optimizer(module, optim, prefixes)
    monitor, _ = monitor_of(optim=optim, total=total)
    for step in range(total):
        set_rates(optimizer, optim, prefixes, step / total)
        monitor.check_rates(step, optimizer, prefixes)


@pytest.mark.parametrize(
    ("warmup", "total", "checked"), [(0.3, 7, False), (0.3, 8, True), (0.0, 5, True)]
)
def test_a_schedule_is_checked_where_it_is_long_enough(warmup, total, checked):
    optim = OptimConfig(warmup=warmup, lr=1e-3)
    optimizer = build_optimizer(nn.Linear(1, 1), optim, {})
    monitor, _ = monitor_of(optim=optim, total=total)
    steps = []
    for step in range(total):
        try:
            monitor.check_rates(step, optimizer, {})
        except RunError:
            steps.append(step)
    assert steps == ([total - 1] if checked else [])


def test_one_group_left_behind_is_enough(tmp_path):
    optim = OptimConfig(warmup=0.0)
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    prefixes = {"0.": Multiplier(lr=0.1)}
    optimizer = build_optimizer(module, optim, prefixes)
    monitor, _ = monitor_of(optim=optim, total=20)
    set_rates(optimizer, optim, {}, 0.0)  # forgets the multiplier
    monitor.check_rates(0, optimizer, prefixes)
    set_rates(optimizer, optim, prefixes, 0.0)
    optimizer.param_groups[0]["lr"] *= 0.5
    with pytest.raises(RunError, match=r"0\.5 times --optim\.lr at update 1 of 20"):
        monitor.check_rates(0, optimizer, prefixes)


@pytest.mark.parametrize(
    ("bounds", "values", "stop"),
    [
        ({"high": 1.0}, [2, 2, 2], 2),
        ({"high": 1.0}, [1, 1, 1, 1], -1),
        ({"high": 1.0}, [2, 2, 0, 2, 0, 2, 0], -1),
        ({"high": 1.0}, [2, 2, 0, 2, 2], 4),
        ({"low": 0.5, "high": 1.0}, [0, 2, 0.4], 2),
        ({"low": 0.5}, [0, None, 0, None, None, 0], 5),
        ({"low": 0.5}, [NAN, NAN, NAN], 2),
        ({"low": 0.5}, [INF, INF, INF], -1),
    ],
)
def test_a_limit_counts_up_beyond_its_bounds_and_down_within(bounds, values, stop):
    monitor, _ = monitor_of(Limit("x", **bounds, for_updates=3, why="so."))
    assert updates_until_stop(monitor, values=values) == stop


def test_a_limit_says_what_where_and_why():
    limit = Limit("x", low=0.25, high=1.0, for_updates=1, why="lower --optim.lr.")
    for value, bound in ((0.125, "below 0.25"), (1.5, "above 1")):
        with pytest.raises(RunError) as stopped:
            monitor_of(limit)[0].check_update(7, 1.0, 1.0, False, {"x": value})
        expected = f"x is {value} at step 7, {bound} for 1 updates: lower --optim.lr."
        assert str(stopped.value) == expected


def test_a_limit_that_warns_does_so_once_and_others_go_on():
    warns = Limit("x", high=1.0, for_updates=2, then="warn", why="first.")
    stops = Limit("x", high=1.0, for_updates=5, why="then.")
    monitor, warnings = monitor_of(warns, stops)
    assert updates_until_stop(monitor, values=[2, 2, 0, 0, *[2] * 5]) == 8
    assert warnings == ["x is 2 at step 2, above 1 for 2 updates: first."]


@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 1.0}, {"low": NAN}, {"for_updates": 0}])
def test_a_limit_that_nothing_meets_is_refused(wrong):
    with pytest.raises(ConfigError, match="The limit on 'x' is"):
        Limit("x", why="so.", **wrong)


def test_names_are_counted_where_there_are_many():
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    optimizer = torch.optim.AdamW(module.parameters())
    monitor, warnings = monitor_of()
    monitor.check_end(module.requires_grad_(True), optimizer)
    assert warnings == [
        "10 of 10 trained parameters never had a gradient: 0.weight, 0.bias, 1.weight, 1.bias and 6 more; "
        "connect them to the loss, or say requires_grad_(False)."
    ]


class Limited(TASK):
    """Meets two limits on its way."""

    def forward(self, batch, progress, phase="main"):
        return super().forward(batch, progress, phase) | {"progress": torch.tensor(progress)}

    def limits(self):
        return (
            Limit("progress", high=0.22, for_updates=6, then="warn", why="so."),
            Limit("progress", high=0.52, for_updates=7, why="so."),
        )


def test_a_run_killed_after_every_step_is_warned_and_stopped_like_one_never_killed(tmp_path):
    messages: dict[str, list] = {"straight": [], "killed": []}
    for name, stop in (("straight", None), ("killed", 1)):
        for _ in range(20):
            config = toy.make_config(rests_until=2.0)
            loop = toy.make_loop(tmp_path / name, config, Limited)
            loop.checkpoint_steps = 1
            loop.stream = toy.stopping(loop.stream, stop) if stop else loop.stream
            loop.monitor.warn = lambda text, loop=loop, name=name: messages[name].append(
                (loop.position.step, text)
            )
            try:
                loop.fit()
            except toy.StoppedError:
                continue
            except RunError as error:
                messages[name].append((loop.position.step, str(error)))
                break
    assert messages["killed"] == messages["straight"]
    assert messages["straight"] == [
        # progress is 0.25 at the sixth update, 0.55 at the twelfth
        (10, "progress is 0.5 at step 11, above 0.22 for 6 updates: so."),
        (17, "progress is 0.85 at step 18, above 0.52 for 7 updates: so."),
    ]


def test_a_warning_is_shown_on_the_terminal_once_however_late(tmp_path, capsys):
    recorded: list[str] = []
    with watch(tmp_path, "toy"):
        writer = Telemetry(tmp_path, keep=recorded.append)
        writer.log("start", step=0, epoch=0, total=3)
        writer.warn("Something is odd.", step=2)
        writer.warn("Something is odd.", step=3)
        writer.close()
    assert capsys.readouterr().err.count("Warning: Something is odd.") == 1
    assert recorded == ["Something is odd."] * 2
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.pop("time") > 0
    assert last == {"kind": "warning", "step": 3, "text": "Something is odd."}
    assert set(last) <= set(telemetry.__doc__.replace('"', " ").split())
