"""Tables of Hugging Face as data: their numbers, their columns, their order, and going on."""

import threading

import numpy as np
import pytest
import torch

from ppl_vae import fit
from ppl_vae.data import HuggingFaceRows, split_rows
from ppl_vae.data.minibatches import minibatches
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE

datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
N = 70


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t for t in threading.enumerate() if t.name == "ppl_vae prefetch"]


def arrays(num=N):
    x = np.random.default_rng(0).random((num, 2, 3)).astype(np.float32)
    x[:, 0, 0] = np.arange(num) / num
    return x


def table(num=N):
    features = datasets.Features(
        {
            "x": datasets.Array2D((2, 3), "float32"),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {"x": list(arrays(num)), "label": [0] * num, "text": ["?"] * num}
    return datasets.Dataset.from_dict(rows, features=features)


def images(mode="L", sizes=((5, 4),) * 6):
    from PIL import Image

    rows = [
        Image.new(mode, size, i if mode == "L" else (i, 50, 255)) for i, size in enumerate(sizes)
    ]
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": rows}, features=features)


def take(data, num, seek=None, batch_size=8):
    batches = minibatches(data, batch_size, seed=0)
    if seek:
        batches.next()
        batches.seek(*seek)
    found = [batches.next()[0] for _ in range(num)]
    batches.close()
    return found, (batches.epoch, batches.position)


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_rows_are_those_of_the_table():
    rows, expected = HuggingFaceRows(table()), torch.from_numpy(arrays())
    assert rows.shape == (N, 2, 3) and rows.dtype == torch.float32
    for index in (np.arange(N), np.array([5, 3, 3, 69, 0])):
        assert torch.equal(rows.take(index), expected[index])
    splits = split_rows(rows)
    together = torch.cat([splits.train.take(np.arange(56)), splits.valid, splits.test])
    assert torch.equal(together[:, 0, 0].sort().values, expected[:, 0, 0])


def test_images_have_their_channels_first():
    grey = HuggingFaceRows(images())
    assert grey.data_shape == (1, 4, 5)
    assert torch.equal(grey.take(np.arange(6))[:, 0, 0, 0] * 255, torch.arange(6.0).float())
    colour = HuggingFaceRows(images("RGB"))
    assert colour.data_shape == (3, 4, 5)
    assert (colour[2] * 255).flatten(1)[:, 0].tolist() == [2.0, 50.0, 255.0]
    sizes = HuggingFaceRows(images(sizes=((5, 4), (5, 4), (4, 4))))
    with pytest.raises(ValueError, match=r"'image' has data of shapes \[\(4, 4\), \(4, 5\)\]"):
        sizes.take(np.array([0, 2]))


@pytest.mark.parametrize(
    "columns, dtype, divisor",
    [
        (datasets.Sequence(datasets.Value("float64")), np.float64, 1),
        (datasets.Sequence(datasets.Sequence(datasets.Value("int32"))), np.int32, 1),
        (datasets.Array2D((2, 3), "uint8"), np.uint8, 255),
    ],
)
def test_lists_and_bytes(columns, dtype, divisor):
    x = np.arange(24).reshape(4, 2, 3).astype(dtype)
    x = x[:, 0] if "float64" in str(dtype) else x
    data = datasets.Dataset.from_dict({"x": list(x)}, features=datasets.Features({"x": columns}))
    assert torch.equal(
        HuggingFaceRows(data).take(np.arange(4)), torch.from_numpy(x).float() / divisor
    )


def test_fit_takes_tables():
    for data in (table(), table().to_iterable_dataset(num_shards=2)):
        model = VAE((2, 3), 2, hidden=(8,))
        guide = MeanFieldGuide(model, hidden=(8,))
        result = fit(model, guide, data, num_steps=12, batch_size=16, log_every=4)
        assert np.isfinite([line["elbo"] for line in result.metrics]).all()


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 20])
def test_both_kinds_go_on_where_they_stopped(stop, shuffled):
    streamed = table().to_iterable_dataset(num_shards=3)
    if shuffled:
        streamed = streamed.shuffle(seed=3, buffer_size=20)
    for data in (table(), streamed):
        whole, _ = take(data, stop + 10)
        _, at = take(data, stop) if stop else ([], (0, 0))
        found, end = take(data, 10, seek=at)
        assert equal(found, whole[stop:])
        assert end == ((stop + 9) // 8, (stop + 9) % 8 + 1)


def test_epochs_hold_each_row_once_and_differ():
    streamed = table().to_iterable_dataset(num_shards=3).shuffle(seed=3, buffer_size=50)
    for data in (table(), streamed):
        found, _ = take(data, 16)
        orders = [
            [round(v * N) for x in part for v in x[:, 0, 0].tolist()]
            for part in (found[:8], found[8:])
        ]
        assert all(len(set(order)) == 64 for order in orders) and orders[0] != orders[1]


def two_columns():
    return table().add_column("y", [[1.0, 2.0]] * N)


@pytest.mark.parametrize(
    "data, column, message",
    [
        (lambda: table().remove_columns("x"), None, r"columns are 'label' .* and there is none"),
        (two_columns, None, r"there are 2, \['x', 'y'\]; give column=..."),
        (
            table,
            "text",
            r"column is 'text', and the table has 'text' \(Value.*accepted is a column",
        ),
        (table, "label", "column is 'label', .* accepted is a column of images or of arrays"),
        (table, "z", "column is 'z', and the table has 'x'"),
        (lambda: table().select([]), None, "the table is empty"),
    ],
)
def test_columns_that_are_no_data(data, column, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceRows(data(), column)


def test_other_tables_are_refused():
    with pytest.raises(TypeError, match="data are DatasetDict; accepted is a datasets.Dataset"):
        HuggingFaceRows(datasets.DatasetDict(train=table()))
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"x": [1.0]}]))
    with pytest.raises(ValueError, match="does not say what its columns hold; make it with"):
        minibatches(unknown, 2, 0)
    few = table(5).to_iterable_dataset()
    with pytest.raises(ValueError, match="fewer rows than a minibatch of 8"):
        take(few, 1)
    with pytest.raises(ValueError, match="batch_size is 0; accepted is an integer >= 1"):
        minibatches(few, 0, 0)
    assert HuggingFaceRows(two_columns(), "y").data_shape == (2,)


def test_values_that_are_not_finite_name_their_row():
    x = arrays()
    x[33, 1, 1] = np.nan
    features = datasets.Features({"x": datasets.Array2D((2, 3), "float32")})
    rows = HuggingFaceRows(datasets.Dataset.from_dict({"x": list(x)}, features=features))
    with pytest.raises(ValueError, match="column 'x': row 33 holds NaN or infinite values"):
        rows.take(np.array([40, 33]))
