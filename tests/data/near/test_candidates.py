import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.near import candidates
from assay.data.near.candidates import MOST, NEAR_BITS, by_signature, by_words
from assay.data.near.sketch import Sketch, mirrored


def signatures(num, seed):
    return np.random.default_rng(seed).integers(0, 256, (num, 32), dtype=np.uint8)


def turned(square, turn):
    return np.rot90(square[:, ::-1] if turn >= 4 else square, turn % 4)


def with_bits_changed(signature, places):
    bits = np.unpackbits(signature)
    bits[list(places)] ^= 1
    return np.packbits(bits)


def sketch_of(descriptors):
    points = np.zeros((len(descriptors), 2), np.float32)
    return Sketch(np.zeros((8, 8), np.uint8), points, descriptors)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_signatures_are_near_where_a_bit_by_bit_comparison_says_so(seed):
    rng = np.random.default_rng(seed)
    table = signatures(16, seed)
    for row in range(0, 16, 2):  # a turned copy of another row with about as many bits as allowed
        square = np.unpackbits(table[rng.integers(16)]).reshape(16, 16)
        num = rng.integers(NEAR_BITS - 2, NEAR_BITS + 3)
        copy = np.packbits(turned(square, rng.integers(8)))
        table[row] = with_bits_changed(copy, rng.choice(256, num, replace=False))
    squares = np.unpackbits(table, axis=1).reshape(-1, 16, 16)
    expected = set()
    for i in range(16):
        for j in range(i + 1, 16):
            bits = [int((turned(squares[i], turn) != squares[j]).sum()) for turn in range(8)]
            if min(bits) <= NEAR_BITS:
                expected.add((i, j, bits.index(min(bits))))
    assert set(by_signature(table)) == expected


def test_signatures_beyond_one_block_are_compared():
    table = signatures(5000, 1)
    for row, twin, num in ((0, 4999, 0), (255, 2047, 16), (256, 2048, 3), (599, 4000, 17)):
        table[twin] = with_bits_changed(table[row], range(0, 2 * num, 2))
    assert set(by_signature(table)) == {(0, 4999, 0), (255, 2047, 0), (256, 2048, 0)}


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_images_that_share_their_words_are_paired_and_mirrored_ones_too(is_mirrored):
    rng = np.random.default_rng(2)
    tables = rng.integers(0, 60, (40, 30, 128)).astype(np.uint8)
    copy = tables[7, 5:]  # without some keypoints, as of a crop
    tables[29, :25] = mirrored(copy) if is_mirrored else copy
    assert (7, 29) in by_words([sketch_of(table) for table in tables])


def test_images_without_keypoints_have_no_words():
    blank = sketch_of(np.zeros((0, 128), np.uint8))
    assert by_words([blank, blank]) == []
    table = np.random.default_rng(3).integers(0, 60, (9, 128)).astype(np.uint8)
    assert by_words([blank, sketch_of(table), blank, sketch_of(table)]) == [(1, 3)]


def test_where_all_signatures_are_near_only_the_nearest_are_listed():
    table = np.stack([with_bits_changed(signatures(1, 4)[0], [i]) for i in range(200)])
    table[150] = table[3]
    pairs = by_signature(table)
    assert (3, 150, 0) in pairs
    assert len(pairs) <= 200 * MOST


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_best_columns_are_those_of_a_stable_sort_ties_included(rows, num, levels, seed):
    table = np.random.default_rng(seed).integers(0, levels, (rows, num)).astype(np.float32)
    expected = np.argsort(-table, axis=1, kind="stable")[:, :MOST]
    np.testing.assert_array_equal(candidates._best(table), expected)


def test_blocks_of_any_size_give_the_same_pairs(monkeypatch):
    tables = np.random.default_rng(5).integers(0, 60, (60, 20, 128)).astype(np.uint8)
    tables[30:] = tables[:30, ::-1]
    sketches = [sketch_of(table) for table in tables]
    near = np.repeat(signatures(20, 6), 3, axis=0)
    expected = by_words(sketches), by_signature(near)
    monkeypatch.setattr(candidates, "_PAIRS", 7 * 60)
    assert candidates._blocks(60)[-1] == (56, 60)
    assert (by_words(sketches), by_signature(near)) == expected
