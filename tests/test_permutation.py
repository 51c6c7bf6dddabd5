"""The order of an epoch: each row once, in any order as likely, and looked up anywhere."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chi2

from ppl_vae.data.order import Blocks, Shuffle, order_of
from ppl_vae.data.permutation import Permutation

SIZES = [*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 1023, 1024, 1025]
BLOCKS = [None, Blocks(1, 1), Blocks(1, 5), Blocks(7, 1), Blocks(7, 3), Blocks(4096, 32)]


def unlikely(observed, expected):
    """The chance of such a chi-square, or a larger one, of counts with this expectation."""
    observed = np.asarray(observed, dtype=float)
    return chi2.sf(((observed - expected) ** 2 / expected).sum(), observed.size - 1)


@pytest.mark.parametrize("num", SIZES)
def test_every_row_comes_once(num):
    for seed in range(2):
        for blocks in BLOCKS:
            rows = order_of(num, (seed, 0), blocks)(np.arange(num))
            assert rows.dtype == np.int64
            assert np.array_equal(np.sort(rows), np.arange(num))


@pytest.mark.parametrize("blocks", [None, Blocks(), Blocks(1000, 7)])
def test_every_row_of_many_comes_once(blocks):
    rows = order_of(300_007, (0, 0), blocks)(np.arange(300_007))
    assert np.array_equal(np.sort(rows), np.arange(300_007))


@pytest.mark.parametrize("num", [10**9, 10**11, 2**40, 2**62])
def test_numbers_too_large_to_be_stored_stay_in_range_and_differ(num):
    positions = np.concatenate([np.arange(5000), num - 1 - np.arange(5000), [num // 2]])
    for blocks in (None, Blocks()):
        rows = order_of(num, (0, 0), blocks)(positions)
        assert rows.min() >= 0 and rows.max() < num
        assert len(np.unique(rows)) == len(rows)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_seeds_and_epochs_have_orders_of_their_own(blocks):
    found = [
        tuple(order_of(500, (seed, epoch), blocks)(np.arange(500)))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(found)) == 9
    again = tuple(order_of(500, (0, 0), blocks)(np.arange(500)))
    assert again == found[0]


@pytest.mark.parametrize("num", [4, 5, 6])
def test_all_orders_are_as_likely(num):
    draws = 60 * math.factorial(num)
    counts = Counter(
        tuple(Permutation(num, (7, seed))(np.arange(num))) for seed in range(min(draws, 7200))
    )
    observed = [counts[order] for order in permutations(range(num))]
    assert unlikely(observed, sum(observed) / len(observed)) > 1e-5


@pytest.mark.parametrize("num", [13, 37, 100])
def test_all_rows_are_as_likely_at_all_positions(num):
    seeds = 2000
    where = np.stack([Permutation(num, (seed,))(np.arange(num)) for seed in range(seeds)])
    for position in (0, 1, num // 2, num - 1):
        counts = np.bincount(where[:, position], minlength=num)
        assert unlikely(counts, seeds / num) > 1e-6
        # Each count is binomial.
        error = math.sqrt(seeds / num * (1 - 1 / num))
        assert abs(counts - seeds / num).max() <= 5 * error
    # Neighbours: how far the next row lies, which a rotation or a stride would give away.
    steps = (where[:, 1:] - where[:, :-1]) % num
    counts = np.bincount(steps.ravel(), minlength=num)[1:]
    assert unlikely(counts, steps.size / (num - 1)) > 1e-6


def test_a_minibatch_holds_rows_of_everywhere():
    num, bins = 10**9, 50
    rows = Permutation(num, (0, 0))(np.arange(50_000))
    counts = np.bincount(rows * bins // num, minlength=bins)
    assert unlikely(counts, 1000) > 1e-6
    assert unlikely(np.bincount(rows % 64, minlength=64), 50_000 / 64) > 1e-6


@pytest.mark.parametrize("size, together", [(5, 1), (5, 4), (8, 3)])
def test_blocks_come_near_each_other_and_the_shorter_one_anywhere(size, together):
    num, window = 103, size * together
    places = Counter()
    for seed in range(100):
        rows = order_of(num, (seed, 0), Blocks(size, together))(np.arange(num))
        for start in range(0, num, window):
            # Of a window's blocks one may be shorter, and two may reach into the next window.
            assert len(np.unique(rows[start : start + window] // size)) <= together + 2
        places[int(np.flatnonzero(rows == num - 1)[0]) // window] += 1
    expected = [min(window, num - start) / num for start in range(0, num, window)]
    observed = [places[i] for i in range(len(expected))]
    assert all(
        abs(seen - 100 * p) <= 5 * math.sqrt(100 * p * (1 - p)) + 1
        for seen, p in zip(observed, expected, strict=True)
    )


@pytest.mark.parametrize("blocks", [None, Blocks(100, 4)])
def test_any_stretch_is_that_of_the_whole(blocks):
    num = 10_000
    whole = np.concatenate([Shuffle(num, 3, blocks)(1, start, 100) for start in range(0, num, 100)])
    assert np.array_equal(np.sort(whole), np.arange(num))
    shuffle = Shuffle(num, 3, blocks)
    generator = np.random.default_rng(0)
    for _ in range(10):
        start, size = int(generator.integers(num)), int(generator.integers(1, 9_000))
        size = min(size, num - start)
        assert np.array_equal(shuffle(1, start, size), whole[start : start + size])
        shuffle(2, 0, 10)  # of another epoch, in between
    assert not np.array_equal(shuffle(2, 0, num), whole)


def test_what_is_out_of_range_is_refused():
    for num in (0, -1, 2**62 + 1):
        with pytest.raises(ValueError, match=rf"num is {num}; accepted are 1 to 2\^62"):
            Permutation(num, (0,))
    with pytest.raises(ValueError, match="num_rows is 0; accepted is an integer >= 1"):
        Blocks(0)
    with pytest.raises(ValueError, match="num_together is 1.5; accepted"):
        Blocks(1, 1.5)
