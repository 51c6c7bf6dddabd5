"""The real data sets, where PPL_VAE_DATA names a folder that holds them."""

import os
from pathlib import Path

import pytest
import torch

from ppl_vae.data import load


def load_real(name, folder, **arguments):
    """The set, or a skip that says what is missing; a test never downloads."""
    root = os.environ.get("PPL_VAE_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"the real {name}; set PPL_VAE_DATA to a folder that holds {folder} to run it")
    return load(name, **arguments)


def sizes(splits):
    return [len(splits.train), len(splits.valid), len(splits.test)]


@pytest.mark.parametrize(
    "name, folder, mean, deviation, first",
    [
        ("mnist", "MNIST", 0.1307, 0.3081, [5, 0, 4, 1, 9]),
        ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530, [9, 0, 0, 3, 0]),
    ],
)
def test_mnist_and_fashion_mnist(name, folder, mean, deviation, first):
    splits = load_real(name, folder)
    assert sizes(splits) == [50_000, 10_000, 10_000] and splits.data_shape == (1, 28, 28)
    official = torch.cat([splits.train, splits.valid])
    assert round(official.mean().item(), 4) == mean
    assert round(official.std().item(), 4) == deviation
    assert splits.labels["train"][:5].tolist() == first
    labels = torch.cat([splits.labels["train"], splits.labels["valid"]])
    if name == "mnist":
        assert labels.bincount()[:3].tolist() == [5923, 6742, 5958]
        assert splits.labels["test"].bincount()[:3].tolist() == [980, 1135, 1032]
    else:
        assert labels.bincount().tolist() == [6000] * 10


def test_dynamic_mnist():
    splits = load_real("mnist", "MNIST", binarize="dynamic")
    torch.manual_seed(0)
    batch = splits.train[:2000]
    draw = splits.draw(batch)
    standard_error = (batch * (1 - batch)).sum().sqrt() / batch.numel()
    assert (draw.mean() - batch.mean()).abs() < 5 * standard_error
    assert splits.test.unique().tolist() == [0.0, 1.0]


def test_binarized_mnist():
    splits = load_real("binarized_mnist", "BinarizedMNIST")
    assert sizes(splits) == [50_000, 10_000, 10_000] and splits.data_shape == (1, 28, 28)
    means = [x.double().mean().item() for x in (splits.train, splits.valid, splits.test)]
    assert [round(mean, 6) for mean in means] == [0.130562, 0.131127, 0.132512]
    assert splits.train.unique().tolist() == [0.0, 1.0] and splits.train.is_contiguous()


def test_binarized_mnist_test_images_are_those_of_mnist_sorted_by_label():
    """Checks the orientation and order of the pixels, not only their number."""
    binary = load_real("binarized_mnist", "BinarizedMNIST").test
    mnist = load_real("mnist", "MNIST")
    grey = mnist.test[mnist.labels["test"].argsort(stable=True)]
    assert not binary[grey == 0].any() and binary[grey == 1].all()


def test_omniglot():
    splits = load_real("omniglot", "OMNIGLOT")
    assert sizes(splits) == [17_280, 2_000, 13_180] and splits.data_shape == (1, 28, 28)
    assert splits.train.min() == 0 and splits.train.max() <= 1
    assert 0.05 < splits.train.mean() < 0.1  # thin bright ink on black
    labels = torch.cat([splits.labels[split] for split in ("train", "valid", "test")])
    assert torch.equal(labels.bincount(), torch.full((1623,), 20))
    # One drawing is in the original twice, and both are in train: none is in two splits.
    background = torch.cat([splits.train, splits.valid]).flatten(1)
    assert len(splits.train.flatten(1).unique(dim=0)) == 17_279
    assert len(background.unique(dim=0)) == 19_279
