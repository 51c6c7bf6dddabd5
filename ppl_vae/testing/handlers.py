"""Effect handlers that the checks put around programs."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["Enlarge", "Held", "SamePlates"]


class SamePlates(Messenger):
    """Plates that choose a subsample choose the same one in every run within."""

    def __init__(self) -> None:
        super().__init__()
        self._chosen: dict[tuple, Any] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if (key := self._key(msg)) in self._chosen and msg["value"] is None:
            msg["value"], msg["done"] = self._chosen[key], True

    def _pyro_post_sample(self, msg: dict) -> None:
        if key := self._key(msg):
            self._chosen[key] = msg["value"]

    def _key(self, msg: dict) -> tuple:
        fn = msg["fn"]
        is_choice = type(fn).__name__ == "_Subsample"
        return (msg["name"], fn.size, fn.subsample_size) if is_choice else ()


class Held(Messenger):
    """What `poutine.replay` does, and a site keeps its own `infer`."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"], msg["done"] = self._values[msg["name"]], True


class Enlarge(Messenger):
    """Makes the plate of a name a subsample of more: what `pyro.plate(name, N, B)` does to sites.

    Around a program its plates have spoken already; so any program, unchanged, has a batch of many
    data, and the same noise.
    """

    def __init__(self, name: str, ratio: float) -> None:
        super().__init__()
        self.name, self.ratio = name, ratio

    def _pyro_sample(self, msg: dict) -> None:
        stack = msg["cond_indep_stack"]
        if any(frame.name == self.name for frame in stack):
            msg["cond_indep_stack"] = tuple(map(self._enlarge, stack))
            msg["scale"] = msg["scale"] * self.ratio

    def _enlarge(self, frame: Any) -> Any:
        if frame.name != self.name:
            return frame
        return frame._replace(full_size=(frame.full_size or frame.size) * self.ratio)
