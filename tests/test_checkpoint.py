"""Checkpoints: what goes in comes out, what is damaged is refused, a kill leaves one whole."""

import json
import math
import os
import pickletools
import shutil
from pathlib import Path

import pytest
import torch

from ppl_vae import checkpoint
from ppl_vae.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TREE = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(4.0), "m": torch.ones(2)}, 1: {}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None}],
    },
    "step": 7,
    "note": 'ünï "quoted"\n',
    "best": -12.5,
    "done": False,
    "nothing": None,
}


def assert_same(found, expected, path="tree"):
    """Equal in value, type, keys, dtype and shape."""
    assert type(found) is type(expected), path
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape, path
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        # The entries at the top are files and come sorted; everything below keeps its order.
        order = set if path == "tree" else list
        kinds = [order((key, type(key)) for key in tree) for tree in (found, expected)]
        assert kinds[0] == kinds[1], path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found), path
    else:
        assert found == expected, path


def round_trip(folder, tree):
    save_checkpoint(folder, tree)
    return load_checkpoint(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ----------------------------------------------------------------------------------- round trips


def test_a_tree_comes_back_as_it_was(tmp_path):
    assert_same(round_trip(tmp_path / "c", TREE), TREE)
    assert sorted(content(tmp_path / "c")) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        (),
        [[], {}, ((),)],
        {"a": {"b": [({1: [None]},)]}},
        {"tensor": "a", "dict": [], "list": {}, "tuple": 1},
        {1: "one", -2: "minus two", "1": "text"},
        {True: 1, "x": 2},
        math.inf,
        -math.inf,
        math.nan,
        2**70,
        0.1 + 0.2,
        1e-320,
        "",
        "\ud7ff\u0000/..",
        torch.zeros(0, 3),
        torch.tensor(True),
        torch.tensor([1, -1], dtype=torch.int8),
        torch.tensor([1.5, math.nan, -math.inf], dtype=torch.bfloat16).nan_to_num(7.0),
        torch.tensor(2**62),
        torch.arange(6.0).view(2, 3).mT,
        torch.arange(12.0)[::3],
        torch.ones(1).expand(4),
        [torch.ones(2)] * 2,
        torch.get_rng_state(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_value_comes_back(tmp_path, value):
    assert_same(round_trip(tmp_path / "c", {"entry": value}), {"entry": value})
    assert_same(round_trip(tmp_path / "d", {"entry": {"a": [value]}}), {"entry": {"a": [value]}})


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    base = torch.arange(4.0)
    found = round_trip(tmp_path / "c", {"a": {"x": base, "y": base[1:], "z": base}})["a"]
    assert_same(found, {"x": base, "y": base[1:], "z": base})
    found["x"][2] = -1
    assert found["y"][1] == found["z"][2] == 2


def test_parameters_come_back_as_plain_tensors(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    found = round_trip(tmp_path / "c", {"a": {"x": parameter}})["a"]["x"]
    assert type(found) is torch.Tensor and not found.requires_grad


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b.c": torch.zeros(1), "b": {"c": torch.ones(1)}}},
        {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)},
        {"a": {1: torch.zeros(1), "1": torch.ones(1)}},
        {"a": {"b": {"0": torch.zeros(1)}, "b.0": torch.ones(1), "b.0.": torch.ones(2)}},
    ],
)
def test_keys_that_read_alike_are_kept_apart(tmp_path, tree):
    assert_same(round_trip(tmp_path / "c", tree), tree)


@pytest.mark.parametrize("tree", [{3: "three"}, {3: torch.ones(2), "x": 1}, {3: 1, "3": 2}])
def test_entries_at_the_top_are_named_by_strings(tmp_path, tree):
    # They name files; an integer would come back as a string.
    with pytest.raises(TypeError, match="3.*string"):
        save_checkpoint(tmp_path / "c", tree)


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    save_checkpoint(tmp_path / "a", TREE)
    first = content(tmp_path / "a")
    save_checkpoint(tmp_path / "b", load_checkpoint(tmp_path / "a"))
    assert content(tmp_path / "b") == first
    save_checkpoint(tmp_path / "a", TREE)
    assert content(tmp_path / "a") == first
    save_checkpoint(tmp_path / "a", {**TREE, "step": 8})
    second = content(tmp_path / "a")
    assert [name for name in first if first[name] != second[name]] == ["state.json"]


