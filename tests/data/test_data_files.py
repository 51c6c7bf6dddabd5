"""The user's own files: .npz, .npy and folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae.data import load

RANDOM = np.random.RandomState(0)


def save(path, *args, **arrays):
    (np.savez if arrays else np.save)(path, *args, **arrays)
    return path


def together(splits):
    return torch.cat([splits.train, splits.valid, splits.test])


def test_npz_with_its_own_splits(tmp_path):
    train, test = RANDOM.randn(6, 3), RANDOM.randn(2, 3)
    y = np.array([0, 2, 1, 0, 1, 2], dtype=np.int32)
    splits = load(save(tmp_path / "a.npz", train=train, test=test, train_labels=y))
    assert torch.equal(splits.train, torch.from_numpy(train).float())
    assert torch.equal(splits.test, torch.from_numpy(test).float())
    assert splits.valid.shape == (0, 3) and splits.name == str(tmp_path / "a.npz")
    assert splits.labels["train"].tolist() == y.tolist() and set(splits.labels) == {"train"}
    assert splits.labels["train"].dtype == torch.int64 and splits.label_names == ("label",)


def test_npz_x_and_y_stay_together_and_are_always_split_alike(tmp_path):
    x = np.arange(105, dtype=np.float64).reshape(105, 1)
    path = save(tmp_path / "b.npz", x=x, y=np.arange(105))
    splits, again = load(str(path)), load(path)
    assert [len(p) for p in (splits.train, splits.valid, splits.test)] == [85, 10, 10]
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(splits, split)[:, 0].long(), splits.labels[split])
        assert torch.equal(getattr(splits, split), getattr(again, split))
    assert sorted(together(splits)[:, 0].tolist()) == list(range(105))


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_single_array_of_any_dtype(tmp_path, name):
    for dtype in ("f2", ">f4", "f8", "i8", "u2", "?"):
        x = (RANDOM.rand(20, 2, 2) * 3).astype(dtype)
        path = tmp_path / name
        save(path, whatever=x) if name.endswith("z") else save(path, x)
        splits = load(path)
        assert splits.train.dtype == torch.float32 and splits.data_shape == (2, 2)
        rows = sorted(together(splits).flatten(1).tolist())
        assert rows == sorted(x.astype(np.float32).reshape(20, 4).tolist())


def test_bytes_are_grey_values_unless_they_are_bits(tmp_path):
    grey = np.array([[0, 255], [51, 1]] * 5, dtype=np.uint8)
    assert load(save(tmp_path / "g.npy", grey)).train.unique().tolist() == pytest.approx(
        [0, 1 / 255, 0.2, 1]
    )
    bits = (grey > 9).astype(np.uint8)
    assert load(save(tmp_path / "b.npy", bits)).train.unique().tolist() == [0, 1]
    # One rule for the whole file: a dark split must not be scaled otherwise than train.
    splits = load(save(tmp_path / "s.npz", train=grey, test=bits))
    assert splits.test.max().item() == pytest.approx(1 / 255)


def test_factor_labels(tmp_path):
    x = np.zeros((10, 2))
    splits = load(save(tmp_path / "f.npz", x=x, y=np.arange(30).reshape(10, 3)))
    assert splits.label_names == ("label0", "label1", "label2")
    assert splits.labels["train"].shape == (8, 3)
    splits = load(save(tmp_path / "g.npz", x=x, y=np.arange(10) / 3))
    assert splits.labels["train"].shape == (8, 1) and splits.label_names == ("label",)
    assert splits.labels["train"].dtype == torch.float32


def test_binarize_of_a_users_file(tmp_path):
    path = save(tmp_path / "g.npy", RANDOM.rand(50, 4))
    assert load(path, binarize="fixed").train.unique().tolist() == [0, 1]
    wide = save(tmp_path / "w.npy", RANDOM.rand(50, 4) + 2)
    with pytest.raises(ValueError, match=r"w.npy: train ranges from 2\.\d+ to 2\.\d+"):
        load(wide, binarize="dynamic")


OBJECTS = np.array([{}, None, "a", 1], dtype=object)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": OBJECTS}, "a.npz: the array 'x' holds Python objects.*pickle is refused"),
        (
            {"train": np.zeros((3, 2)), "train_labels": OBJECTS[:3]},
            "the array 'train_labels' holds Python objects",
        ),
        ({"a": np.zeros((3, 2)), "b": np.zeros(3)}, r"the keys are \['a', 'b'\]; accepted are"),
        ({"train": np.zeros((3, 2)), "val": np.zeros((3, 2))}, r"keys are \['train', 'val'\]"),
        ({"train": np.zeros((3, 2)), "test_labels": np.zeros(3)}, "test_labels without test"),
        ({"x": np.zeros((30, 2)), "y": np.zeros(29)}, r"x has 30 rows, but y has shape \[29\]"),
        (
            {"train": np.zeros((3, 2)), "train_labels": np.zeros(2)},
            "a.npz: 2 labels for 3 data in train",
        ),
        ({"x": np.array(["a", "b"])[:, None]}, "train is <U1, must be real numbers"),
        ({"x": np.zeros((20, 2), complex)}, "is complex128, must be real numbers"),
        ({"x": np.zeros((4, 1)), "y": np.array(list("abcd"))}, "labels of train is <U1, must be"),
        ({"x": np.zeros(7)}, r"shape \[7\], must be \[N, \*data_shape\]"),
        ({"x": np.zeros(())}, r"shape \[\], must be"),
        ({"x": np.zeros((0, 3))}, r"shape \[0, 3\], must be .* not empty"),
        ({"train": np.zeros((0, 3))}, r"train is empty, its shape is \[0, 3\]"),
        ({"train": np.zeros(3)}, r"train has shape \[3\], must be"),
        (
            {"train": np.zeros((3, 2)), "test": np.zeros((3, 4))},
            r"one datum of test has shape \[4\], of train \[2\]",
        ),
        (
            {"train": np.zeros((3, 2), np.uint8), "test": np.zeros((3, 2))},
            "test is float64, train is uint8",
        ),
        ({"train": np.array([[0.0], [np.nan]])}, r"a.npz: train holds 1 values .* \(1, 0\)"),
        ({"train": np.array([[1e300]])}, "train holds 1 values that are NaN or infinite"),
    ],
)
def test_unfit_npz(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path / "a.npz", **arrays))


def test_an_object_npy_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="o.npy: the array holds Python objects.*pickle is refused"
    ):
        load(save(tmp_path / "o.npy", OBJECTS))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"d{suffix}"
    x = RANDOM.rand(50, 5)
    save(path, x=x) if suffix == ".npz" else save(path, x)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    damaged = [b"", b"hello", whole[:middle], b"\x80\x04N."]
    for content in damaged + [flipped] * (suffix == ".npz"):  # a .npy has no checksum
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"d{suffix}: cannot be read, it is damaged or"):
            load(path)


def test_files_of_another_kind(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.pt: the user's own data are a .npz.*this file is .pt"):
        load(tmp_path / "x.pt")
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, x=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a.npy: .*archive of several arrays; name it .npz"):
        load(tmp_path / "a.npy")
    with open(tmp_path / "b.npz", "wb") as file:
        np.save(file, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="b.npz: .*a single array; name it .npy"):
        load(tmp_path / "b.npz")


def picture(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


def test_a_flat_folder(tmp_path):
    images = RANDOM.randint(0, 256, (20, 6, 5)).astype(np.uint8)
    for i, image in enumerate(images):
        picture(tmp_path / f"{i:02}.png", image)
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / ".hidden.png").write_text("passed over")
    splits = load(tmp_path)
    assert splits.data_shape == (1, 6, 5) and splits.labels == {}
    assert [len(x) for x in (splits.train, splits.valid, splits.test)] == [16, 2, 2]
    rows = sorted((together(splits) * 255).round().int().flatten(1).tolist())
    assert rows == sorted(images.reshape(20, 30).tolist())


def test_sub_folders_are_classes_and_colours_come_first(tmp_path):
    for name, value in (("cat", 10), ("ant", 20), ("bee", 30)):
        for i in range(10):
            colour = np.full((4, 4, 3), (value, 0, 255), dtype=np.uint8)
            picture(tmp_path / name / f"{i}.png", colour, "RGBA" if i % 2 else None)
    picture(tmp_path / "cat" / "grey.png", np.full((4, 4), 10, dtype=np.uint8))
    splits = load(tmp_path)
    assert splits.data_shape == (3, 4, 4) and splits.train.is_contiguous()
    red = (together(splits)[:, 0, 0, 0] * 255).round().long()
    labels = torch.cat([splits.labels[split] for split in ("train", "valid", "test")])
    assert len(red) == 31 and torch.equal(red, torch.tensor([20, 30, 10])[labels])


def test_sub_folders_may_be_the_splits(tmp_path):
    for split, num in (("train", 5), ("test", 3)):
        for name in ("a", "b"):
            for i in range(num):
                value = ord(name) + i
                picture(tmp_path / split / name / f"{i}.png", np.full((2, 2), value, np.uint8))
    splits = load(tmp_path)
    assert [len(x) for x in (splits.train, splits.valid, splits.test)] == [10, 0, 6]
    assert splits.labels["test"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (splits.test[:, 0, 0, 0] * 255).round().tolist() == [97, 98, 99, 98, 99, 100]


def test_unfit_folders(tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "f")

    folder = tmp_path / "f"
    folder.mkdir()
    refused("f: no images in it or in its sub-folders; looked for .bmp,")
    picture(folder / "a.png", np.zeros((4, 6), np.uint8))
    picture(folder / "b.png", np.zeros((5, 5), np.uint8))
    refused("b.png: 5 x 5 pixels, but a.png has 6 x 4; all images must be of one size")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    refused("b.png: cannot be read as an image")
    picture(folder / "b.png", np.zeros((4, 6), np.uint16))
    refused("b.png: its pixels are 'I;16', not 8 bits each")
    (folder / "b.png").unlink()
    picture(folder / "class" / "c.png", np.zeros((4, 6), np.uint8))
    refused(r"images both in the folder itself \(a.png\) and in sub-folders \(class/c.png\)")
