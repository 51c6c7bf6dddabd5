"""Metrics of disentanglement, on codes whose score is known.

Shapes: N rows, D codes, F factors, B bins.
"""

import math
import random
import statistics

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, mutual_info_score, roc_auc_score
from sklearn.svm import SVC
from torch.nn.functional import one_hot

from ppl_vae.data import SPRITE_GRID, Splits, render_sprites
from ppl_vae.evaluate import (
    Estimate,
    beta_vae_score,
    codes_and_factors,
    dci,
    explicitness,
    factor_vae_score,
    mig,
    modularity,
    posterior_means,
    sap,
)
from ppl_vae.evaluate.disentanglement.resampling import spread
from ppl_vae.evaluate.held_out import held_out

QUICK = {"num_resamples": 0}
#: Every number that a metric gives, of codes and factors.
SCORES = {
    "mig": lambda z, v: mig(z, v, **QUICK).score.value,
    "disentanglement": lambda z, v: dci(z, v, **QUICK).disentanglement.value,
    "completeness": lambda z, v: dci(z, v, **QUICK).completeness.value,
    "error": lambda z, v: dci(z, v, **QUICK).error.value,
    "sap": lambda z, v: sap(z, v, **QUICK).score.value,
    "factor_vae": lambda z, v: factor_vae_score(z, v, **QUICK).value,
    "beta_vae": lambda z, v: beta_vae_score(z, v, **QUICK).value,
    "modularity": lambda z, v: modularity(z, v, **QUICK).value,
    "explicitness": lambda z, v: explicitness(z, v, **QUICK).value,
}
METRICS = {
    "mig": mig, "dci": dci, "sap": sap, "factor_vae_score": factor_vae_score,
    "beta_vae_score": beta_vae_score, "modularity": modularity, "explicitness": explicitness,
}  # fmt: skip


