from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.order import (
    balanced_order,
    entry_keys,
    fixed_order,
    group_order,
    steps_of,
    uniform_order,
)

SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, 60)
WORKERS = (1, 2, 3, 5)


def splitmix64(state):
    """Compute one output of the published generator (Steele, Lea, Flood 2014), in Python integers."""
    bits = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    return z ^ (z >> 31)


def scattered_rows(num):
    """Return row numbers as a set of a split has them: ascending with gaps."""
    return np.arange(num) * 3 + 7


@given(SIZES, st.integers(1, 70), SEEDS, st.integers(0, 5), st.sampled_from(WORKERS))
def test_every_entry_is_served_exactly_once(num, batch_size, seed, epoch, world_size):
    rows = scattered_rows(num)
    steps = steps_of(uniform_order(rows, batch_size, seed, epoch), epoch)
    shares = [[step.share(rank, world_size) for step in steps] for rank in range(world_size)]
    served = [share for worker in shares for share in worker]
    entries = np.concatenate([share.entries for share in served])
    assert sorted(entries) == list(range(num))
    assert sorted(np.concatenate([share.rows for share in served])) == sorted(rows)
    row_of = dict(zip(entries, np.concatenate([share.rows for share in served]), strict=True))
    for step in steps:
        for entry, row in zip(step.entries, step.rows, strict=True):
            assert row_of[entry] == row


@given(SIZES, st.integers(1, 70), st.sampled_from(WORKERS))
def test_shares_of_a_batch_are_even_and_know_its_size(num, batch_size, world_size):
    for step in steps_of(fixed_order(scattered_rows(num), batch_size), 0):
        shares = [step.share(rank, world_size) for rank in range(world_size)]
        sizes = [len(share.rows) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert {share.num_global for share in shares} == {len(step.rows)} == {sum(sizes)}
        assert {(share.epoch, share.index) for share in shares} == {(step.epoch, step.index)}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 70), SEEDS)
