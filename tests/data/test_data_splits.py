"""Splits: what they refuse, and the two ways to binarize."""

import numpy as np
import pytest
import torch

from ppl_vae.data import Splits, binarize
from ppl_vae.data.partition import partition


def grey(num_rows=200, seed=0):
    return torch.rand(num_rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_missing_splits_are_empty_and_of_the_same_shape_and_dtype():
    splits = Splits(grey().double())
    assert splits.data_shape == (1, 4, 4)
    for x in (splits.valid, splits.test):
        assert x.shape == (0, 1, 4, 4) and x.dtype == torch.float64


def with_nan():
    x = grey(5)
    x[3, 0, 1, 2] = float("nan")
    x[4, 0, 0, 0] = float("inf")
    return x


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": grey(0)}, r"mine: train is empty, its shape is \[0, 1, 4, 4\]"),
        ({"train": np.zeros((3, 2))}, "mine: train must be a torch.Tensor, got ndarray"),
        (
            {"train": torch.zeros(3, 2, dtype=torch.uint8)},
            "train must be floating, got torch.uint8",
        ),
        ({"train": torch.zeros(3)}, r"train must be \[N, \*data_shape\].* got shape \[3\]"),
        ({"train": with_nan()}, r"train holds 2 values .* at index \(3, 0, 1, 2\)"),
        ({"train": grey(), "test": with_nan()}, "test holds 2 values"),
        (
            {"train": grey(), "valid": torch.zeros(2, 5)},
            r"one datum of valid has shape \[5\], of train \[1, 4, 4\]",
        ),
        (
            {"train": grey(), "test": grey().double()},
            "test is torch.float64, train is torch.float32",
        ),
        ({"train": grey(), "binarize": "sometimes"}, "binarize='sometimes' is none of None"),
        ({"train": grey(), "binarize": "fixed"}, "train must be only 0 and 1"),
        ({"train": grey() + 1, "binarize": "dynamic"}, r"train must be within \[0, 1\]"),
        ({"train": grey(), "test": grey(), "binarize": "dynamic"}, "test must be only 0 and 1"),
        ({"train": grey(), "labels": {"dev": torch.zeros(2)}}, "labels for 'dev'; the splits are"),
        ({"train": grey(), "labels": {"train": [1, 2]}}, "must be a torch.Tensor, got list"),
        (
            {"train": grey(5), "labels": {"train": torch.zeros(5)}},
            r"train labels must be int64 \[N\] or factor values \[N, F\], got torch.float32",
        ),
        (
            {
                "train": grey(5),
                "labels": {"train": torch.zeros(4, dtype=torch.int64)},
                "label_names": ("label",),
            },
            "4 labels for 5 data in train",
        ),
        (
            {"train": grey(5), "labels": {"train": torch.zeros(5, 3)}, "label_names": ("a", "b")},
            r"train labels have 3 column\(s\), but label_names is",
        ),
        (
            {
                "train": grey(5),
                "labels": {"train": torch.full((5, 1), torch.nan)},
                "label_names": ("a",),
            },
            "train labels hold NaN",
        ),
    ],
)
def test_refusals_name_the_split_and_what_was_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        Splits(**arguments, name="mine")


def test_draw_is_the_data_unless_dynamic():
    x = grey()
    assert Splits(x).draw(x) is x


def test_dynamic_draws_have_the_grey_mean_and_differ():
    x = grey(3, seed=1).clamp(0.05, 0.95)
    splits = binarize(Splits(x), "dynamic")
    assert splits.train is x
    torch.manual_seed(0)
    num = 4000
    draws = torch.stack([splits.draw(splits.train) for _ in range(num)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(draws[0], draws[1])
    standard_error = (x * (1 - x) / num).sqrt()
    assert ((draws.mean(0) - x).abs() < 5 * standard_error).all()


def test_draws_follow_the_global_random_state():
    splits = binarize(Splits(grey()), "dynamic")
    torch.manual_seed(3)
    first = splits.draw(splits.train)
    torch.manual_seed(3)
    assert torch.equal(first, splits.draw(splits.train))


def test_drawn_once_it_is_binary_with_the_grey_mean_and_leaves_the_random_state_alone():
    parts = Splits(grey(9000, 1), grey(500, 2), grey(500, 2))
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fixed, again = binarize(parts, "fixed"), binarize(parts, "fixed")
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()
    for split in ("train", "valid", "test"):
        x, p = getattr(fixed, split), getattr(parts, split)
        assert torch.equal(x, getattr(again, split))
        assert ((x == 0) | (x == 1)).all()
        standard_error = (p * (1 - p)).sum().sqrt() / p.numel()
        assert (x.mean() - p.mean()).abs() < 5 * standard_error
    # The same grey values in two splits, or in two chunks, must not share their noise.
    assert not torch.equal(fixed.valid, fixed.test)
    assert fixed.draw(fixed.train) is fixed.train


def test_every_chunk_of_rows_has_noise_of_its_own():
    half = torch.full((8192, 1, 2, 2), 0.5)
    x = binarize(Splits(half), "fixed").train
    assert not torch.equal(x[:4096], x[4096:])


def test_valid_and_test_are_the_same_bits_under_both_ways_and_other_bits_by_another_seed():
    parts = Splits(grey(50), grey(60, 1), grey(70, 2))
    fixed, dynamic = binarize(parts, "fixed"), binarize(parts, "dynamic")
    assert torch.equal(fixed.valid, dynamic.valid) and torch.equal(fixed.test, dynamic.test)
    assert torch.equal(dynamic.train, parts.train)
    assert not torch.equal(fixed.test, binarize(parts, "fixed", seed=1).test)


def test_zeros_and_ones_stay_and_the_dtype_too():
    x = (grey() > 0.5).double()
    splits = binarize(Splits(x, x), "fixed")
    assert torch.equal(splits.train, x) and splits.valid.dtype == torch.float64


def test_binarizing_again_is_a_no_op_the_same_way_and_refused_the_other_way():
    fixed = binarize(Splits(grey(), name="mine"), "fixed")
    assert binarize(fixed, "fixed") is fixed and binarize(fixed, None) is fixed
    with pytest.raises(ValueError, match="mine: already binarized .'fixed'.*'dynamic' comes too"):
        binarize(fixed, "dynamic")


def test_only_values_in_the_unit_interval_can_be_binarized():
    wide = Splits(torch.tensor([[0.5, -1.5], [3.25, 0.0]]), name="mine")
    with pytest.raises(ValueError, match="mine: train ranges from -1.5 to 3.25"):
        binarize(wide, "dynamic")
    with pytest.raises(ValueError, match="mine: test ranges"):
        binarize(Splits(torch.zeros(2, 2), test=wide.train, name="mine"), "dynamic")
    with pytest.raises(ValueError, match="binarize='yes' is none of None, 'dynamic', 'fixed'"):
        binarize(wide, "yes")


def test_partition_covers_every_row_once_and_is_always_the_same():
    parts = partition(100, num_valid=20, num_test=10)
    assert [len(p) for p in parts] == [70, 20, 10]
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert all(torch.equal(a, b) for a, b in zip(parts, partition(100, 20, 10), strict=True))
    # The first rows that seed 0 has always given: a change would silently mix train into test.
    assert partition(10, 2, 2)[0].tolist() == [2, 8, 4, 9, 1, 6]


def test_partition_keeps_a_row_for_train():
    with pytest.raises(ValueError, match="4 rows cannot give 2 to valid and 2 to test"):
        partition(4, num_valid=2, num_test=2)
