"""Minibatches: each datum once an epoch, and a stream that can be taken up where it stopped."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ppl_vae.data import Splits
from ppl_vae.data.minibatches import minibatches
from ppl_vae.randomness import restore, snapshot

N = 23


def rows(num=N):
    """Data that can be told apart: row i holds i."""
    return torch.arange(float(num)).unsqueeze(1).expand(num, 2).contiguous()


class Squares(Dataset):
    """Items that are tuples: a datum and its label."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.full((2,), float(index)), index**2


class Noisy(Dataset):
    """Augments: draws from the global stream at every item."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.full((2,), float(index)) + torch.rand(())


KINDS = {
    "tensor": lambda: (rows(), 5),
    "splits": lambda: (Splits(rows()), 5),
    "dataset": lambda: (TensorDataset(rows()), 5),
    "pairs": lambda: (Squares(), 5),
    "noisy": lambda: (Noisy(), 5),
    "dynamic": lambda: (Splits(rows() / N, binarize="dynamic"), 5),
    "loader": lambda: (DataLoader(TensorDataset(rows()), batch_size=5, shuffle=True), None),
    "loader, in order": lambda: (DataLoader(Squares(), batch_size=5), None),
    "loader, its own generator": lambda: (
        DataLoader(
            TensorDataset(rows()),
            batch_size=5,
            shuffle=True,
            generator=torch.Generator().manual_seed(5),
        ),
        None,
    ),
    "loader, noisy": lambda: (DataLoader(Noisy(), batch_size=5, shuffle=True), None),
}
IDENTIFIED = ["tensor", "splits", "dataset", "pairs", "loader", "loader, its own generator"]


def stream(kind, seed=0):
    data, batch_size = KINDS[kind]()
    return minibatches(data, batch_size, seed)


def take(batches, count):
    return [batches.next() for _ in range(count)]


def equal(one, other):
    return len(one) == len(other) and all(
        len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", IDENTIFIED)
def test_each_datum_comes_at_most_once_an_epoch(kind):
    batches = stream(kind)
    loader = kind.startswith("loader")
    per_epoch = 5 if loader else 4  # a loader keeps its last, shorter batch
    orders = []
    for epoch in range(3):
        seen = torch.cat([batch[0][:, 0] for batch in take(batches, per_epoch)])
        assert len(seen) == (N if loader else 20)
        assert len(seen.unique()) == len(seen) and set(seen.tolist()) <= set(range(N))
        assert (batches.epoch, batches.position) == (epoch, per_epoch)
        assert batches.fractional_epoch == epoch + 1
        orders.append(seen.tolist())
    assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])


def test_over_the_epochs_every_datum_comes():
    batches = stream("tensor")
    seen = torch.cat([batch[0][:, 0] for batch in take(batches, 40)])
    assert set(seen.tolist()) == set(range(N))


def test_items_that_are_tuples_come_as_arguments():
    for kind in ("pairs", "loader, in order"):
        x, label = stream(kind).next()
        assert x.shape == (5, 2) and label.shape == (5,)
        assert torch.equal(label.to(x), x[:, 0] ** 2)
    for kind in ("tensor", "splits", "dataset", "loader"):
        (x,) = stream(kind).next()
        assert x.shape == (5, 2)


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
def test_the_order_is_the_seeds(kind):
    one, two, other = (take(stream(kind, seed), 12) for seed in (0, 0, 1))
    assert equal(one, two) and not equal(one, other)
    # Seed and epoch are not added up: epoch 1 of seed 0 is not epoch 0 of seed 1.
    per_epoch = 5 if kind == "loader" else 4
    assert not equal(one[per_epoch : 2 * per_epoch], other[:per_epoch])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 7, 11])
def test_a_stream_goes_on_exactly_where_it_stopped(kind, stop):
    torch.manual_seed(0)
    whole = stream(kind)
    take(whole, stop)
    at, state = (whole.epoch, whole.position), snapshot()
    expected = take(whole, 9)
    # Another process: the data made anew, the global stream where it stood.
    torch.manual_seed(99)
    again = stream(kind)
    restore(state)
    again.seek(*at)
    assert (again.epoch, again.position) == at
    assert equal(take(again, 9), expected)
    assert (again.epoch, again.position) == (whole.epoch, whole.position)


@pytest.mark.parametrize("kind", ["tensor", "splits", "dataset", "loader"])
def test_the_order_draws_nothing_from_the_global_stream(kind):
    state = torch.get_rng_state()
    take(stream(kind), 11)
    assert torch.equal(torch.get_rng_state(), state)


def test_dynamic_binarization_draws_from_the_global_stream():
    data = Splits(torch.full((N, 50), 0.5), binarize="dynamic")
    torch.manual_seed(0)
    (one,) = minibatches(data, 5, seed=0).next()
    (two,) = minibatches(data, 5, seed=0).next()
    torch.manual_seed(0)
    (again,) = minibatches(data, 5, seed=0).next()
    assert torch.equal(one, again) and not torch.equal(one, two)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    # 250 fair coins: within 5 standard deviations of a half.
    assert abs(one.mean() - 0.5) <= 5 * 0.5 / 250**0.5


def test_only_the_training_split_is_taken():
    data = Splits(rows(10), valid=rows(6) + 100, test=rows(6) + 200)
    seen = torch.cat([batch[0] for batch in take(minibatches(data, 5, 0), 6)])
    assert seen.max() < 10


@pytest.mark.parametrize("num_data, expected", [(1, 1), (50, 50), (128, 128), (500, 128)])
def test_the_default_batch_shrinks_to_small_data(num_data, expected):
    for data in (rows(num_data), TensorDataset(rows(num_data))):
        batches = minibatches(data, None, seed=0)
        assert batches.batch_size == expected and len(batches.next()[0]) == expected


@pytest.mark.parametrize("batch_size", [0, -1, N + 1])
@pytest.mark.parametrize("kind", ["tensor", "splits", "dataset"])
def test_a_batch_size_that_does_not_fit_is_refused(kind, batch_size):
    data, _ = KINDS[kind]()
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; accepted are 1 to {N}"):
        minibatches(data, batch_size, 0)


def test_a_loader_keeps_its_own_batch_size():
    loader, _ = KINDS["loader"]()
    with pytest.raises(ValueError, match=r"batch_size is 7, but the data are a DataLoader.*\(5\)"):
        minibatches(loader, 7, 0)
    assert minibatches(loader, None, 0).batch_size == 5


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(12.0).view(6, 2))


def test_an_iterable_dataset_needs_a_loader():
    with pytest.raises(ValueError, match="Endless, a Dataset without a length; wrap it in a"):
        minibatches(Endless(), 2, 0)
    batches = minibatches(DataLoader(Endless(), batch_size=2), None, 0)
    seen = torch.cat([batch[0] for batch in take(batches, 6)])
    assert torch.equal(seen, torch.arange(12.0).view(6, 2).repeat(2, 1))
    assert batches.epoch == 1 and batches.fractional_epoch == 1.0


@pytest.mark.parametrize("data", [rows(0), TensorDataset(rows(0))])
def test_no_data_are_refused(data):
    with pytest.raises(ValueError, match="the training data are empty"):
        minibatches(data, None, 0)


def test_a_loader_without_batches_is_refused():
    loader = DataLoader(TensorDataset(rows(3)), batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match="the DataLoader gives no batch"):
        minibatches(loader, None, 0).next()


@pytest.mark.parametrize("data", [[1, 2], None, "mnist"])
def test_other_data_are_refused(data):
    with pytest.raises(TypeError, match=f"data are {type(data).__name__}; accepted are a Tensor"):
        minibatches(data, None, 0)
