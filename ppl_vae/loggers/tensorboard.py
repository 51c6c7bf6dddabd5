"""Metrics as TensorBoard events."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vae.loggers.base import check_installed, scalars
from ppl_vae.writing import confined, writing

__all__ = ["TensorBoard"]


class TensorBoard:
    """Every number of a line as a TensorBoard scalar, `train/elbo`, `valid/kl/z`, ...

    The event files lie in the run directory, under `tensorboard/`. Those of an interrupted run that
    lie beyond the step it is resumed from are hidden.
    """

    @staticmethod
    def is_installed() -> bool:
        """Whether TensorBoard can be imported."""
        return find_spec("tensorboard") is not None

    def begin(self, folder: Path | None, config: Mapping[str, Any], step: int) -> None:
        """As `Logger.begin`."""
        check_installed(self.is_installed(), "TensorBoard", "tensorboard")
        if folder is None:
            raise ValueError("TensorBoard writes into the run directory; name it by `out`")
        # Here, since the import takes a second that others need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = confined(folder / "tensorboard" / "any", folder).parent
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        self._writer = SummaryWriter(str(self._folder), purge_step=step if step else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """As `Logger.write`."""
        with writing(self._folder):
            for name, value in scalars(line):
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """As `Logger.close`."""
        with writing(self._folder):
            self._writer.close()
