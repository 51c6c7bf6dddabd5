"""Nearest training data against all distances.

Shapes: N samples, T training data, k neighbours.
"""

import math

import pytest
import torch

from ppl_vae.evaluate import nearest_neighbors


def all_distances(samples, train):
    return (samples[:, None] - train[None]).double().flatten(2).square().sum(-1).sqrt()


# -------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("batch_size", [1, 7, 40, 41, 1000])
@pytest.mark.parametrize("num", [1, 5, 41])
def test_neighbors_are_those_of_all_distances(num, batch_size):
    samples, train = torch.randn(9, 2, 3), torch.randn(41, 2, 3)
    found = nearest_neighbors(samples, train, num=num, batch_size=batch_size)
    expected, order = all_distances(samples, train).sort(1)
    assert found.indices.dtype == torch.long and found.indices.shape == (9, num)
    assert torch.equal(found.indices, order[:, :num])
    torch.testing.assert_close(found.distances, expected[:, :num], rtol=1e-12, atol=0)


def test_a_copy_is_at_no_distance_however_far_the_data_are_from_0():
    """By products of matrices, 1e-4 between numbers of 1e6 would be lost in the rounding."""
    train = 1e6 + torch.randn(300, 20)
    found = nearest_neighbors(train.flip(0), train, num=1)
    assert (found.distances == 0).all()
    assert torch.equal(found.indices[:, 0], torch.arange(300).flip(0))
    moved = train.clone()
    moved[:, 3] += 1e-4
    found = nearest_neighbors(moved, train, num=1)
    assert torch.equal(found.indices[:, 0], torch.arange(300))
    torch.testing.assert_close(found.distances, (moved - train)[:, 3:4], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_any_real_numbers_and_shapes_will_do(dtype):
    samples, train = ((3 * torch.rand(n, 4)).to(dtype) for n in (5, 30))
    found = nearest_neighbors(samples, train, num=3, batch_size=8)
    there = all_distances(samples.double(), train.double())
    torch.testing.assert_close(found.distances, there.sort(1).values[:, :3])
    # Equal distances are many; the rows given are at the distances given.
    torch.testing.assert_close(there.gather(1, found.indices), found.distances)
    assert all(len(set(row)) == 3 for row in found.indices.tolist())
    numbers = nearest_neighbors(torch.tensor([0.9]), torch.tensor([4.0, 1.0, 2.0]), num=2)
    assert numbers.indices.tolist() == [[1, 2]]


def test_no_gradient_is_kept():
    x = torch.randn(5, 3, requires_grad=True)
    assert not nearest_neighbors(x, x, num=2).distances.requires_grad


def test_memory_is_that_of_a_batch(monkeypatch):
    sizes, cdist = [], torch.cdist

    def counted(a, b, **kwargs):
        sizes.append((len(a), len(b)))
        return cdist(a, b, **kwargs)

    monkeypatch.setattr(torch, "cdist", counted)
    nearest_neighbors(torch.randn(25, 2), torch.randn(33, 2), num=4, batch_size=10)
    assert max(a * b for a, b in sizes) == 100 and len(sizes) == 3 * 4


@pytest.mark.parametrize(
    "samples, train, options, message",
    [
        ((3, 2), (4, 2), {"num": 5}, "num is 5 of 4 training data"),
        ((3, 2), (4, 2), {"num": 0}, "num is 0; accepted is an integer >= 1"),
        ((3, 2), (4, 2), {"batch_size": 0}, "batch_size is 0; accepted is an integer >= 1"),
        ((3, 2), (4, 3), {}, r"samples and train have the shapes \[3, 2\], \[4, 3\]; accepted are"),
        ((0, 2), (4, 2), {}, r"shapes \[0, 2\], \[4, 2\]; accepted are \[N, \*shape\], N >= 1"),
        ((3, 2), (0, 2), {}, r"shapes \[3, 2\], \[0, 2\]; accepted are \[N, \*shape\], N >= 1"),
        ((), (), {}, r"shapes \[\], \[\]; accepted are"),
    ],
)
def test_what_has_no_neighbors_says_so(samples, train, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(torch.zeros(samples), torch.zeros(train), **{"num": 1, **options})


def test_values_that_are_none_are_refused():
    bad = torch.tensor([[0.0], [math.nan], [math.inf]])
    with pytest.raises(ValueError, match="train holds 2 values that are NaN or infinite"):
        nearest_neighbors(torch.zeros(2, 1), bad, num=1)
    with pytest.raises(ValueError, match="samples holds 2 values"):
        nearest_neighbors(bad, torch.zeros(2, 1), num=1)
    with pytest.raises(ValueError, match="train is of list; accepted is a Tensor of real"):
        nearest_neighbors(torch.zeros(2, 1), [[0.0]])
    with pytest.raises(ValueError, match="samples is of torch.complex64"):
        nearest_neighbors(torch.zeros(2, 1, dtype=torch.complex64), torch.zeros(2, 1))
