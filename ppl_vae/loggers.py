"""Where the lines of metrics go, besides `metrics.jsonl`."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes every number of a line as a TensorBoard scalar, `train/elbo`, `valid/kl/z`, ...

    Args:
        folder: Where the event files go.
        start: The step that training goes on from; later events of an interrupted run are hidden.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        if not self.is_installed():
            raise ValueError(
                "tensorboard is true, but TensorBoard is not installed; "
                'pip install "ppl_vae[tensorboard]"'
            )
        # Here, since the import takes a second that others need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start if start else None)

    @staticmethod
    def is_installed() -> bool:
        """Whether TensorBoard can be imported."""
        return find_spec("tensorboard") is not None

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes one line of metrics."""
        for name, value in _numbers(line):
            if name not in ("step", "split"):
                self._writer.add_scalar(f"{line['split']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