def test_entries_of_an_older_checkpoint_are_gone(tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    save_checkpoint(tmp_path / "c", {"other": torch.ones(1)})
    assert sorted(content(tmp_path / "c")) == ["other.safetensors", "state.json"]


def test_nothing_is_pickled(tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    for name, blob in content(tmp_path / "c").items():
        assert name == "state.json" or name.endswith(".safetensors")
        # safetensors: the header's length, then the header, which is JSON.
        start = 0 if name == "state.json" else 8
        assert blob[start : start + 1] == b"{"
        with pytest.raises(ValueError):
            list(pickletools.genops(blob))


def test_loading_never_unpickles(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", TREE)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in (("pickle", "loads"), ("pickle", "load"), ("pickle", "Unpickler")):
        monkeypatch.setattr(f"{module}.{name}", refuse)
    assert_same(load_checkpoint(tmp_path / "c"), TREE)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": {"f": print}}, r"builtin_function_or_method\) at 'a.f'"),
        ({"a": [1, {2}]}, r"\(set\) at 'a.1'"),
        ({"a": {"x": torch.nn.Linear(1, 1)}}, r"\(Linear\) at 'a.x'"),
        ({"a": 1j}, r"\(complex\) at 'a'"),
        ({"a": {(1, 2): 3}}, "a checkpoint cannot hold"),
    ],
)
def test_what_is_no_tree_is_refused_and_the_old_checkpoint_stays(tmp_path, tree, message):
    save_checkpoint(tmp_path / "c", TREE)
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "c", {"fine": torch.ones(1), **tree})
    assert_same(load_checkpoint(tmp_path / "c"), TREE)


# --------------------------------------------------------------------------------------- damage

SMALL = {"a": {"w": torch.tensor([1.0, -2.0])}, "step": 7, "name": "run"}


