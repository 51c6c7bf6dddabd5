"""The test for copies of training data, on data that are or are not.

Shapes: N samples, M held-out data, T training data.
"""

import math

import pytest
import torch
from scipy import stats

from ppl_vae.evaluate import DataCopying, data_copying

#: As rare as five standard errors.
RARE = 5.7e-7


def test_of_fresh_draws_p_values_are_uniform():
    """And the probability to be nearer is a half, within a standard error that is right."""
    found = []
    for _ in range(600):
        train, held_out, fresh = torch.randn(170, 3).split((50, 50, 70))
        found.append(data_copying(fresh, train, held_out))
    assert stats.kstest([test.p_value for test in found], "uniform").pvalue > RARE
    nearer = torch.tensor([test.nearer.value for test in found])
    errors = torch.tensor([test.nearer.standard_error for test in found])
    # Of the same training data: given these the standard error is that of both other sets.
    z = (nearer - 0.5) / errors
    assert abs(z.mean()) <= 5 / math.sqrt(600)
    assert abs(z.std() - 1) <= 5 / math.sqrt(2 * 600)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_copies_are_found_out(share):
    train, held_out, fresh = torch.randn(3, 400, 5).unbind()
    copied = train + 0.05 * torch.randn(400, 5)
    samples = torch.where(torch.arange(400)[:, None] < share * 400, copied, fresh)
    found = data_copying(samples, train, held_out)
    assert found.p_value < RARE and found.z < -5
    # Copies are nearer than all, the others than half.
    expected = share + (1 - share) / 2
    assert abs(found.nearer.value - expected) <= 5 * found.nearer.standard_error + 0.005


def test_samples_that_are_farther_off_are_no_copies():
    train, held_out, fresh = torch.randn(3, 400, 5).unbind()
    found = data_copying(1.5 * fresh, train, held_out)
    assert found.z > 5 and found.p_value > 1 - RARE and found.nearer.value < 0.4


def test_copies_in_one_part_hide_behind_samples_that_are_off_in_another():
    """What it does not see, being over all of the space at once."""
    train, held_out, fresh = torch.randn(3, 400, 5).unbind()
    samples = torch.where(torch.arange(400)[:, None] % 2 == 0, train, 4 * fresh)
    found = data_copying(samples, train, held_out)
    assert found.p_value > RARE
    assert (found.samples == 0).sum() == 200 and (found.held_out > 0).all()


def exponential(rate, num):
    return -torch.rand(num).log() / rate


def test_the_probability_to_be_nearer_is_that_of_a_known_case():
    """Around a single training datum, distances of rates 2 and 1: nearer with probability 2/3."""
    found = []
    for _ in range(400):
        samples, held_out = exponential(2.0, 25)[:, None], exponential(1.0, 250)[:, None]
        found.append(data_copying(samples, torch.zeros(1, 1), held_out).nearer)
    value = torch.tensor([each.value for each in found])
    assert abs(value.mean() - 2 / 3) <= 5 * value.std() / math.sqrt(400)
    square = torch.tensor([each.standard_error**2 for each in found])
    spread = 5 * (value.var() * math.sqrt(2 / 400) + square.std() / math.sqrt(400))
    assert abs(square.mean() - value.var()) <= spread


@pytest.mark.parametrize("step", [0.0, 0.5, 1.0])
def test_the_statistic_is_that_of_mann_and_whitney(step):
    """With ties and without, against another's."""
    samples, held_out = exponential(1.3, 30), exponential(1.0, 45)
    if step:
        samples, held_out = ((d / step).round() * step for d in (samples, held_out))
    found = DataCopying(samples, held_out)
    expected = stats.mannwhitneyu(
        samples, held_out, alternative="less", method="asymptotic", use_continuity=False
    )
    assert found.nearer.value == pytest.approx(1 - expected.statistic / (30 * 45), rel=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.z == pytest.approx(stats.norm.ppf(expected.pvalue), rel=1e-8)


def test_where_nothing_varies_nothing_is_found():
    found = DataCopying(torch.zeros(5), torch.zeros(3))
    assert (found.nearer.value, found.z, found.p_value) == (0.5, 0.0, 0.5)
    assert found.nearer.standard_error == 0
    assert math.isnan(DataCopying(torch.zeros(1), torch.ones(3)).nearer.standard_error)


def test_all_three_must_be_data_of_one_kind():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"data_copying: .*shapes \[4, 2\], \[4, 2\], \[4\]"):
        data_copying(x, x, torch.zeros(4))
    with pytest.raises(ValueError, match="data_copying: held_out is of NoneType"):
        data_copying(x, x, None)
