"""Few labels: which groups are drawn, and that more labels tell more where there is something to tell."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from assay.metrics.label_efficiency import NUM_DRAWS, SHARES, draw_groups, label_efficiency
from assay.metrics.logistic import Scale, fit_logistic

# 60 groups of class 0, 30 of class 1, 3 of class 2; three rows each
CLASS_OF_GROUP = np.repeat([0, 1, 2], [60, 30, 3])
GROUP = np.repeat(np.arange(93), 3)
TRUTH = CLASS_OF_GROUP[GROUP]


def test_groups_are_drawn_class_by_class_and_one_of_each_at_least() -> None:
    for share, nums in ((0.01, (1, 1, 1)), (0.1, (6, 3, 1)), (1.0, (60, 30, 3))):
        for draw in range(4):
            groups = draw_groups(TRUTH, GROUP, share, draw)
            assert len(np.unique(groups)) == len(groups)
            assert tuple(np.bincount(CLASS_OF_GROUP[groups], minlength=3)) == nums
    draws = {tuple(draw_groups(TRUTH, GROUP, 0.1, draw)) for draw in range(6)}
    assert len(draws) == 6
    assert tuple(draw_groups(TRUTH, GROUP, 0.1, 2)) in draws


def test_groups_are_drawn_whatever_the_order_of_rows() -> None:
    order = np.random.default_rng(0).permutation(len(GROUP))
    again = draw_groups(TRUTH[order], GROUP[order], 0.05, 1)
    np.testing.assert_array_equal(again, draw_groups(TRUTH, GROUP, 0.05, 1))


def test_hits_are_those_of_scikit_learn_on_the_labels_given() -> None:
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(len(TRUTH), 6)) * [1, 5, 1, 1, 1, 30] + 2 * TRUTH[:, None]
    asked = rng.integers(0, 3, 50)
    queries = rng.normal(size=(50, 6)) * [1, 5, 1, 1, 1, 30] + 2 * asked[:, None]
    shares = label_efficiency((queries, asked), (bank, TRUTH), GROUP, 3)
    assert [share.share for share in shares] == list(SHARES)
    assert [share.num_groups for share in shares] == [3, 6, 10, 93]
    assert [len(share.hits) for share in shares] == [NUM_DRAWS, NUM_DRAWS, NUM_DRAWS, 1]
    mean, std = bank.mean(0), bank.std(0)  # of all of train, which needs no labels
    for share in shares:
        for draw, hits in enumerate(share.hits):
            rows = np.isin(GROUP, draw_groups(TRUTH, GROUP, share.share, draw))
            model = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000)
            model.fit((bank[rows] - mean) / std, TRUTH[rows])
            expected = model.predict((queries - mean) / std) == asked
            assert (hits != expected).mean() <= 0.02
    assert shares[-1].hits.mean() > shares[0].hits.mean()


def test_labels_of_the_groups_that_are_not_drawn_are_never_seen() -> None:
    rng = np.random.default_rng(2)
    bank, queries = rng.normal(size=(len(TRUTH), 4)), rng.normal(size=(9, 4))
    asked = np.arange(9) % 3
    hits = label_efficiency((queries, asked), (bank, TRUTH), GROUP, 3)[0].hits[0]
    drawn = np.isin(GROUP, draw_groups(TRUTH, GROUP, 0.01, 0))
    changed = np.where(drawn, TRUTH, (TRUTH + 1) % 3)
    # which groups are drawn follows from the classes, so these are given by hand
    scale = Scale.of(bank)
    weights = fit_logistic(scale.design(bank[drawn]), changed[drawn], 3)
    answers = (scale.design(queries) @ weights).argmax(1)
    np.testing.assert_array_equal(hits, answers == asked)
