import numpy as np

from assay.data.masks.contact import NUM_TILES, choose_layers


def test_lowest_agreement_comes_first_then_evenly_spaced_layers():
    agreements = np.random.default_rng(3).permutation(100) / 100
    chosen = choose_layers(agreements.tolist())
    assert len(set(chosen)) == len(chosen) == NUM_TILES
    half = NUM_TILES // 2
    assert [agreements[i] for i in chosen[:half]] == [i / 100 for i in range(half)]
    assert chosen[half:] == sorted(chosen[half:])
    assert np.diff(chosen[half:]).max() <= 12
    assert sorted(choose_layers([0.5] * 7)) == list(range(7))
