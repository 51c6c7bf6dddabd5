"""Metrics to MLflow."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vae.loggers.base import check_installed, keep, kept, leaves, scalars

__all__ = ["MLflow"]

# Of a parameter of MLflow.
_LONGEST = 500


class MLflow:
    """Every number of a line to a run of MLflow, and the config as its parameters.

    Its environment variables say the rest: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ... A run
    directory that is resumed goes on in the same run of theirs, whose id it keeps.

    Args:
        experiment: The experiment; what MLFLOW_EXPERIMENT_NAME says, if not given.
    """

    def __init__(self, experiment: str | None = None) -> None:
        self._experiment = experiment

    def begin(self, folder: Path | None, config: Mapping[str, Any], step: int) -> None:
        """As `Logger.begin`."""
        check_installed(find_spec("mlflow") is not None, "MLflow", "mlflow")
        import mlflow  # pyright: ignore[reportMissingImports]

        # A client of our own: the user's active run is not ours to end.
        self._client = mlflow.MlflowClient()
        self._id = kept(folder, "mlflow")
        if self._id is None:
            name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            found = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if found is None else found.experiment_id
            run = None if folder is None else folder.resolve().name
            self._id = self._client.create_run(number, run_name=run).info.run_id
            for key, value in leaves(config):
                self._client.log_param(self._id, key, str(value)[:_LONGEST])
            keep(folder, "mlflow", self._id)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def write(self, line: Mapping[str, Any]) -> None:
        """As `Logger.write`."""
        import mlflow.entities  # pyright: ignore[reportMissingImports]

        metrics = [
            mlflow.entities.Metric(name, value, int(1000 * line.get("seconds", 0)), line["step"])
            for name, value in scalars(line)
        ]
        self._client.log_batch(str(self._id), metrics=metrics)

    def close(self) -> None:
        """As `Logger.close`."""
        self._client.set_terminated(str(self._id))
