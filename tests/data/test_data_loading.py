"""load: names, roots, and the named sets that need no file, or missing and damaged ones."""

import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ppl_vae.data import NAMES, binarize, load
from ppl_vae.data.omniglot import shrink
from ppl_vae.data.partition import partition
from ppl_vae.data.roots import data_root


def test_digits_are_the_rows_the_partition_names():
    splits = load("digits")
    bunch = load_digits()
    rows = partition(1797, num_valid=250, num_test=250)
    for split, index in zip(("train", "valid", "test"), rows, strict=True):
        x = getattr(splits, split)
        assert x.shape == (len(index), 1, 8, 8) and x.dtype == torch.float32
        assert torch.equal(x[:, 0] * 16, torch.from_numpy(bunch.images).float()[index])
        assert torch.equal(splits.labels[split], torch.from_numpy(bunch.target)[index])
    assert splits.label_names == ("label",) and splits.name == "digits"
    assert splits.train.min() == 0 and splits.train.max() == 1


def test_loading_twice_gives_the_same_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = load("digits", binarize="fixed"), load("digits", binarize="fixed")
    assert torch.equal(state, torch.get_rng_state())
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(first, split), getattr(second, split))
    assert first.binarize == "fixed"


def test_no_digit_is_in_two_splits():
    splits = load("digits")
    rows = torch.cat([splits.train, splits.valid, splits.test]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


def test_dynamic_digits_stay_grey_in_train_only():
    splits = load("digits", binarize="dynamic")
    assert len(splits.train.unique()) == 17
    assert splits.valid.unique().tolist() == splits.test.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "name, message",
    [
        ("minst", r"Unknown data set 'minst', did you mean 'mnist'\? The names are digits, mnist"),
        ("MNIST", "did you mean 'mnist'"),
        ("quaternions", r"Unknown data set 'quaternions'\. The names .* a path works as well"),
        ("", "'' is neither a name"),
        (3, "3 is neither a name, digits, .* nor a path"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


@pytest.mark.parametrize("path", ["nowhere.npz", "no/where", Path("digits")])
def test_paths_that_are_not_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{path}: no such file or folder; .* a .npz, a"):
        load(path)


def test_binarize_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="binarize='dinamic' is none of"):
        load("mnist", root=tmp_path / "nowhere", binarize="dinamic")


def test_roots(monkeypatch, tmp_path):
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("PPL_VAE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "ppl_vae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "ppl_vae"


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_missing_mnist_says_where_it_looked_and_what_to_do(name, folder, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("offline")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(
        FileNotFoundError, match=f"{name}: no files in .*{folder}/raw.*PPL_VAE_DATA"
    ):
        load(name, root=tmp_path)


def test_missing_mnist_in_a_root_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="mnist: no files in .*Not a directory"):
        load("mnist", root=tmp_path / "file")


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def small_mnist(tmp_path_factory):
    """Files like MNIST's, in which image i of train has the brightness i modulo 251."""
    root = tmp_path_factory.mktemp("root")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, num in (("train", 60_000), ("t10k", 10_000)):
        value = (np.arange(num) % 251).astype(np.uint8)
        images = np.broadcast_to(value[:, None, None], (num, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", value % 10)
    return root


def test_mnist_valid_is_the_end_of_train(small_mnist):
    splits = load("mnist", root=small_mnist)
    assert [len(x) for x in (splits.train, splits.valid, splits.test)] == [50_000, 10_000, 10_000]
    assert splits.data_shape == (1, 28, 28) and splits.train.dtype == torch.float32
    expected = (torch.arange(60_000) % 251).float()
    assert torch.equal(splits.train[:, 0, 3, 5], expected[:50_000] / 255)
    assert torch.equal(splits.valid[:, 0, 0, 0], expected[50_000:] / 255)
    assert torch.equal(splits.labels["valid"], (expected[50_000:] % 10).long())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda raw: raw[:1000], "mnist: a file in .*raw is damaged"),
        (lambda raw: b"", "mnist: a file in .*raw is damaged"),
        (lambda raw: b"<html>not here</html>", "mnist: a file in .*raw is damaged"),
        (
            lambda raw: struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 784),
            r"t10k files in .* hold images \[2, 28, 28\] .* expected \[10000, 28, 28\]",
        ),
    ],
)
def test_damaged_mnist(small_mnist, damage, message):
    path = small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))
        with pytest.raises(ValueError, match=message):
            load("mnist", root=small_mnist)
    finally:
        path.write_bytes(whole)


@pytest.fixture
def binarized_rows(monkeypatch):
    """Stands in for the data, at a thousandth of the size that the reader insists on."""
    sizes = {"train": 50, "valid": 10, "test": 10}
    monkeypatch.setattr("ppl_vae.data.binarized_mnist._SIZES", sizes)
    random = np.random.RandomState(0)
    return {split: random.randint(0, 2, (n, 784)).astype(np.uint8) for split, n in sizes.items()}


