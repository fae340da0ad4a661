"""Do 95 % intervals hold the truth in 95 of 100 cases? Simulated, beside the percentile bootstrap.

    python tests/benchmarks/coverage.py          # writes coverage.md beside this file

Hits in groups of 1 to 5 rows, alike within a group by the stated correlation (beta-binomial);
differences of two classifiers on the same rows; ratios of sums with unequal weights.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

from assay.metrics import estimate
from assay.metrics.estimate import interval

HERE = Path(__file__).parent
NUM_GROUPS = (20, 60, 200)
NUM_RESAMPLES = 400
Sample = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def shares(rng: np.random.Generator, num_groups: int, share: float, alike: float) -> Sample:
    """Hits, groups, weights and the true share."""
    group = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    if alike in (0.0, 1.0):
        chance = np.full(num_groups, share) if alike == 0 else rng.random(num_groups) < share
    else:
        size = (1 - alike) / alike
        chance = rng.beta(share * size, (1 - share) * size, num_groups)
    hits = (rng.random(len(group)) < chance[group]).astype(float)
    return hits, group, np.ones(len(group)), share


def differences(rng: np.random.Generator, num_groups: int) -> Sample:
    """One classifier's hits less another's on rows that are hard or easy by group."""
    group = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    ease = rng.normal(size=num_groups)[group]
    first, second = (ease + rng.normal(size=len(group)) < level for level in (0.8, 0.3))
    truth = float(norm.cdf(0.8 / 2**0.5) - norm.cdf(0.3 / 2**0.5))
    return first.astype(float) - second, group, np.ones(len(group)), truth


def ratios(rng: np.random.Generator, num_groups: int) -> Sample:
    """Overlaps of masks of unequal size: hits / union weighted by union."""
    group = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    union = rng.lognormal(4, 0.7, len(group))
    quality = rng.beta(7, 3, num_groups)[group]
    return quality, group, union, 0.7


def percentile(
    values: np.ndarray, group: np.ndarray, weights: np.ndarray, seed: int
) -> tuple[float, float]:
    """The plain percentile bootstrap over groups."""
    sums = np.stack(
        [np.bincount(group, weights=values * weights), np.bincount(group, weights=weights)], 1
    )
    num = len(sums)
    drawn = (
        np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES)
        @ sums
    )
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def coverage(
    kind: str, num_groups: int, repeats: int, *settings: float
) -> tuple[float, float, float]:
    """Share of intervals that hold the truth: ours and the percentile bootstrap's; ours by width."""
    rng = np.random.default_rng(num_groups)
    draw = {"share": shares, "difference": differences, "ratio": ratios}[kind]
    ours = plain = width = 0.0
    for repeat in range(repeats):
        values, group, weights, truth = draw(rng, num_groups, *settings)
        lowest = -1.0 if kind == "difference" else 0.0
        made = interval(values, group, weights=weights, lowest=lowest, seed=repeat)
        low, high = percentile(values, group, weights, repeat)
        ours += made.low <= truth <= made.high
        plain += low <= truth <= high
        width += made.high - made.low
    return ours / repeats, plain / repeats, width / repeats


def main() -> None:
    """Simulate all cells and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    estimate._NUM_RESAMPLES = NUM_RESAMPLES  # for speed; both methods draw as many
    cells = [("share", p, alike) for p in (0.5, 0.7, 0.9, 0.95) for alike in (0.0, 0.3, 1.0)]
    began, rows = time.time(), []
    for kind, *settings in [*cells, ("difference",), ("ratio",)]:
        name = f"share {settings[0]}, correlation {settings[1]}" if settings else kind
        found = [coverage(kind, num, repeats, *settings) for num in NUM_GROUPS]
        rows.append(
            f"| {name} | " + " | ".join(f"{o:.3f} ({p:.3f}) | {w:.2f}" for o, p, w in found) + " |"
        )
    head = " | ".join(f"{num} groups | width" for num in NUM_GROUPS)
    machine = f"{os.cpu_count()} cores ({platform.machine()})"
    lines = [
        f"Share of 95 % intervals that hold the truth (in brackets: the percentile bootstrap over groups), {repeats}",
        f"simulations a cell (standard error {(0.05 * 0.95 / repeats) ** 0.5:.3f}), {NUM_RESAMPLES} resamples for both.",
        "",
        f"| what | {head} |",
        "|---" * (1 + 2 * len(NUM_GROUPS)) + "|",
        *rows,
        "",
        f"{time.strftime('%Y-%m-%d')}, {machine}; `python tests/benchmarks/coverage.py`; {time.time() - began:.0f} s.",
    ]
    (HERE / "coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