def test_every_flipped_bit_of_the_state_is_detected(tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(folder, SMALL)
    path = folder / "state.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                load_checkpoint(folder)


def test_every_damaged_byte_of_the_tensors_is_detected(tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(folder, SMALL)
    path = folder / "a.safetensors"
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a.safetensors is damaged.*checksum"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", ["state.json", "a.safetensors"])
def test_every_truncation_is_detected(tmp_path, name):
    folder = tmp_path / "c"
    save_checkpoint(folder, SMALL)
    path = folder / name
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{name} is damaged.*Restore.*or remove"):
            load_checkpoint(folder)
    path.write_bytes(whole + b"\n")
    if name != "state.json":  # a line break behind the JSON changes nothing
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", ["state.json", "a.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save_checkpoint(tmp_path / "c", SMALL)
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: {name} is missing"):
        load_checkpoint(tmp_path / "c")


def test_files_of_two_checkpoints_do_not_mix(tmp_path):
    save_checkpoint(tmp_path / "c", SMALL)
    save_checkpoint(tmp_path / "d", {**SMALL, "a": {"w": torch.tensor([1.0, 2.0])}})
    shutil.copy(tmp_path / "d" / "a.safetensors", tmp_path / "c")
    with pytest.raises(CheckpointError, match="a.safetensors is damaged"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"x"', "{}", '{"tree": {}, "sha256": 1}'])
def test_other_json_is_damage(tmp_path, text):
    save_checkpoint(tmp_path / "c", SMALL)
    (tmp_path / "c" / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="state.json is damaged"):
        load_checkpoint(tmp_path / "c")


def test_a_config_cannot_reach_outside_the_folder(tmp_path):
    save_checkpoint(tmp_path / "c", SMALL)
    shutil.copy(tmp_path / "c" / "a.safetensors", tmp_path / "a.safetensors")
    path = tmp_path / "c" / "state.json"
    state = json.loads(path.read_text())
    state["sha256"]["../a.safetensors"] = state["sha256"].pop("a.safetensors")
    path.write_text(json.dumps(state))
    (tmp_path / "c" / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(tmp_path / "c")


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c") is None


# ---------------------------------------------------------------------------------------- kills

OLD, NEW = {"a": torch.zeros(2), "step": 1}, {"a": torch.ones(2), "step": 2}


def folders(tmp_path, **trees):
    """The folders `c`, `c.new`, `c.old` as a kill leaves them."""
    for name, tree in trees.items():
        save_checkpoint(tmp_path / "scratch", tree)
        place = {"c": "c", "new": "c.new", "old": "c.old"}[name]
        os.replace(tmp_path / "scratch", tmp_path / place)
    return tmp_path / "c"


def cut_short(folder):
    (folder / "state.json").unlink()


def test_killed_while_the_new_one_is_written(tmp_path):
    folder = folders(tmp_path, c=OLD, new=NEW)
    cut_short(tmp_path / "c.new")
    assert_same(load_checkpoint(folder), OLD)


def test_killed_before_the_first_move(tmp_path):
    assert_same(load_checkpoint(folders(tmp_path, c=OLD, new=NEW)), OLD)


def test_killed_between_the_moves(tmp_path):
    assert_same(load_checkpoint(folders(tmp_path, old=OLD, new=NEW)), NEW)


def test_killed_before_the_old_one_is_removed(tmp_path):
    assert_same(load_checkpoint(folders(tmp_path, c=NEW, old=OLD)), NEW)


def test_killed_while_the_old_one_is_removed(tmp_path):
    folder = folders(tmp_path, c=NEW, old=OLD)
    cut_short(tmp_path / "c.old")
    assert_same(load_checkpoint(folder), NEW)


def test_killed_while_the_first_one_is_written(tmp_path):
    folder = folders(tmp_path, new=NEW)
    cut_short(tmp_path / "c.new")
    assert load_checkpoint(folder) is None


def test_killed_before_the_first_one_is_moved(tmp_path):
    assert_same(load_checkpoint(folders(tmp_path, new=NEW)), NEW)


def test_damage_is_not_papered_over_by_an_older_one(tmp_path):
    folder = folders(tmp_path, c=NEW, old=OLD)
    cut_short(folder)
    with pytest.raises(CheckpointError, match="state.json is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "left", [{"c": OLD}, {"new": NEW}, {"c": OLD, "new": NEW}, {"old": OLD, "new": NEW}, {}]
)
def test_the_next_save_cleans_up(tmp_path, left):
    folder = folders(tmp_path, **left)
    third = {"a": torch.full((2,), 3.0)}
    save_checkpoint(folder, third)
    assert_same(load_checkpoint(folder), third)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


class Killed(BaseException):
    """What no `except Exception` and no `ignore_errors` catches."""


class Killer:
    """Dies at the n-th touch of the disk: before it, or with a tree half removed."""

    def __init__(self, monkeypatch, deadline):
        self.left = deadline
        # Nobody pulls the plug here: to flush would only take time.
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        for owner, name in (
            (os, "replace"),
            (os, "fsync"),
            (Path, "mkdir"),
            (checkpoint, "_write"),
        ):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))
        self.rmtree = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", self.remove)

    def tick(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.tick()
            return function(*args, **kwargs)

        return wrapped

    def remove(self, folder, *args, **kwargs):
        self.tick()
        for path in sorted(folder.iterdir()) if folder.exists() else []:
            path.unlink()  # the tensors go before state.json
            self.tick()
        self.rmtree(folder, *args, **kwargs)


def save_and_die(folder, tree, deadline):
    """Whether the save came to its end before the deadline."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Killer(monkeypatch, deadline)
        try:
            save_checkpoint(folder, tree)
        except Killed:
            return False
    return True


def step_of(folder):
    found = load_checkpoint(folder)
    if found is None:
        return 0
    assert_same(found, checkpoint_of(found["step"]))
    return found["step"]


def checkpoint_of(step):
    return {"a": torch.full((2,), float(step)), "step": step}


def test_a_kill_at_any_moment_leaves_the_old_one_or_the_new_one(tmp_path):
    for deadline in range(60):
        folder = tmp_path / str(deadline) / "c"
        folder.parent.mkdir()
        save_checkpoint(folder, checkpoint_of(1))
        done = save_and_die(folder, checkpoint_of(2), deadline)
        assert step_of(folder) in ([2] if done else [1, 2])
        if done:
            break
    else:
        raise AssertionError("it never ends")
    assert deadline > 10


def test_a_second_kill_loses_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for first in range(60):
        ended = None
        for second in range(60):
            folder = tmp_path / f"{first}-{second}" / "c"
            folder.parent.mkdir()
            save_checkpoint(folder, checkpoint_of(1))
            ended = save_and_die(folder, checkpoint_of(2), first)
            before = step_of(folder)
            # The run is taken up from what it finds, and dies again.
            done = save_and_die(folder, checkpoint_of(3), second)
            after = step_of(folder)
            assert after == 3 if done else after in (before, 3), (first, second)
            if done:
                break
        if ended:
            break
