from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.duplicates import NEAR_BITS, NearDuplicate, counts, join_rows, near_duplicates
from assay.data.images.pyramid import ImagePyramid, cropped_signatures


def scenes(num, seed, height=180, width=240):
    """Draw unrelated images: smooth noise of full contrast."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        noise = rng.standard_normal((height, width, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), rng.uniform(4, 12))
        yield cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def signatures(images):
    return np.stack([np.frombuffer(ImagePyramid.of(image).signature, np.uint8) for image in images])


def cropped(images):
    return np.stack([cropped_signatures(ImagePyramid.of(image).levels[-1]) for image in images])


def recompressed(image, quality=60):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def turned(image, number):
    flipped = image[:, ::-1] if number >= 4 else image
    return np.ascontiguousarray(np.rot90(flipped, number % 4))


def random_signatures(num, seed):
    return np.random.default_rng(seed).integers(0, 256, (num, 32), dtype=np.uint8)


def with_bits_changed(signature, places):
    bits = np.unpackbits(signature)
    bits[list(places)] ^= 1
    return np.packbits(bits)


def by_hand(signature, other):
    """Count different bits at the best of the eight turns, bit by bit."""
    bits, others = (np.unpackbits(s).reshape(16, 16) for s in (signature, other))
    return min(
        int((turned(bits, number) != others).sum())  # bits are equal or not: no products
        for number in range(8)
    )


# Near-duplicates

COPIES = {
    "recompressed": recompressed,
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.15, beta=20),
    "darker": lambda image: (image * 0.7 + 10).astype(np.uint8),
    "smaller": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "noisy": lambda image: cv2.add(
        image, np.random.default_rng(0).integers(0, 30, image.shape, dtype=np.uint8)
    ),
    "all of it": lambda image: recompressed((image * 0.8 + 10).astype(np.uint8)[::-1]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_beside_their_originals_and_unrelated_images_are_not(kind):
    train, others = list(scenes(40, seed=1)), list(scenes(60, seed=2))
    copies = [COPIES[kind](turned(image, i % 8)) for i, image in enumerate(train[::2])]
    sets = ["train"] * 40 + ["val"] * 20 + ["val"] * 30 + ["test"] * 30
    pairs = near_duplicates(signatures([*train, *copies, *others]), sets)
    assert counts(pairs, sets) == {"val": 20, "test": 0}
    assert {d.row: d.twin for d in pairs} == {40 + i: 2 * i for i in range(20)}
    assert all(d.set == "val" for d in pairs)


@pytest.mark.parametrize("share", [0.01, 0.025, 0.05])
@pytest.mark.parametrize("is_train_cropped", [False, True])
def test_cropped_copies_are_found_and_unrelated_images_are_not(share, is_train_cropped):
    """Whole images find 0 of 40 that lost 2.5 % at each side."""
    whole, others = list(scenes(40, seed=5)), list(scenes(60, seed=6))
    copies = []
    for image in whole:
        y, x = round(image.shape[0] * share), round(image.shape[1] * share)
        copies.append(recompressed(image[y:-y, x:-x]))
    train, val = (copies, whole) if is_train_cropped else (whole, copies)
    images, sets = [*train, *val, *others], ["train"] * 40 + ["val"] * 40 + ["test"] * 60
    pairs = near_duplicates(signatures(images), sets, cropped=cropped(images))
    assert counts(pairs, sets) == {"val": 40, "test": 0}
    assert {d.row: d.twin for d in pairs} == {40 + i: i for i in range(40)}


@pytest.mark.parametrize("size", [(180, 240), (193, 331), (61, 40)])
def test_every_flip_and_quarter_turn_is_found_at_few_bits(size):
    image, *_ = scenes(1, 3, *size)
    views = [turned(image, number) for number in range(8)]
    sets = ["train"] + ["test_seen"] * 8
    pairs = near_duplicates(signatures([image, *views]), sets)
    assert sorted(d.row for d in pairs) == [*range(1, 9)]
    assert all(d.bits <= 4 for d in pairs)  # rounding at the thumbnail's threshold


def test_two_thousand_unrelated_images_are_not_flagged():
    few = list(scenes(2000, 5, 48, 64))
    assert near_duplicates(signatures(few), ["train"] * 1000 + ["test"] * 1000) == []


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["train", "val"]))
def test_it_finds_what_a_bit_by_bit_comparison_finds(seed, against):
    rng = np.random.default_rng(seed)
    table = random_signatures(24, seed)
    for row in range(0, 24, 2):  # a turned copy of another row with about as many bits as allowed
        square = np.unpackbits(table[rng.integers(24)]).reshape(16, 16)
        copy = np.packbits(turned(square, rng.integers(8)))
        num = rng.integers(NEAR_BITS - 2, NEAR_BITS + 3)
        table[row] = with_bits_changed(copy, rng.choice(256, num, replace=False))
    names = ["train", "val", "test", "test_seen", "test_unseen", "dropped"]
    sets = [names[i] for i in rng.integers(len(names), size=24)]
    later = set(names[1:5] if against == "train" else names[2:5])
    twins = [i for i, name in enumerate(sets) if name == against]
    expected = []
    for row in (i for i, name in enumerate(sets) if name in later and twins):
        distances = [by_hand(table[row], table[twin]) for twin in twins]
        if min(distances) <= NEAR_BITS:
            first = twins[int(np.argmin(distances))]
            expected.append(NearDuplicate(min(distances), row, sets[row], first))
    pairs = near_duplicates(table, sets, against)
    assert pairs == sorted(expected)
    assert [d.bits for d in pairs] == sorted(d.bits for d in pairs)
    drawn = Counter(d.set for d in expected)
    assert counts(pairs, sets, against) == {
        name: drawn[name] for name in names if name in later & set(sets)
    }


def test_rows_beyond_one_block_are_found_and_the_first_of_equal_twins_is_named():
    train, test = random_signatures(5000, 1), random_signatures(600, 2)
    for row, twin, num in ((0, 4999, 0), (255, 2047, 16), (256, 2048, 3), (599, 0, 17)):
        test[row] = with_bits_changed(train[twin], range(0, 2 * num, 2))
    train[4500] = train[2048]
    sets = ["test"] * 600 + ["train"] * 5000
    pairs = near_duplicates(np.concatenate([test, train]), sets)
    assert pairs == [
        NearDuplicate(0, 0, "test", 600 + 4999),
        NearDuplicate(3, 256, "test", 600 + 2048),
        NearDuplicate(16, 255, "test", 600 + 2047),
    ]


def test_the_nearest_row_is_named_not_the_first_near_one():
    image = random_signatures(1, 3)[0]
    table = np.stack([with_bits_changed(image, range(n)) for n in (9, 2, 5, 0)])
    pairs = near_duplicates(table, ["train", "train", "train", "test"])
    assert pairs == [NearDuplicate(2, 3, "test", 1)]


def test_only_the_named_set_is_compared_with_and_dropped_copies_do_not_count():
    same = np.repeat(random_signatures(1, 4), 5, axis=0)
    sets = ["train", "val", "test_seen", "test_unseen", "dropped"]
    pairs = near_duplicates(same, sets)
    assert counts(pairs, sets) == {"val": 1, "test_seen": 1, "test_unseen": 1}
    assert {d.twin for d in pairs} == {0}
    pairs = near_duplicates(same, sets, "val")
    assert counts(pairs, sets, "val") == {"test_seen": 1, "test_unseen": 1}
    assert {d.twin for d in pairs} == {1}


def test_without_rows_to_compare_nothing_is_found():
    same = np.repeat(random_signatures(1, 5), 2, axis=0)
    for sets in (["train", "train"], ["val", "test"], ["train", "dropped"]):
        assert near_duplicates(same, sets) == []
    assert counts([], ["val", "test"]) == {"val": 0, "test": 0}


# Rows that stay together


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ABCDEFG"), st.sampled_from("uvwxyz")), max_size=12))
def test_joined_rows_are_those_a_chain_of_keys_leads_to(keys):
    columns = [[k[0] for k in keys], [k[1] for k in keys]]
    rows = [i for i in range(len(keys)) if i % 5 != 3]
    reached = np.eye(len(keys), dtype=bool)
    for i in rows:
        for j in rows:
            reached[i, j] |= any(column[i] == column[j] for column in columns)
    for _ in keys:
        reached = (reached.astype(int) @ reached) > 0
    expected = {tuple(np.flatnonzero(reached[i]).tolist()) for i in rows}
    assert {tuple(unit.tolist()) for unit in join_rows(columns, rows)} == expected
