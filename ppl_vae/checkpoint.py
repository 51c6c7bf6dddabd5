"""Checkpoints: folders of safetensors and one JSON file, written whole or not at all.

A checkpoint is a tree of dictionaries, lists, tuples, numbers, strings and tensors. Each top-level
entry whose tree holds tensors becomes `<entry>.safetensors`; the rest of the tree, and the checksum
of every file, go into `state.json`. The same tree gives the same bytes. Nothing is ever pickled.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppl_vae.writing import remove, writing

__all__ = ["CheckpointError", "from_bytes", "load_checkpoint", "save_checkpoint", "to_bytes"]

_STATE = "state.json"
_NAME = re.compile(r"\w[\w.\- ]*").fullmatch


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: missing, cut short, or changed since it was written."""


def save_checkpoint(folder: Path, tree: dict[str, Any]) -> None:
    """Writes a tree to a folder.

    A kill at any moment leaves the old checkpoint or the new one, whole: the new one is written and
    flushed beside it, under `<folder>.new`, then the old one is moved to `<folder>.old`, the new
    one to its place, and the old one removed. `load_checkpoint` knows these names.

    Args:
        folder: Where; its parent must exist.
        tree: What; keys are strings or integers.

    Raises:
        TypeError: The tree holds something that is neither tensor, number, string nor container.
        WriteError: The disk is full or the folder cannot be written; the old checkpoint stays.
    """
    if wrong := [entry for entry in tree if not isinstance(entry, str) or not _NAME(entry)]:
        raise TypeError(
            f"a checkpoint has entries {wrong}; accepted at the top are strings, which name files"
        )
    new, old = _beside(folder, "new"), _beside(folder, "old")
    with writing(folder):
        if not folder.exists() and (left := _left_by_a_kill(folder)) is not None:
            # The one good checkpoint has to stand in its place before anything else is removed.
            os.replace(left, folder)
        remove(new)
        try:
            new.mkdir()
            _fill_folder(new, tree)
        except OSError:
            # The part that was written is what the disk is full of.
            remove(new)
            raise
        if folder.exists():
            remove(old)
            os.replace(folder, old)
        os.replace(new, folder)
        _sync(folder.parent)
        remove(old)


def _fill_folder(new: Path, tree: dict[str, Any]) -> None:
    """Writes the files of a checkpoint into an empty folder."""
    skeleton, sums = {}, {}
    for entry, value in tree.items():
        tensors: dict[str, Tensor] = {}
        skeleton[entry] = _strip(value, entry, "", tensors)
        if tensors:
            name = f"{entry}.safetensors"
            sums[name] = _write(new / name, save(tensors))
    sums[_STATE] = _digest_of(skeleton)
    state = {"tree": skeleton, "sha256": sums}
    # Last, and by a move: where it stands, the checkpoint is whole.
    part = new / f"{_STATE}.part"
    _write(part, json.dumps(state, sort_keys=True, indent=1).encode())
    os.replace(part, new / _STATE)
    _sync(new)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Reads the tree that `save_checkpoint` wrote, and checks every checksum.

    Args:
        folder: Where it was written.

    Returns:
        The tree, tensors on the CPU; none if no checkpoint was ever written there.

    Raises:
        CheckpointError: A file is missing, cut short or changed. The message names it.
    """
    if folder.exists():
        return _read(folder)
    left = _left_by_a_kill(folder)
    return None if left is None else _read(left)


def to_bytes(tree: dict[str, Any]) -> bytes:
    """A tree as one piece, to be sent; keys and content as for `save_checkpoint`."""
    tensors: dict[str, Tensor] = {}
    head = json.dumps(_strip(tree, "tree", "", tensors)).encode()
    return len(head).to_bytes(8, "big") + head + save(tensors)


def from_bytes(content: bytes) -> dict[str, Any]:
    """The tree that `to_bytes` made a piece of; tensors on the CPU."""
    end = 8 + int.from_bytes(content[:8], "big")
    return _fill(json.loads(content[8:end]), load(content[end:]))


def _left_by_a_kill(folder: Path) -> Path | None:
    """The checkpoint that a kill between the two moves of `save_checkpoint` left beside it."""
    candidates = _beside(folder, "new"), _beside(folder, "old")
    return next((c for c in candidates if (c / _STATE).is_file()), None)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {folder} is incomplete: {_STATE} is missing")
    try:
        state = json.loads(path.read_bytes())
        skeleton, sums = state["tree"], dict(state["sha256"])
        intact = sums.pop(_STATE) == _digest_of(skeleton)
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(_damaged(path))
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in sums.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"the checkpoint {folder} is incomplete: {name} is missing")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(_damaged(path))
        try:
            tensors[name] = load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} holds no tensors: {error}") from None
    try:
        return {
            entry: _fill(value, tensors.get(f"{entry}.safetensors", {}))
            for entry, value in skeleton.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        # Its checksums are right: somebody wrote it so.
        raise CheckpointError(
            f"{folder / _STATE} is no tree of a checkpoint ({type(error).__name__}: {error})"
        ) from None


def _strip(value: Any, entry: str, path: str, tensors: dict[str, Tensor]) -> Any:
    """An entry of the tree as JSON, its tensors moved to `tensors` under their paths in it."""
    where = _join(entry, path) if path else entry
    if isinstance(value, Tensor):
        path = path or "tensor"
        while path in tensors:  # The keys 1 and "1" read alike, as do "a.b" and "b" in "a".
            path += "'"
        # A copy: safetensors refuses tensors that share memory.
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[key, _strip(v, entry, _join(path, key), tensors)] for key, v in value.items()]
        if any(not isinstance(key, str | int) for key in value):
            raise TypeError(f"a checkpoint cannot hold the keys {list(value)} at '{where}'")
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_strip(v, entry, _join(path, i), tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint cannot hold {value!r} ({type(value).__name__}) at '{where}'; accepted are "
        "tensors, numbers, strings, None, and dictionaries, lists and tuples of these"
    )


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _fill(item, tensors) for key, item in content}
    items = [_fill(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _write(path: Path, content: bytes) -> str:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _digest_of(skeleton: Any) -> str:
    return hashlib.sha256(json.dumps(skeleton, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> str:
    return (
        f"the checkpoint file {path} is damaged: its checksum is not the one written with it. "
        "Restore the folder from a copy, or remove it to start again"
    )


def _sync(folder: Path) -> None:
    """Makes the names in a folder last, not only the contents of its files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