def test_binarized_mnist_is_the_same_from_the_archive_and_from_the_texts(binarized_rows, tmp_path):
    archive, texts = tmp_path / "a" / "BinarizedMNIST", tmp_path / "t" / "BinarizedMNIST"
    archive.mkdir(parents=True)
    texts.mkdir(parents=True)
    packed = {split: np.packbits(rows, axis=1) for split, rows in binarized_rows.items()}
    np.savez(archive / "binarized_mnist_packbits.npz", **packed)
    for split, rows in binarized_rows.items():
        text = np.full((len(rows), 784, 2), ord(" "), dtype=np.uint8)
        text[..., 0] = rows + ord("0")
        text[:, -1, 1] = ord("\n")
        (texts / f"binarized_mnist_{split}.amat").write_bytes(text.tobytes())
    one = load("binarized_mnist", root=tmp_path / "a")
    other = load("binarized_mnist", root=tmp_path / "t", binarize="fixed")
    for split, rows in binarized_rows.items():
        assert torch.equal(getattr(one, split), getattr(other, split))
        assert torch.equal(getattr(one, split).flatten(1), torch.from_numpy(rows).float())
    assert one.binarize == "fixed" and one.labels == {} and one.label_names == ()
    with pytest.raises(ValueError, match="binarized_mnist: already binarized"):
        binarize(one, "dynamic")
    path = texts / "binarized_mnist_valid.amat"
    path.write_bytes(b"2" + path.read_bytes()[1:])
    with pytest.raises(
        ValueError, match="valid.amat: holds something else than 784 zeros and ones"
    ):
        load("binarized_mnist", root=tmp_path / "t")
    path.write_bytes(b"0 1\n")
    with pytest.raises(ValueError, match="valid.amat: 4 bytes, expected 15680 .10 rows."):
        load("binarized_mnist", root=tmp_path / "t")


def test_binarized_mnist_missing_or_unfit(tmp_path):
    with pytest.raises(FileNotFoundError, match="BinarizedMNIST holds neither .*PPL_VAE_DATA"):
        load("binarized_mnist", root=tmp_path)
    path = tmp_path / "BinarizedMNIST" / "binarized_mnist_packbits.npz"
    path.parent.mkdir()
    np.savez(path, train=np.zeros((50_000, 98), np.uint8), valid=np.zeros((7, 98), np.uint8))
    with pytest.raises(ValueError, match=r"valid must be uint8 \[10000, 98\], found uint8 \[7, 98"):
        load("binarized_mnist", root=tmp_path)


def test_omniglot_areas_are_averaged_exactly():
    ink = torch.rand(3, 2, 105, 105, generator=torch.Generator().manual_seed(0)) < 0.3
    ink[0] = True
    # The definition: each small pixel is the mean of a 15 x 15 block of quarter pixels.
    quarters = ink.double().repeat_interleave(4, -1).repeat_interleave(4, -2)
    expected = torch.nn.functional.avg_pool2d(quarters, 15)
    small = shrink(ink)
    assert small.shape == (3, 2, 28, 28) and small.dtype == torch.float32
    rounding = 105 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(small.double(), expected, rtol=rounding, atol=rounding)
    assert small.max() <= 1


def test_omniglot_splits_and_labels(tmp_path):
    folder = tmp_path / "OMNIGLOT"
    folder.mkdir()
    for part, num in (("background", 130), ("evaluation", 3)):
        paper = np.ones((num, 20, 105, 105), dtype=bool)
        # Drawing d of character c has its own dot pattern: c in binary across, d in binary below.
        for bit in range(8):
            paper[(np.arange(num) >> bit) & 1 == 1, :, :15, 15 * bit % 105] = False
            paper[:, (np.arange(20) >> bit) & 1 == 1, 30:45, 15 * bit % 105] = False
        labels = np.repeat(np.arange(num)[:, None], 20, axis=1)
        np.savez(folder / f"images_{part}.npz", images=paper, labels=labels)
    splits = load("omniglot", root=tmp_path)
    assert [len(x) for x in (splits.train, splits.valid, splits.test)] == [600, 2000, 60]
    assert splits.data_shape == (1, 28, 28)
    labels = torch.cat([splits.labels["train"], splits.labels["valid"]])
    assert torch.equal(labels.bincount(), torch.full((130,), 20))
    assert splits.labels["test"].unique().tolist() == [130, 131, 132]
    assert splits.train.max() > 0 and splits.train.mean() < 0.1  # ink is the bright side


def test_omniglot_missing_or_unfit(tmp_path):
    with pytest.raises(FileNotFoundError, match="images_background.npz is missing. Make it from"):
        load("omniglot", root=tmp_path)
    (tmp_path / "OMNIGLOT").mkdir()
    np.savez(tmp_path / "OMNIGLOT" / "images_background.npz", images=np.zeros((2, 28, 28)))
    with pytest.raises(ValueError, match=r"must hold images bool .*found \{'images': 'float64"):
        load("omniglot", root=tmp_path)


def test_names():
    assert NAMES == ("digits", "mnist", "fashion_mnist", "binarized_mnist", "omniglot", "sprites")
