"""Probes on features of which is planted what they tell."""

import numpy as np
import pytest

from assay.metrics.probe import probe_domain, probe_group


def rows(domains: int = 4, groups: int = 6, each: int = 10) -> tuple[np.ndarray, ...]:
    """Domain, class and group of frames; every other group of a domain is of class 1."""
    group = np.repeat(np.arange(domains * groups), each)
    return group // groups, group % 2, np.array([f"{g:03d}" for g in group])


def features(
    domain: np.ndarray, group: np.ndarray, of_domain: float, of_group: float
) -> np.ndarray:
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(domain.max() + 1, 8)), rng.normal(size=(len(np.unique(group)), 8))
    noise = rng.normal(size=(len(domain), 8))
    return of_domain * tables[0][domain] + of_group * tables[1][group.astype(int)] + noise


def test_a_planted_printer_is_told_and_noise_is_not():
    domain, truth, group = rows()
    telling = probe_domain(features(domain, group, 4.0, 0.0), domain, truth, group)
    assert telling is not None
    assert telling.accuracy.value > 0.95
    assert telling.chance.value == pytest.approx(0.25)
    silent = probe_domain(features(domain, group, 0.0, 0.0), domain, truth, group)
    assert silent is not None
    assert silent.accuracy.low < 0.25 < silent.accuracy.high


def test_what_tells_prints_alone_says_nothing_of_the_printer_of_another_print():
    """A probe that saw the same prints would name their printer."""
    domain, truth, group = rows(groups=12)
    vectors = features(domain, group, 0.0, 5.0)
    printer, single = probe_domain(vectors, domain, truth, group), probe_group(vectors, group)
    assert printer is not None
    assert single is not None
    assert printer.accuracy.value < 0.6
    assert single.accuracy.value > 0.9
    assert single.chance.value == pytest.approx(1 / 48)


def test_both_halves_have_both_classes():
    """Classes that alternate from print to print are not all in one half: the class alone tells no printer."""
    domain, truth, group = rows(groups=8)
    vectors = np.random.default_rng(1).normal(size=(len(domain), 4))
    vectors[:, 0] += 6 * truth
    probed = probe_domain(vectors, domain, truth, group)
    assert probed is not None
    assert probed.accuracy.value == pytest.approx(0.25, abs=0.12)


def test_chance_is_the_share_of_the_commonest_however_the_halves_fall():
    """Of three prints of each printer one half has two and the other one."""
    domain, truth, group = rows(domains=6, groups=3)
    probed = probe_domain(features(domain, group, 1.0, 0.0), domain, truth, group)
    assert probed is not None
    assert probed.chance.value == pytest.approx(1 / 6)


def test_one_printer_or_single_frames_cannot_be_probed():
    domain, truth, group = rows()
    vectors = features(domain, group, 1.0, 1.0)
    assert probe_domain(vectors, np.zeros_like(domain), truth, group) is None
    assert probe_group(vectors, np.arange(len(group)).astype(str)) is None
    assert probe_domain(vectors[:20], np.repeat([0, 1], 10), truth[:20], group[:20]) is None


def test_many_rows_and_groups_are_thinned_evenly():
    domain, truth, group = rows(domains=2, groups=100, each=30)
    vectors = features(domain, group, 5.0, 0.0)
    printer, single = probe_domain(vectors, domain, truth, group), probe_group(vectors, group)
    assert printer is not None
    assert single is not None
    assert (printer.accuracy.num, single.accuracy.num_groups) == (4000, 60)
    assert printer.accuracy.value > 0.95
