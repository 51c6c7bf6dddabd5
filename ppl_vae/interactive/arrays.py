"""Arrays of a page: one text of base64, and where in it each lies."""

from base64 import b64encode
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arrays"]


class Arrays:
    """Collects tensors, each once: programs of one model share its weights.

    Args:
        half: Write floats as float16.
    """

    def __init__(self, *, half: bool = False) -> None:
        self._half = half
        self._bytes = bytearray()
        self._list: list[dict[str, Any]] = []
        self._known: dict[tuple, int] = {}

    def add(self, tensor: Tensor) -> int:
        """The number of a tensor of floats or of int32."""
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if self._half else torch.float32)
        kind = str(tensor.dtype).removeprefix("torch.")
        content = tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes()
        key = (kind, tuple(tensor.shape), content)
        if key not in self._known:
            at = len(self._bytes)
            self._list.append({"shape": list(tensor.shape), "type": kind, "at": at})
            self._bytes += content
            self._known[key] = len(self._list) - 1
        return self._known[key]

    def __len__(self) -> int:
        """How many bytes."""
        return len(self._bytes)

    def as_json(self) -> dict[str, Any]:
        """`{"list": [...], "base64": "..."}`."""
        return {"list": self._list, "base64": b64encode(self._bytes).decode("ascii")}
