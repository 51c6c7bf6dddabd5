"""Accuracies of a linear probe and of nearest neighbours, on codes whose accuracy is known.

Shapes: N rows, D code dimensions, M held-out rows.
"""

import math
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from ppl_vae.evaluate import knn_accuracy, linear_probe
from ppl_vae.evaluate.held_out import held_out

PROBES = {"linear_probe": linear_probe, "knn_accuracy": knn_accuracy}


def turned(z):
    """The first two codes by 45 degrees."""
    a, b = z[:, 0], z[:, 1]
    return torch.stack([a + b, a - b, *z.T[2:]], dim=1) / math.sqrt(2)


def overlapping(num, seed=0):
    """Two normals in two dimensions, 2 apart along the diagonal; a line gets Phi(1) right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (num,), generator=generator)
    z = torch.randn(num, 2, generator=generator)
    return z + math.sqrt(0.5) * (2 * labels.unsqueeze(1) - 1), labels


@pytest.mark.parametrize("name", PROBES)
def test_classes_that_lie_apart_are_told(name):
    labels = torch.arange(4).repeat(30)
    z = 10 * one_hot(labels).double() + torch.randn(120, 4)
    for codes in (z, turned(z), z[:, [3, 1, 0, 2]], 4 * z, z.float()):
        found = PROBES[name](codes, labels)
        assert (found.value, found.standard_error) == (1.0, 0.0)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_noise_tells_no_better_than_a_guess(name, num_classes):
    labels = torch.arange(num_classes).repeat(2000 // num_classes)
    found = PROBES[name](torch.randn(len(labels), 3), labels)
    p = 1 / num_classes
    assert abs(found.value - p) <= 5 * math.sqrt(p * (1 - p) / (len(labels) // 2))


def test_noise_of_unlike_classes_is_told_by_their_shares():
    labels = torch.tensor([0, 0, 0, 1]).repeat(500)
    z = torch.randn(2000, 2)
    assert linear_probe(z, labels).value == 0.75
    # A neighbour is of each class by its share.
    found = knn_accuracy(z, labels, num_neighbors=1)
    assert abs(found.value - (0.75**2 + 0.25**2)) <= 5 * math.sqrt(0.625 * 0.375 / 1000)


def test_a_linear_probe_is_as_good_as_the_best_line():
    z, labels = overlapping(8000)
    found = linear_probe(z, labels)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert abs(found.value - best) <= 5 * found.standard_error
    # Turned, one code has all there is; the other is noise.
    assert abs(linear_probe(turned(z), labels).value - found.value) < 1e-3
    alone = turned(z)
    assert abs(linear_probe(alone[:, 1:], labels).value - 0.5) <= 5 * math.sqrt(0.25 / 4000)
    assert abs(linear_probe(alone[:, :1], labels).value - best) <= 5 * found.standard_error


def test_a_line_does_not_tell_what_neighbours_tell():
    z = torch.rand(1000, 2) * 2 - 1
    labels = (z[:, 0] * z[:, 1] > 0).long()
    assert knn_accuracy(z, labels).value > 0.9
    assert linear_probe(z, labels).value < 0.7


def test_the_answer_is_that_of_the_nearest():
    z, labels = overlapping(300)
    test = overlapping(100, seed=1)
    for k in (1, 7):
        right = 0
        for point, label in zip(*test, strict=True):
            near = ((z - point) ** 2).sum(1).argsort()[:k]
            right += labels[near].bincount(minlength=2).argmax() == label
        found = knn_accuracy(z, labels, num_neighbors=k, test=test)
        assert found.value == pytest.approx(right.item() / 100)
        p = found.value
        assert found.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 100))


def penalized(z, labels, c):
    """Weights and intercept that minimize the logistic loss plus |w|^2 / (2 C), by Newton."""
    rows = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    penalty = torch.tensor([1 / c, 1 / c, 0.0])
    w = torch.zeros(3)
    for _ in range(30):
        p = (rows @ w).sigmoid()
        slope = rows.mT @ (p - labels) + penalty * w
        curvature = rows.mT @ (rows * (p * (1 - p)).unsqueeze(1)) + penalty.diag()
        w = w - torch.linalg.solve(curvature, slope)
    assert slope.norm() < 1e-8
    return w


def test_the_probe_is_the_minimum_of_its_penalized_loss():
    labels = (torch.arange(400) < 40).long()
    z, test = torch.randn(400, 2) + labels.unsqueeze(1), torch.randn(2000, 2) + 0.5
    z, test = 0.01 * z, 0.01 * test  # standardized, they are penalized no more for it
    mean, scale = z.mean(0), z.std(0, correction=0)
    shares = []
    for c in (1.0, 1e-2):
        w = penalized((z - mean) / scale, labels, c)
        answers = ((test - mean) / scale @ w[:2] + w[2] > 0).long()
        found = linear_probe(z, labels, test=(test, answers), inverse_penalty=c)
        assert found.value >= 1 - 2 / 2000  # but for rows on the line itself
        shares.append(answers.double().mean())
    assert shares[0] > shares[1] + 0.02  # the penalty tells


def test_scale_matters_to_neighbours_only():
    z, labels = overlapping(600)
    noise = torch.randn(600, 1)
    small, large = torch.cat([z, 0.01 * noise], 1), torch.cat([z, 128 * noise], 1)
    assert linear_probe(large, labels).value == linear_probe(small, labels).value > 0.75
    assert knn_accuracy(small, labels).value - knn_accuracy(large, labels).value > 0.1


@pytest.mark.parametrize("name", PROBES)
def test_rows_are_held_out(name):
    z, labels = overlapping(400)
    shuffled = labels[torch.randperm(400)]
    how = {"num_neighbors": 1} if name == "knn_accuracy" else {}
    found = PROBES[name](z, shuffled, test=(z, shuffled), **how)
    held = PROBES[name](z, shuffled, **how)
    assert abs(held.value - 0.5) <= 5 * math.sqrt(0.25 / 200)
    assert found.value == 1 if how else found.value >= 0.5
    mask = held_out(labels.numpy(), 0.25, np.random.default_rng(3))
    parts = (z[~mask], labels[~mask]), (z[mask], labels[mask])
    assert PROBES[name](z, labels, test_share=0.25, seed=3) == PROBES[name](
        *parts[0], test=parts[1]
    )


@pytest.mark.parametrize("name", PROBES)
def test_the_standard_error_is_the_spread_over_held_out_data(name):
    z, labels = overlapping(300)
    values = [
        PROBES[name](z, labels, test=overlapping(200, seed=seed)).value for seed in range(1, 101)
    ]
    error = PROBES[name](z, labels, test=overlapping(200, seed=1000)).standard_error
    # The relative error of a standard deviation of n normals is 1 / sqrt(2 n).
    assert abs(math.log(np.std(values, ddof=1) / error)) <= 5 / math.sqrt(2 * 100)


@pytest.mark.parametrize("name", PROBES)
def test_the_seed_is_all_there_is_to_it(name):
    z, labels = overlapping(500)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one, two, other = (PROBES[name](z, labels, seed=seed) for seed in (1, 1, 2))
    assert one == two != other
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()


Z, Y = torch.linspace(0, 1, 24).reshape(12, 2), torch.arange(3).repeat(4)
BAD = {
    "no tensor": ({"codes": Z.tolist()}, "codes is of list; accepted is a Tensor of floats"),
    "integer codes": ({"codes": Z.long()}, "codes is of torch.int64; accepted is a Tensor of"),
    "flat": ({"codes": Z[:, 0]}, r"codes has the shape \[12\]; accepted is \[N, D\], N >= 1"),
    "empty": ({"codes": Z[:0]}, r"codes has the shape \[0, 2\]; accepted is \[N, D\], N >= 1"),
    "nan": ({"codes": Z.where(Z > 0.1, math.nan)},
            "codes holds 3 values that are NaN or infinite; accepted are finite values"),
    "floats": ({"labels": Y.double()},
               r"labels is torch.float64 \[12\]; accepted are integers \[12\], a class for each"),
    "column": ({"labels": Y[:, None]}, r"labels is torch.int64 \[12, 1\]; accepted are integers"),
    "list": ({"labels": Y.tolist()}, "labels is list; accepted are integers"),
    "one class": ({"labels": Y * 0}, "all labels are 0; accepted are two classes or more"),
    "all classes": ({"labels": torch.arange(12)}, "each of the 12 labels is a class of its own"),
    "share": ({"test_share": 1.0}, r"test_share is 1.0; accepted is a number in \(0, 1\)"),
    "share of what": ({"test_share": "half"}, "test_share is 'half'; accepted is a number"),
    "other codes": ({"test": (Z[:, :1], Y)},
                    r"test codes has the shape \[12, 1\]; accepted is \[M, 2\], M >= 1"),
    "other labels": ({"test": (Z, Y[:5])}, r"test labels is torch.int64 \[5\]; accepted are int"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", PROBES)
def test_bad_input_is_named(name, case):
    bad, message = BAD[case]
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        PROBES[name](**{"codes": Z, "labels": Y, **bad})


@pytest.mark.parametrize("name", PROBES)
def test_a_bad_seed_is_named(name):
    with pytest.raises(ValueError, match="seed is -1; accepted is an integer >= 0"):
        PROBES[name](Z, Y, seed=-1)


def test_bad_numbers_are_named():
    for bad in (0, -1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(ValueError, match="inverse_penalty is .*; accepted is a number > 0"):
            linear_probe(Z, Y, inverse_penalty=bad)
    with pytest.raises(ValueError, match="num_neighbors is 0; accepted is an integer >= 1"):
        knn_accuracy(Z, Y, num_neighbors=0)
    with pytest.raises(ValueError, match="num_neighbors is 7 of 6 training rows"):
        knn_accuracy(Z, Y, num_neighbors=7)
