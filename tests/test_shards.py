"""Rows on a disk: the same numbers as in memory, from any file, and errors that name it."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import ppl_vae.data.held_out
import ppl_vae.data.loading
import ppl_vae.data.shards
from ppl_vae.data import Shards, Splits, binarize, load, split_rows
from ppl_vae.data.rows import Rest

SIZES = (7, 1, 30, 12)


def write(folder, array, sizes=SIZES):
    """The array as shards, and their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.split(array, np.cumsum(sizes)[:-1])):
        np.save(folder / f"{number:03d}.npy", part)
    return folder


def grey(num=50, shape=(1, 4, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


@pytest.mark.parametrize("dtype", ["u1", "?", "<i2", ">i4", "<f4", "<f8", ">f8", "<f2"])
def test_rows_are_those_of_the_array(tmp_path, dtype):
    array = (grey() / 3).astype(dtype)
    shards = Shards(write(tmp_path / "shards", array))
    assert len(shards) == 50 and shards.data_shape == (1, 4, 4)
    assert shards.shape == (50, 1, 4, 4) and shards.num_bytes == array.nbytes
    expected = torch.from_numpy(array.astype(np.float32)) / (255 if dtype == "u1" else 1)
    index = np.random.default_rng(1).integers(0, 50, 200)
    for rows in (index, np.arange(50), np.arange(50)[::-1].copy(), index[:1], index[:0]):
        taken = shards.take(rows)
        assert taken.dtype == torch.float32 and torch.equal(taken, expected[rows])
    assert torch.equal(shards[3], expected[3]) and torch.equal(shards[-1], expected[49])
    with pytest.raises(IndexError, match="has 50 rows, and row 50 was asked for"):
        shards[50]


def test_one_file_is_data_too(tmp_path):
    array = grey()
    np.save(tmp_path / "x.npy", array)
    shards = Shards(tmp_path / "x.npy")
    assert torch.equal(shards.take(np.arange(50)), torch.from_numpy(array).float() / 255)


def test_binary_bytes_stay_as_they_are(tmp_path):
    binary = (grey(3000) > 127).astype(np.uint8)
    folder = write(tmp_path / "x", binary, (1000, 2000))
    assert Shards(folder).divide_by == 1
    assert Shards(folder).take(np.arange(3000)).unique().tolist() == [0.0, 1.0]
    assert Shards(folder, divide_by=255).take(np.arange(9)).max() == np.float32(1 / 255)
    # Grey values that the sample did not show are not read as if they were probabilities.
    late = np.load(folder / "001.npy")
    seen = Shards(folder)
    hidden = next(i for i in range(2000) if not in_sample(i + 1000))
    late[hidden] = 200
    np.save(folder / "001.npy", late)
    assert seen.divide_by == Shards(folder).divide_by == 1
    with pytest.raises(ValueError, match="a value of 200, where the rows .* give divide_by=255"):
        Shards(folder).take(np.arange(3000))


def in_sample(row):
    return row in set(ppl_vae.data.shards.Permutation(3000, (0,))(np.arange(1024)).tolist())


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ppl_vae.data.shards, "_MAX_OPEN", 2)
    array = grey()
    shards = Shards(write(tmp_path / "x", array))
    for index in (np.arange(50), np.array([0, 49]), np.array([8, 7])):
        assert torch.equal(shards.take(index) * 255, torch.from_numpy(array[index]).float())
        assert len(shards._maps) <= 2


def test_pages_that_are_given_back_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ppl_vae.data.shards, "_MAX_MAPPED", 0)
    array = grey()
    shards = Shards(write(tmp_path / "x", array))
    for _ in range(3):
        taken = shards.take(np.arange(50))
        assert torch.equal(taken * 255, torch.from_numpy(array).float())