def grid(*sizes, repeat):
    """Every combination of values as often: no factor tells about another."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).repeat(repeat, 1)


def drawn(num, *sizes):
    """Independent factors, even over their values."""
    return torch.stack([torch.randint(size, (num,)) for size in sizes], dim=1)


def noisy(num=600, seed=1):
    """Codes between perfect and useless, and their factors."""
    torch.manual_seed(seed)
    v = drawn(num, 3, 4)
    z = torch.cat([v.double(), torch.zeros(num, 1)], 1)
    return z + torch.randn(num, 3) * torch.tensor([0.5, 1.5, 1.0]), v


def rotated(z):
    """Two codes of equal scale, by 45 degrees."""
    return torch.stack([z[:, 0] + z[:, 1], z[:, 0] - z[:, 1]], dim=1) / math.sqrt(2)


def within(samples, truth):
    """The mean of independent values within 5 standard errors of the truth."""
    samples = torch.as_tensor(samples)
    error = samples.std() / math.sqrt(len(samples))
    assert error > 0
    assert abs(samples.mean() - truth) <= 5 * error


# -------------------------------------------------------------------------------- codes well known

EXACT = ("mig", "disentanglement", "completeness", "factor_vae", "beta_vae", "modularity")


@pytest.mark.parametrize("name", EXACT)
def test_a_code_that_is_the_factor_has_the_full_score(name):
    v = grid(3, 5, repeat=40)
    assert SCORES[name](v.double(), v) == pytest.approx(1, abs=1e-12)
    assert SCORES[name](v.flip(1).double(), v) == pytest.approx(1, abs=1e-12)
    assert SCORES[name](-3 * v.double() + 7, v) == pytest.approx(1, abs=1e-12)


def test_a_code_that_is_the_factor_leaves_no_error():
    v = grid(3, 5, repeat=40)
    assert SCORES["error"](v.double(), v) == 0


@pytest.mark.parametrize("size", [2, 3, 8, 32])
def test_sap_of_a_perfect_code_is_short_by_what_the_second_best_guesses(size):
    v = drawn(1200, size, 4)
    found = sap(v.double(), v, **QUICK)
    assert (found.predictability.diagonal() == 1).all()
    num_held = sum(round(count / 2) for count in v[:, 0].bincount().tolist())
    deviation = math.sqrt((size - 1) / num_held) / size
    assert abs(found.by_factor.value[0] - (1 - 1 / size)) <= 5 * deviation


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_explicitness_of_one_dimension_is_short_by_what_lies_between(size):
    v = grid(size, repeat=60).reshape(-1, 1)
    line = torch.cat([v.double(), torch.zeros(len(v), 1)], dim=1)
    k = np.arange(1, size + 1)
    expected = (np.maximum(k - 1, size - k) / (size - 1)).mean()
    assert SCORES["explicitness"](line, v) == pytest.approx(expected, abs=1e-12)
    assert SCORES["explicitness"](one_hot(v[:, 0]).double(), v) == 1


def test_mig_knows_no_more_values_than_bins():
    v = grid(40, 2, repeat=10)
    found = mig(v.double(), v, **QUICK)
    expected = torch.tensor([math.log(20) / math.log(40), 1.0])
    torch.testing.assert_close(found.by_factor.value, expected)
    assert mig(v.double(), v, num_bins=40, **QUICK).score.value == pytest.approx(1, abs=1e-12)
    assert found.information[0, 0].item() == pytest.approx(math.log(20))
    torch.testing.assert_close(found.entropy, torch.tensor([40.0, 2.0]).log())


@pytest.mark.parametrize("name", [n for n in SCORES if n not in ("disentanglement", "completeness",
                                                                "error")])  # fmt: skip
def test_order_and_scale_of_codes_do_not_matter(name):
    z, v = noisy()
    score = SCORES[name](z, v)
    assert 0.1 < score < 1
    assert SCORES[name](z[:, [2, 0, 1]], v) == pytest.approx(score, abs=1e-4)
    # Powers of two, which change no digit.
    assert SCORES[name](z * torch.tensor([-4.0, 0.5, 2.0]), v) == pytest.approx(score, abs=1e-9)
    # The names of values do not matter, nor their order among the rows.
    names = torch.tensor([7.5, -1.0, 3.25, 2.0])
    if name in ("mig", "modularity"):
        assert SCORES[name](z, names[v]) == pytest.approx(score, abs=1e-12)


def test_order_and_scale_of_codes_do_not_matter_to_forests():
    z, v = noisy(1000)
    one, two = (dci(code, v, num_trees=25) for code in (z, 4 * z[:, [2, 0, 1]]))
    for name in ("disentanglement", "completeness", "error"):
        a, b = getattr(one, name), getattr(two, name)
        assert 0.1 < a.value < 0.9
        # Other trees, and other halves of the same rows.
        assert abs(a.value - b.value) <= 5 * math.hypot(a.standard_error, b.standard_error)
    torch.testing.assert_close(one.importance.sum(0), torch.ones(2))
    assert one.importance.argmax(0).tolist() == [0, 1]
    assert two.importance.argmax(0).tolist() == [1, 2]


def test_a_rotation_hides_factors_from_single_codes_only():
    v = grid(4, 4, repeat=50)
    straight, turned = v.double(), rotated(v.double())
    for name in ("mig", "modularity"):
        assert SCORES[name](turned, v) == pytest.approx(0, abs=1e-12)
    found = sap(turned, v, **QUICK)
    # One code tells as much as the other, but for the half that is held out of it.
    deviation = math.sqrt(2 * 0.25 / 400)
    assert found.score.value <= 5 * deviation and (found.predictability > 0.3).all()
    found = dci(turned, v, **QUICK)
    assert found.disentanglement.value < 0.05 and found.completeness.value < 0.05
    tables = [drawn(800, 4, 4) for _ in range(8)]
    # Whichever factor is fixed, both codes vary as much, and one always less than in all rows.
    assert SCORES["factor_vae"](rotated(tables[0].double()), tables[0]) == 0.5
    within([SCORES["beta_vae"](rotated(w.double()), w) for w in tables], 0.5)
    assert SCORES["explicitness"](turned, v) == pytest.approx(
        SCORES["explicitness"](straight, v), abs=1e-4
    )


def test_two_equal_codes_of_a_factor_cost_completeness():
    v = grid(3, 5, repeat=40)
    z = v.double()[:, [0, 0, 1]]
    found = dci(z, v, **QUICK)
    assert found.disentanglement.value == pytest.approx(1, abs=1e-12)
    assert found.by_factor.value[1] == pytest.approx(1, abs=1e-12)
    # Trees take either; the share of 50 of them is 1/2 up to 5 standard errors.
    share = found.importance[0, 0].item()
    assert abs(share - 0.5) <= 5 * 0.5 / math.sqrt(50)
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert found.by_factor.value[0].item() == pytest.approx(1 - entropy / math.log(3))
    gaps = mig(z, v, **QUICK).by_factor.value
    torch.testing.assert_close(gaps, torch.tensor([0.0, 1.0]), atol=1e-12, rtol=0)
    assert sap(z, v, **QUICK).by_factor.value[0] == 0
    for name in ("factor_vae", "beta_vae", "modularity"):
        assert SCORES[name](z, v) == pytest.approx(1, abs=1e-12)


def test_one_code_of_two_factors_costs_disentanglement():
    v = grid(3, 4, repeat=50)
    z = torch.stack([4.0 * v[:, 0] + v[:, 1], torch.zeros(len(v))], dim=1)
    found = dci(z, v, **QUICK)
    assert found.disentanglement.value == pytest.approx(0, abs=1e-12)
    assert found.completeness.value == pytest.approx(1, abs=1e-12)
    assert found.error.value == 0
    torch.testing.assert_close(found.importance, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    expected = 1 - (math.log(3) / math.log(4)) ** 2
    assert modularity(z, v, **QUICK).value == pytest.approx(expected, abs=1e-12)
    assert factor_vae_score(z, v, **QUICK).value == 0.5
    # The gap between codes does not see it.
    assert mig(z, v, **QUICK).score.value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("num_noise", [0, 1, 3])
def test_a_factor_without_a_code_is_missed_by_one_metric_and_not_by_the_other(num_noise):
    scores = []
    for _ in range(12):
        v, noise = drawn(1000, 4, 4, 4), drawn(1000, *[4] * num_noise) if num_noise else None
        z = v[:, :2] if noise is None else torch.cat([v[:, :2], noise], dim=1)
        scores.append(SCORES["factor_vae"](z.double(), v))
        assert scores[-1] < 1
    assert SCORES["beta_vae"](z.double(), v) == 1
    if num_noise:
        within(scores, (2 + num_noise / (2 + num_noise)) / 3)
    else:
        assert scores == [2 / 3] * 12


def test_collapsed_codes_tell_nothing():
    v = grid(3, 3, repeat=50)
    z = torch.ones(len(v), 4)
    expected = {
        "mig": 0, "disentanglement": 0, "completeness": 0, "error": 2 / 3, "sap": 0,
        "factor_vae": 0.5, "beta_vae": 0.5, "modularity": math.nan, "explicitness": 0.5,
    }  # fmt: skip
    found = {name: score(z, v) for name, score in SCORES.items()}
    assert found == pytest.approx(expected, nan_ok=True)


def test_codes_below_the_threshold_are_not_looked_at():
    v = grid(4, 4, repeat=25)
    z = torch.cat([v.double(), 0.05 * v[:, :1].double()], dim=1)  # a variance of 0.003
    assert sap(z, v, **QUICK).predictability[2].tolist() == [0, 0]
    assert sap(z, v, threshold=0.001, **QUICK).predictability[2, 0] == 1
    assert sap(z, v, continuous=[0, 1], **QUICK).predictability[2].tolist() == [0, 0]
    small = 0.05 * v.double()
    assert factor_vae_score(small, v, **QUICK).value == 0.5
    assert factor_vae_score(small, v, threshold=0.001, **QUICK).value == 1


# --------------------------------------------------------------------------------------- by chance


def noise_information(num, sizes, num_codes, num_bins=20):
    """Draws of the information that relative frequencies find in noise, `[num, D, F]`, times 2 N.

    Chi-squared with (bins - 1) (values - 1) degrees of freedom.
    """
    degrees = torch.tensor([(num_bins - 1) * (size - 1) for size in sizes]).double()
    return dist.Chi2(degrees).sample((num, num_codes))


def test_mig_of_noise_is_that_of_relative_frequencies():
    num, sizes, num_codes = 4000, (3, 4), 5
    gaps, information = [], []
    for _ in range(20):
        found = mig(torch.rand(num, num_codes), drawn(num, *sizes), **QUICK)
        gaps.append(found.score.value)
        information.append(found.information.mean(0))
    chance = noise_information(4000, sizes, num_codes) / (2 * num)
    top = chance.topk(2, dim=1).values
    expected = ((top[:, 0] - top[:, 1]) / torch.tensor(sizes).double().log()).mean()
    within(gaps, expected)
    assert max(gaps) < 0.01
    for f, size in enumerate(sizes):
        within([row[f] for row in information], 19 * (size - 1) / (2 * num))


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 3, 3), (2, 8)])
def test_modularity_of_noise_is_not_0(sizes):
    scores = [
        modularity(torch.rand(4000, 5), drawn(4000, *sizes), **QUICK).value for _ in range(20)
    ]
    square = noise_information(20_000, sizes, 1)[:, 0] ** 2
    best = square.max(1).values
    expected = 1 - ((square.sum(1) - best) / (best * (len(sizes) - 1))).mean()
    within(scores, expected)
    assert expected > 0.3


def test_forests_on_noise_have_no_favourites():
    v = drawn(2000, 3, 4)
    found = dci(torch.randn(2000, 4), v, num_trees=30, **QUICK)
    assert 0 <= found.disentanglement.value < 0.05 and 0 <= found.completeness.value < 0.05
    for f, size in enumerate((3, 4)):
        deviation = math.sqrt((size - 1) / size**2 / 1000)
        assert abs(found.errors.value[f] - (1 - 1 / size)) <= 5 * deviation
    number = dci(torch.randn(1000, 2), v[:1000], continuous=[0, 1], num_trees=30, **QUICK)
    assert (number.errors.value > 1).all() and (number.errors.value < 1.2).all()


def test_sap_of_noise_is_a_distance_of_accuracies():
    v = drawn(2000, 3, 4)
    found = sap(torch.randn(2000, 3), v, **QUICK)
    for f, size in enumerate((3, 4)):
        deviation = math.sqrt((size - 1) / 1000) / size
        assert ((found.predictability[:, f] - 1 / size).abs() <= 5 * deviation).all()
        assert 0 < found.by_factor.value[f] <= 5 * math.sqrt(2) * deviation
    number = sap(torch.randn(2000, 3), v, continuous=[0, 1], **QUICK).predictability
    assert (number <= 25 / 2000).all() and (number > 0).all()


# Few rows a value: what a classifier could learn of the rows must not count as disentangled.
@pytest.mark.parametrize("sizes", [(3, 4, 5), (2, 100)])
@pytest.mark.parametrize("name", ["factor_vae", "beta_vae"])
def test_noise_tells_no_better_than_a_guess_which_factor_was_fixed(name, sizes):
    scores = [SCORES[name](torch.randn(600, 5), drawn(600, *sizes)) for _ in range(25)]
    within(scores, 1 / len(sizes))


def test_explicitness_of_noise_is_a_half():
    scores = [SCORES["explicitness"](torch.randn(400, 3), drawn(400, 3, 4)) for _ in range(15)]
    within(scores, 0.5)


# -------------------------------------------------------------------------- formulas, written again


def test_information_is_that_of_a_double_loop():
    z, v = noisy(300)
    found = mig(z, v, num_bins=7, **QUICK)
    for i in range(3):
        low, high = z[:, i].min(), z[:, i].max()
        edges = [low + (high - low) * k / 7 for k in range(1, 7)]
        binned = [sum(bool(value >= edge) for edge in edges) for value in z[:, i]]
        for j in range(2):
            total = 0.0
            for b in range(7):
                for k in range(4):
                    p = np.mean([x == b and y == k for x, y in zip(binned, v[:, j], strict=True)])
                    p_b, p_k = np.mean([x == b for x in binned]), (v[:, j] == k).double().mean()
                    total += p * math.log(p / (p_b * p_k)) if p > 0 else 0.0
            assert found.information[i, j].item() == pytest.approx(total, abs=1e-12)
            assert mutual_info_score(binned, v[:, j]) == pytest.approx(total, abs=1e-12)
    shares = (v[:, 1].bincount() / 300).tolist()
    entropy = -sum(p * math.log(p) for p in shares)
    assert found.entropy[1].item() == pytest.approx(entropy)
    first, second = sorted(found.information[:, 1].tolist(), reverse=True)[:2]
    assert found.by_factor.value[1].item() == pytest.approx((first - second) / entropy)
    assert found.score.value == pytest.approx(found.by_factor.value.mean().item())


def test_modularity_is_its_formula():
    z, v = noisy(300)
    m = mig(z, v, num_bins=7, **QUICK).information
    scores = []
    for row in m.tolist():
        best = row.index(max(row))
        template = [max(row) if f == best else 0.0 for f in range(2)]
        delta = sum((a - b) ** 2 for a, b in zip(row, template, strict=True)) / max(row) ** 2
        scores.append(1 - delta)  # F - 1 is 1
    assert modularity(z, v, num_bins=7, **QUICK).value == pytest.approx(np.mean(scores))
    with_dead = torch.cat([z, torch.ones(300, 2)], dim=1)
    assert modularity(with_dead, v, num_bins=7, **QUICK).value == pytest.approx(np.mean(scores))


def test_modularity_divides_by_the_other_factors():
    v = grid(2, 2, 2, repeat=10)
    z = torch.stack([2.0 * v[:, 0] + v[:, 1], v[:, 2].double()], dim=1)
    # Two of three factors in one code: delta is 1 / (3 - 1).
    assert modularity(z, v, **QUICK).value == pytest.approx((0.5 + 1) / 2, abs=1e-12)


def test_dci_is_its_formula():
    z, v = noisy(600)
    found = dci(z, v, **QUICK)
    r = found.importance.numpy()
    disentanglement = completeness = 0.0
    for i in range(3):
        p = r[i] / r[i].sum()
        one = 1 + sum(q * math.log(q, 2) for q in p)
        assert found.by_code.value[i].item() == pytest.approx(one)
        disentanglement += r[i].sum() / r.sum() * one
    for j in range(2):
        one = 1 + sum(q * math.log(q, 3) for q in r[:, j] / r[:, j].sum())
        assert found.by_factor.value[j].item() == pytest.approx(one)
        completeness += one / 2
    assert found.disentanglement.value == pytest.approx(disentanglement)
    assert found.completeness.value == pytest.approx(completeness)
    assert found.error.value == pytest.approx(found.errors.value.mean().item())


def test_forests_are_tested_on_what_they_have_not_seen():
    v = drawn(400, 10, 10)
    found = dci(torch.randn(400, 6), v, **QUICK)
    # Of rows that it has seen a forest tells most.
    deviation = math.sqrt(0.09 / 200)
    assert ((found.errors.value - 0.9).abs() <= 5 * deviation).all()


def test_numbers_are_told_by_their_error():
    torch.manual_seed(3)
    v = torch.rand(2000, 2)
    z = v + 0.1 * torch.randn(2000, 2)
    found = dci(z, v, continuous=[0, 1], **QUICK)
    # The best that can be done: the noise of a mean given z, between edges.
    best = 0.1 * math.sqrt(12)
    assert (found.errors.value > 0.8 * best).all() and (found.errors.value < 1.3 * best).all()
    assert found.disentanglement.value > 0.8


@pytest.mark.parametrize("num_train, share", [(2000, 0.5), (300, 0.5), (90, 0.85)])
def test_sap_is_its_formula(num_train, share):
    z, v = noisy(600)
    found = sap(z, v, seed=4, num_train=num_train, **QUICK)
    generator = np.random.default_rng(4)
    generator.multinomial(600, np.full(600, 1 / 600), size=0)
    for f in range(2):
        y = v[:, f].numpy()
        held = held_out(y, share, generator)
        for i in range(3):
            code = z[:, [i]].numpy()
            code = (code - code[~held].mean()) / code[~held].std()
            machine = SVC(C=100, kernel="linear", class_weight="balanced").fit(
                code[~held], y[~held]
            )
            expected = balanced_accuracy_score(y[held], machine.predict(code[held]))
            assert found.predictability[i, f].item() == pytest.approx(expected)
    ordered = found.predictability.sort(0).values
    torch.testing.assert_close(found.by_factor.value, ordered[2] - ordered[1])
    assert found.score.value == pytest.approx(found.by_factor.value.mean().item())
    number = sap(z, v, continuous=(1,), **QUICK).predictability
    for i in range(3):
        expected = np.corrcoef(z[:, i], v[:, 1])[0, 1] ** 2
        assert number[i, 1].item() == pytest.approx(expected, abs=1e-12)


def test_the_area_is_that_of_pairs():
    from ppl_vae.evaluate.disentanglement.explicitness import _area

    score = np.random.default_rng(0).integers(6, size=40) / 2.0  # with ties
    has = np.random.default_rng(1).random(40) < 0.3
    weight = np.stack([np.ones(40), np.random.default_rng(2).integers(3, size=40)])
    wins = pairs = 0.0
    for a in range(40):
        for b in range(40):
            if has[a] and not has[b]:
                w = weight[1, a] * weight[1, b]
                wins += w * ((score[a] > score[b]) + 0.5 * (score[a] == score[b]))
                pairs += w
    found = _area(score, has, weight)
    assert found == pytest.approx([roc_auc_score(has, score), wins / pairs])
    assert np.isnan(_area(score, has, np.stack([has, ~has]).astype(float))).all()


def test_what_is_held_out_is_a_share_of_each_class():
    classes = np.array([5] * 10 + [-1] * 4 + [2] * 2 + [9])
    generator = np.random.default_rng(0)
    masks = np.stack([held_out(classes, 0.3, generator) for _ in range(200)])
    for value, expected in ((5, 3), (-1, 1), (2, 1), (9, 0)):
        assert (masks[:, classes == value].sum(1) == expected).all()
    # Each row of a class as often as the others.
    assert (abs(masks[:, :10].mean(0) - 0.3) <= 5 * math.sqrt(0.21 / 200)).all()
    assert (held_out(classes, 0.999, generator)[:10].sum()) == 9


# ---------------------------------------------------------------------------------- standard errors


def test_the_spread_is_that_of_the_resamples():
    scores = np.array([[5.0, 0.0], [1.0, 3.0], [2.0, 3.0], [4.0, 9.0]])
    found = spread(scores)
    assert found.value.tolist() == [5, 0]
    expected = [statistics.stdev([1, 2, 4]), statistics.stdev([3, 3, 9])]
    assert found.standard_error.tolist() == pytest.approx(expected)
    assert spread(scores[:, 0]) == Estimate(5.0, pytest.approx(expected[0]))


def test_the_standard_error_is_the_spread_over_other_data():
    found = {name: [] for name in ("mig", "modularity", "factor_vae")}
    for seed in range(80):
        z, v = noisy(500, seed)
        found["mig"].append(mig(z, v, num_bins=6, **QUICK).score.value)
        found["modularity"].append(modularity(z, v, num_bins=6, **QUICK).value)
        found["factor_vae"].append(factor_vae_score(z, v, batch_size=8, seed=seed, **QUICK).value)
    z, v = noisy(500, 100)
    errors = {
        "mig": mig(z, v, num_bins=6).score.standard_error,
        "modularity": modularity(z, v, num_bins=6).standard_error,
        "factor_vae": factor_vae_score(z, v, batch_size=8, num_resamples=60).standard_error,
    }
    for name, scores in found.items():
        num_resamples = 60 if name == "factor_vae" else 100
        # The relative error of a standard deviation of n normals is 1 / sqrt(2 n).
        tolerance = 5 * math.sqrt(1 / (2 * 80) + 1 / (2 * num_resamples))
        assert abs(math.log(errors[name] / np.std(scores, ddof=1))) <= tolerance, name


def test_the_standard_error_of_an_accuracy_is_that_of_its_held_out_rows():
    z, v = noisy(1000)
    found = sap(z, v[:, :1], num_resamples=500)
    p, q = (found.predictability[:, 0].topk(2).values).tolist()
    # Of two accuracies in as many rows, were they independent; the second is a guess, nearly so.
    independent = math.sqrt((p * (1 - p) + q * (1 - q)) / 500)
    assert 0.5 < found.score.standard_error / independent < 1.2
    assert found.by_factor.standard_error.shape == (1,)
    assert found.by_factor.standard_error.item() == pytest.approx(found.score.standard_error)


@pytest.mark.parametrize("name", METRICS)
def test_estimates_have_standard_errors_or_say_that_they_have_none(name):
    z, v = noisy(200)
    for num_resamples in (0, 3):
        result = METRICS[name](z, v, num_resamples=num_resamples)
        estimates = [result] if isinstance(result, Estimate) else list(vars(result).values())
        for estimate in (e for e in estimates if isinstance(e, Estimate)):
            value, error = (torch.as_tensor(x) for x in (estimate.value, estimate.standard_error))
            assert value.shape == error.shape and value.dtype == error.dtype == torch.float64
            assert value.isfinite().all()
            assert error.isnan().all() if num_resamples == 0 else (error >= 0).all()
            if value.dim() == 0:
                assert type(estimate.value) is type(estimate.standard_error) is float
                assert num_resamples == 0 or error > 0


@pytest.mark.parametrize("name", METRICS)
def test_the_seed_is_all_there_is_to_it(name):
    z, v = noisy(200)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one, two, other = (str(METRICS[name](z, v, num_resamples=3, seed=s)) for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()


# -------------------------------------------------------------------------------- codes of a guide


def linear_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        first = pyro.sample("a", dist.Normal(x[:, :2] * 2, 0.5).to_event(1))
        pyro.sample("b", dist.Normal(first.sum(-1), 0.5))
        pyro.sample("class", dist.Categorical(logits=x))


def test_codes_are_posterior_means_beside_labels():
    x, labels = torch.rand(30, 3), torch.randint(4, (20,))
    factors = drawn(10, 3, 2).float()
    data = Splits(
        x[:5], x[5:10], x[:20], labels={"test": labels}, label_names=("label",), name="toy"
    )
    codes, found = codes_and_factors(linear_guide, data, num_particles=3, seed=2)
    means = posterior_means(linear_guide, x[:20], num_particles=3, seed=2)
    assert torch.equal(codes, torch.cat([means["a"], means["b"]], dim=1)) and codes.shape == (20, 3)
    assert torch.equal(found, labels.unsqueeze(1))
    codes, _ = codes_and_factors(linear_guide, data, sites=["b", "a"], num_particles=3, seed=2)
    assert torch.equal(codes, torch.cat([means["b"], means["a"]], dim=1))
    codes, _ = codes_and_factors(linear_guide, data, sites=["a"])
    torch.testing.assert_close(codes, 2 * x[:20, :2])
    data = Splits(x, x[:10], labels={"valid": factors}, label_names=("f", "g"))
    codes, found = codes_and_factors(linear_guide, data, split="valid", sites=["a"])
    assert torch.equal(found, factors) and torch.allclose(codes, 2 * x[:10, :2])


def test_what_has_no_codes_or_no_factors_says_so():
    data = Splits(torch.rand(5, 3), labels={"train": torch.arange(5)}, label_names=("label",))
    with pytest.raises(ValueError, match=r"split 'test' has no labels; .* are \['train'\]"):
        codes_and_factors(linear_guide, data)
    with pytest.raises(ValueError, match=r"sites is \['z'\]; accepted are .* \['a', 'b'\]"):
        codes_and_factors(linear_guide, data, split="train", sites=["z"])
    with pytest.raises(ValueError, match=r"sites is \[\]; accepted are"):
        codes_and_factors(linear_guide, data, split="train", sites=[])


def places(x):
    """Where the white pixels are, how many, and nothing."""
    weight = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
    axis = torch.arange(64.0, dtype=x.dtype)
    found = (weight.sum(1) @ axis, weight.sum(2) @ axis, x[:, 0].mean((1, 2)), x[:, 0, 0, 0])
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.stack(found, -1), 0.1).to_event(1))


def test_sprites_are_told_by_where_they_are():
    index = [torch.randint(len(values), (800,)) for values in SPRITE_GRID.values()]
    factors = torch.stack([v[i] for v, i in zip(SPRITE_GRID.values(), index, strict=True)], dim=1)
    x = render_sprites(factors)
    data = Splits(x[:10], test=x, labels={"test": factors}, label_names=tuple(SPRITE_GRID))
    codes, factors = codes_and_factors(places, data)
    assert codes.shape == (800, 4) and factors.shape == (800, 5)
    found = mig(codes, factors, **QUICK)
    told = found.information.argmax(0)
    assert told[1] == 2 and told[3] == 0 and told[4] == 1  # scale by area, x and y
    # 32 values in 20 bins.
    best = mig(factors, factors, **QUICK).information.diagonal()
    assert (best[3:] < math.log(20)).all()
    assert (found.information[[0, 1], [3, 4]] > 0.75 * best[3:]).all()
    gaps = sap(codes, factors, continuous=[1, 2, 3, 4], **QUICK)
    assert (gaps.predictability[[0, 1], [3, 4]] > 0.99).all()
    importance = dci(codes, factors, continuous=[1, 2, 3, 4], num_trees=10, **QUICK)
    assert (importance.by_factor.value[3:] > 0.9).all()


# ------------------------------------------------------------------------------------------ errors

Z, V = torch.linspace(0, 1, 24).reshape(12, 2), grid(3, 4, repeat=1)
BAD = {
    "no tensor": ({"codes": Z.numpy()}, "codes is of ndarray; accepted is a Tensor of floats"),
    "integer codes": ({"codes": V}, r"codes is of torch.int64; accepted is a Tensor of floats"),
    "one code": ({"codes": Z[:, :1]},
                 r"codes has the shape \[12, 1\]; accepted is \[N, D\], D >= 2"),
    "flat codes": ({"codes": Z[:, 0]}, r"codes has the shape \[12\]; accepted is \[N, D\]"),
    "nan": ({"codes": Z.where(Z > 0.1, math.nan)},
            "codes holds 3 values that are NaN or infinite; accepted are finite values"),
    "no factors": ({"factors": None}, "factors is a NoneType; accepted is a Tensor"),
    "flat factors": ({"factors": V[:, 0]},
                     r"factors has the shape \[12\]; accepted is \[N, F\], N = 12 as in codes"),
    "other rows": ({"factors": V[:7]}, r"factors has the shape \[7, 2\]; accepted is \[N, F\]"),
    "infinite": ({"factors": torch.where(V == 1, math.inf, V)},
                 "factors holds 7 values that are NaN or infinite"),
    "constant": ({"factors": torch.stack([V[:, 0], torch.full((12,), 4)], 1)},
                 "factor 1 is 4 in every row; accepted are factors of two values or more"),
    "continuous": ({"factors": torch.cat([Z[:, :1], V[:, :1]], 1)},
                   "factor 0 has 12 values in 12 rows; accepted are discrete factors, of at"),
    "one row": ({"factors": torch.stack([V[:, 0], (torch.arange(12) == 3).long()], 1)},
                "factor 1 has one value in all rows but 1; accepted are factors of which two"),
    "seed": ({"seed": -1}, "seed is -1; accepted is an integer >= 0"),
    "resamples": ({"num_resamples": 1},
                  "num_resamples is 1; accepted is an integer >= 2, or 0 for no standard error"),
    "no count": ({"num_resamples": True}, "num_resamples is True; accepted is an integer >= 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", METRICS)
def test_bad_input_is_named(name, case):
    bad, message = BAD[case]
    who = "" if case == "seed" else f"{name}: "
    with pytest.raises(ValueError, match=f"^{who}{message}"):
        METRICS[name](**{"codes": Z, "factors": V, **bad})


@pytest.mark.parametrize("name", ["dci", "factor_vae_score", "beta_vae_score", "modularity"])
def test_one_factor_is_too_few_for_some(name):
    with pytest.raises(ValueError, match=rf"{name}: factors .* \[12, 1\]; .* F >= 2"):
        METRICS[name](Z, V[:, :1])


@pytest.mark.parametrize(
    "name, bad",
    [
        ("mig", "num_bins"), ("modularity", "num_bins"), ("dci", "num_trees"), ("sap", "num_train"),
        ("factor_vae_score", "num_batches"), ("factor_vae_score", "batch_size"),
        ("beta_vae_score", "num_differences"), ("beta_vae_score", "num_pairs"),
    ],
)  # fmt: skip
def test_bad_numbers_are_named(name, bad):
    with pytest.raises(ValueError, match=f"{name}: {bad} is 0; accepted is an integer >= 1"):
        METRICS[name](Z, V, **{bad: 0})


def test_batches_of_one_row_have_no_variance():
    with pytest.raises(ValueError, match="batch_size is 1; accepted is an integer >= 2"):
        factor_vae_score(Z, V, batch_size=1)


@pytest.mark.parametrize("metric", [factor_vae_score, beta_vae_score])
def test_rows_that_never_agree_cannot_be_drawn_together(metric):
    # Of four rows no half agrees in both factors.
    with pytest.raises(
        ValueError, match="half of the 4 rows hold no two that agree in factor [01]"
    ):
        metric(torch.randn(4, 2), grid(2, 2, repeat=1))


@pytest.mark.parametrize("metric", [sap, dci])
def test_continuous_factors_are_columns(metric):
    v = torch.cat([Z[:, :1], V[:, :1]], 1)
    with pytest.raises(ValueError, match=r"or continuous=\[0\]"):
        metric(Z, v)
    metric(Z, v, continuous=[0], **QUICK)
    for bad in ([2], [-1]):
        with pytest.raises(ValueError, match=r"continuous is .*; accepted are columns .* 0 to 1"):
            metric(Z, v, continuous=bad)