def test_groups_are_served_as_often_whatever_their_size(groups, batch_size, seed):
    rows, group = scattered_rows(len(groups)), np.array(groups)
    batches = group_order(rows, group, batch_size, seed, 0)
    assert all(map(np.array_equal, batches, group_order(rows, group, batch_size, seed, 0)))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    served = np.concatenate(batches)
    assert len(served) == len(rows)
    codes = group[(served - 7) // 3]
    counts = np.bincount(codes)[np.unique(group)]
    assert counts.max() - counts.min() <= 1
    # within a group each row is served as often, too
    times = {row: (served == row).sum() for row in rows}
    for code in np.unique(group):
        of_group = [times[row] for row in rows[group == code]]
        assert max(of_group) - min(of_group) <= 1


def test_the_order_of_groups_differs_from_epoch_to_epoch():
    rows, group = np.arange(24), np.arange(24) // 3
    orders = [np.concatenate(group_order(rows, group, 6, 0, epoch)) for epoch in range(2)]
    assert not np.array_equal(*orders)
    assert sorted(group[orders[0][:8]]) == list(range(8))


@given(SIZES, st.integers(1, 70))
def test_batches_are_full_but_for_the_last(num, batch_size):
    rows = scattered_rows(num)
    for batches in (fixed_order(rows, batch_size), uniform_order(rows, batch_size, 0, 0)):
        sizes = [len(batch) for batch in batches]
        assert set(sizes[:-1]) <= {batch_size}
        assert 0 < sizes[-1] <= batch_size
        assert [step.index for step in steps_of(batches, 4)] == list(range(len(sizes)))
        assert {step.epoch for step in steps_of(batches, 4)} == {4}


def test_rows_to_judge_stand_as_they_are():
    rows = scattered_rows(11)
    np.testing.assert_array_equal(np.concatenate(fixed_order(rows, 4)), rows)


@given(SEEDS, st.integers(0, 1000))
def test_an_order_is_a_function_of_seed_and_epoch(seed, epoch):
    rows = scattered_rows(50)

    def flat(batch_size, seed, epoch):
        return np.concatenate(uniform_order(rows, batch_size, seed, epoch)).tolist()

    order = flat(8, seed, epoch)
    assert flat(8, seed, epoch) == flat(50, seed, epoch) == order
    assert flat(8, seed, epoch + 1) != order
    assert flat(8, seed + 1, epoch) != order
    np.testing.assert_array_equal(rows, scattered_rows(50))


def test_an_order_is_uniform():
    # 4 rows have 24 orders; 2,400 epochs bring each about 100 times (chi-square, 23 degrees)
    orders = [tuple(uniform_order(np.arange(4), 4, 3, epoch)[0]) for epoch in range(2400)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 49.7  # quantile 0.999


def test_no_rows_make_no_step():
    assert steps_of(fixed_order(np.arange(0), 4), 0) == []
    assert steps_of(uniform_order(np.arange(0), 4, 0, 0), 0) == []


@given(SEEDS, st.integers(0, 2**31), st.integers(1, 200))
def test_keys_are_unique_and_those_of_splitmix64(seed, epoch, num):
    entries = np.arange(num)
    keys = entry_keys(seed, epoch, entries)
    assert len(set(keys.tolist())) == num
    start = splitmix64(splitmix64(seed) ^ epoch)
    assert keys.tolist() == [splitmix64(start ^ entry) for entry in range(num)]


def test_the_reference_generator_is_the_published_one():
    # first output for the state 1234567, as its authors' C code prints it
    assert splitmix64(1234567) == 6457827717110365317


@given(st.sampled_from(WORKERS), st.integers(1, 9))
def test_a_key_does_not_depend_on_who_serves_it(world_size, batch_size):
    steps = steps_of(uniform_order(np.arange(23), batch_size, 5, 2), 2)
    alone = dict(zip(range(23), entry_keys(5, 2, np.arange(23)), strict=True))
    for step in steps:
        for rank in range(world_size):
            entries = step.share(rank, world_size).entries
            assert entry_keys(5, 2, entries).tolist() == [alone[entry] for entry in entries]


def test_keys_of_epochs_and_seeds_differ():
    keys = [entry_keys(seed, epoch, np.arange(500)) for seed in range(8) for epoch in range(8)]
    assert len(np.unique(np.concatenate(keys))) == 8 * 8 * 500


def test_bits_of_keys_are_balanced():
    keys = entry_keys(0, 0, np.arange(20_000))
    ones = np.unpackbits(keys.view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    assert np.abs(ones - 0.5).max() < 0.02  # 5.6 standard errors


def test_a_share_is_a_step_of_its_own():
    step = steps_of([np.array([5, 3, 8])], 1)[0]
    same = step.share(0, 1)
    for whole, shared in zip(astuple(step), astuple(same), strict=True):
        np.testing.assert_array_equal(whole, shared)
    with pytest.raises(AttributeError):
        same.index = 3


# Balanced batches


def plan(sizes, batch_size, seed=0, epoch=0, rows_per_group=1):
    """Batches of domains with so many groups of so many rows each; with the domain and the group of each row."""
    domains, groups, number = [], [], 0
    for domain, group_sizes in enumerate(sizes):
        for size in group_sizes:
            domains += [domain] * size
            groups += [number] * size
            number += 1
    rows = scattered_rows(len(domains))
    domains, groups = np.array(domains), np.array(groups)
    batches = balanced_order(rows, domains, groups, batch_size, seed, epoch, rows_per_group)
    where = {int(row): (int(d), int(g)) for row, d, g in zip(rows, domains, groups, strict=True)}
    return rows, batches, where


GROUPS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4)


@given(GROUPS, st.integers(1, 20), SEEDS, st.integers(0, 3), st.integers(1, 3))
def test_balanced_batches_are_full_valid_and_share_out_domains_equally(
    sizes, batch_size, seed, epoch, rows_per_group
):
    rows, batches, where = plan(sizes, batch_size, seed, epoch, rows_per_group)
    assert len(batches) == -(-len(rows) // batch_size)
    totals = np.zeros(len(sizes), int)
    for batch in batches:
        assert len(batch) == min(batch_size, len(rows))
        assert set(batch.tolist()) <= set(rows.tolist())
        counts = np.bincount([where[row][0] for row in batch.tolist()], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1
        totals += counts
    # over an epoch too: a surplus goes from domain to domain
    assert totals.max() - totals.min() <= 1
    again = plan(sizes, batch_size, seed, epoch, rows_per_group)[1]
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@given(GROUPS, st.integers(1, 12), SEEDS)
def test_groups_are_distinct_while_a_domain_has_others(sizes, batch_size, seed):
    _, batches, where = plan(sizes, batch_size, seed)
    for batch in batches:
        for domain, group_sizes in enumerate(sizes):
            groups = [g for d, g in (where[row] for row in batch.tolist()) if d == domain]
            counts = [groups.count(group) for group in set(groups)]
            assert len(counts) == min(len(groups), len(group_sizes))


@given(GROUPS, st.integers(1, 12), SEEDS)
def test_no_row_of_a_group_comes_again_before_all_have(sizes, batch_size, seed):
    rows, batches, where = plan(sizes, batch_size, seed)
    served = np.concatenate(batches).tolist()
    for group in {g for _, g in where.values()}:
        members = [row for row in rows.tolist() if where[row][1] == group]
        counts = [served.count(row) for row in members]
        assert max(counts) - min(counts) <= 1


def test_rows_of_a_group_stand_together():
    """A consistency needs several; a domain of six rows in a batch then has three groups."""
    _, batches, where = plan([[8] * 6, [8] * 6], 12, rows_per_group=2)
    for batch in batches:
        groups = [where[row][1] for row in batch.tolist()]
        assert groups[::2] == groups[1::2]
        assert len(set(groups)) == 6
        assert len(set(batch.tolist())) == 12


def test_rows_of_a_rare_domain_come_several_times():
    _, batches, where = plan([[50, 50], [4]], 8)
    served = np.concatenate(batches).tolist()
    rare = [row for row in where if where[row][0] == 1]
    assert [served.count(row) for row in rare] == [len(served) // 2 // 4] * 4


def test_epochs_and_seeds_differ():
    orders = [plan([[9], [9]], 6, seed, epoch)[1] for seed in (0, 1) for epoch in (0, 1)]
    assert len({np.concatenate(order).tobytes() for order in orders}) == 4
