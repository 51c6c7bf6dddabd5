"""Metrics to Weights & Biases."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vae.loggers.base import check_installed, keep, kept, scalars

__all__ = ["WeightsAndBiases"]


class WeightsAndBiases:
    """Every number of a line to a run of Weights & Biases, against its `step`.

    Its environment variables say the rest: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ... A
    run directory that is resumed goes on in the same run of theirs, whose id it keeps.

    Args:
        project: The project; what WANDB_PROJECT says, if not given.
    """

    def __init__(self, project: str | None = None) -> None:
        self._project = project

    def begin(self, folder: Path | None, config: Mapping[str, Any], step: int) -> None:
        """As `Logger.begin`."""
        check_installed(find_spec("wandb") is not None, "Weights & Biases", "wandb")
        import wandb  # pyright: ignore[reportMissingImports]

        name = None if folder is None else folder.resolve().name
        self._run = wandb.init(
            project=self._project, name=name, id=kept(folder, "wandb"), resume="allow",
            config=dict(config), dir=None if folder is None else str(folder),
        )  # fmt: skip
        keep(folder, "wandb", self._run.id)
        # Not their own count, which cannot go back to where a run is resumed from.
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Mapping[str, Any]) -> None:
        """As `Logger.write`."""
        self._run.log({**dict(scalars(line)), "step": line["step"]})

    def close(self) -> None:
        """As `Logger.close`."""
        self._run.finish()
