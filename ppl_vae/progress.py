"""The bar that shows how far training is."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """A tqdm bar of steps with the latest metrics: the true bound, the KL by site, the weight.

    Args:
        num_steps: Length of the bar.
        show: Whether to show it; on a terminal only, if none.
    """

    def __init__(self, num_steps: int, show: bool | None) -> None:
        disable = None if show is None else not show
        self._bar = tqdm(total=num_steps, disable=disable, unit="step", dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()

    def update(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def show(self, line: Mapping[str, Any]) -> None:
        """Shows a line of metrics beside the bar."""
        if line["split"] == "valid":
            if "elbo" in line:
                self._shown["valid"] = f"{line['elbo']:.2f}"
        else:
            bound = line.get("bound", line.get("elbo"))
            name = "loss" if bound is None else "bound"
            self._shown[name] = f"{line['loss'] if bound is None else bound:.2f}"
            self._shown.update({f"kl {k}": f"{v:.2f}" for k, v in line.get("kl", {}).items()})
            self._shown.pop("weight", None)
            if line["weight"] != 1:
                self._shown["weight"] = str(line["weight"])
        self._bar.set_postfix(self._shown, refresh=False)