def test_a_copy_takes_no_rows_along(tmp_path):
    shards = Shards(write(tmp_path / "x", grey()))
    shards.take(np.arange(50))
    again = copy.copy(shards)
    assert not again._maps and len(shards._maps) == 4
    assert torch.equal(again.take(np.arange(50)), shards.take(np.arange(50)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_data_loader_reads_them(tmp_path, num_workers):
    array = grey()
    shards = Shards(write(tmp_path / "x", array))
    loader = DataLoader(shards, batch_size=8, shuffle=True, num_workers=num_workers)
    seen = torch.cat(list(loader))
    assert torch.equal(
        (seen * 255).flatten(1).sum(1).sort().values,
        torch.from_numpy(array).float().flatten(1).sum(1).sort().values,
    )


def damaged(folder):
    (folder / "001.npy").write_bytes((folder / "001.npy").read_bytes()[:-5])


def replaced(array, **kwargs):
    return lambda folder: np.save(folder / "001.npy", array, **kwargs)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (damaged, r"001\.npy: cannot be read, it is damaged or of another kind"),
        (lambda f: (f / "001.npy").write_text("x"), r"001\.npy: cannot be read.*not a NumPy file"),
        (replaced(np.array([[None]]), allow_pickle=True), r"001\.npy: .* holds Python objects"),
        (replaced(np.array([["a", "b"]])), r"001\.npy: is <U1, must be real numbers"),
        (replaced(np.zeros((2, 2), complex)), "is complex128, must be real numbers"),
        (replaced(np.zeros(5, np.uint8)), r"shape \[5\], must be \[N, \*data_shape\] and not"),
        (replaced(np.zeros((0, 4), np.uint8)), r"001\.npy"),
        (replaced(np.zeros((3, 2, 2), np.uint8)), r"001\.npy: rows are uint8 \[2, 2\], those of"),
        (replaced(np.zeros((3, 1, 4, 4))), r"rows are float64 \[1, 4, 4\], those of 000.npy are"),
        (replaced(np.asfortranarray(grey(3))), r"001\.npy: is in Fortran order, which scatters"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, spoil, message):
    folder = write(tmp_path / "x", grey())
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        Shards(folder)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \.npy files in it"):
        Shards(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"x\.txt: accepted is a \.npy, or a folder"):
        Shards(tmp_path / "x.txt")
    np.save(tmp_path / "x.npy", grey())
    with pytest.raises(ValueError, match="divide_by is 2; accepted are None, 1 and 255"):
        Shards(tmp_path / "x.npy", divide_by=2)
    with pytest.raises(ValueError, match="num_ahead is -1; accepted is an integer >= 0"):
        Shards(tmp_path / "x.npy", num_ahead=-1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_name_their_row(tmp_path, bad):
    array = np.zeros((50, 3))
    array[33, 1] = bad
    shards = Shards(write(tmp_path / "x", array))
    shards.take(np.arange(33))
    with pytest.raises(ValueError, match="row 33 holds NaN or infinite values"):
        shards.take(np.array([40, 33, 2]))


@pytest.mark.parametrize("held_out", [[], [0], [49], [0, 1, 2, 49], [30, 5, 6, 7, 29]])
def test_the_rest_is_all_but_what_is_held_out(tmp_path, held_out):
    array = np.arange(50.0)[:, None]
    rest = Rest(Shards(write(tmp_path / "x", array)), np.array(held_out, dtype=np.int64))
    expected = [i for i in range(50) if i not in held_out]
    assert rest.take(np.arange(len(rest)))[:, 0].tolist() == expected
    backwards = np.arange(len(rest))[::-1].copy()
    assert rest.take(backwards)[:, 0].tolist() == expected[::-1]


def test_splits_hold_every_row_once_and_are_always_the_same(tmp_path):
    array = np.arange(997.0)[:, None]
    folder = write(tmp_path / "x", array, (500, 497))
    one, two = split_rows(Shards(folder)), split_rows(Shards(folder))
    assert isinstance(one, Splits) and one.name == str(folder) and one.data_shape == (1,)
    assert [len(x) for x in (one.train, one.valid, one.test)] == [799, 99, 99]
    train = one.train.take(np.arange(799))
    assert torch.cat([train, one.valid, one.test])[:, 0].sort().values.tolist() == list(range(997))
    assert torch.equal(one.valid, two.valid) and torch.equal(one.test, two.test)
    assert one.valid[:, 0].tolist() != sorted(one.valid[:, 0].tolist())
    some = split_rows(Shards(folder), num_valid=5, num_test=0)
    assert [len(x) for x in (some.train, some.valid, some.test)] == [992, 5, 0]
    for counts in ((997, 0), (-1, 5), (500, 497)):
        with pytest.raises(ValueError, match="997 rows cannot give"):
            split_rows(Shards(folder), *counts)


def test_what_is_held_out_is_small_however_many_rows_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ppl_vae.data.held_out, "_MAX_BYTES", 2**20)
    # Files with holes, which take no place on the disk.
    for name, shape, expected in (("many", (300_000, 4), 10_000), ("wide", (200, 2**14), 16)):
        folder = tmp_path / name
        folder.mkdir()
        np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, shape)
        splits = split_rows(Shards(folder))
        assert len(splits.valid) == len(splits.test) == expected


def test_load_leaves_large_data_on_the_disk(tmp_path, monkeypatch):
    array = grey(200)
    np.save(tmp_path / "x.npy", array)
    in_memory = load(tmp_path / "x.npy")
    assert isinstance(in_memory.train, torch.Tensor)
    monkeypatch.setattr(ppl_vae.data.loading, "MAX_LOADED", 4 * array.size)
    assert isinstance(load(tmp_path / "x.npy").train, torch.Tensor)
    monkeypatch.setattr(ppl_vae.data.loading, "MAX_LOADED", 4 * array.size - 1)
    on_disk = load(str(tmp_path / "x.npy"))
    assert isinstance(on_disk.train, Rest) and on_disk.name == str(tmp_path / "x.npy")
    assert len(on_disk.train) == 160 and on_disk.train.dtype == torch.float32
    folder = write(tmp_path / "folder", array, (100, 100))
    assert torch.equal(load(folder).test, on_disk.test)


def test_a_folder_of_both_kinds_is_refused(tmp_path):
    from PIL import Image

    np.save(tmp_path / "x.npy", grey())
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"both \.npy shards \(x.npy\) and images \(x.png\)"):
        load(tmp_path)


def test_what_is_on_the_disk_is_binarized_only_dynamically(tmp_path):
    folder = write(tmp_path / "x", grey(500), (250, 250))
    splits = load(folder, binarize="dynamic")
    assert splits.binarize == "dynamic" and splits.valid.unique().tolist() == [0.0, 1.0]
    assert torch.equal(load(folder, binarize="dynamic").valid, splits.valid)
    with pytest.raises(ValueError, match="binarize='fixed' would have to draw all rows"):
        load(folder, binarize="fixed")
    with pytest.raises(ValueError, match="already binarized"):
        binarize(splits, "fixed")
    with pytest.raises(ValueError, match="valid ranges from .* only values in"):
        load(write(tmp_path / "y", grey(500) * 2.0, (500,)), binarize="dynamic")
