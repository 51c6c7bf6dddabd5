"""Where the lines of metrics go, besides `metrics.jsonl`."""

from ppl_vae.loggers.base import Logger, Loggers
from ppl_vae.loggers.ml_flow import MLflow
from ppl_vae.loggers.tensorboard import TensorBoard
from ppl_vae.loggers.weights_and_biases import WeightsAndBiases

__all__ = ["TRACKERS", "Logger", "Loggers", "MLflow", "TensorBoard", "WeightsAndBiases"]

TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""Those that the command line knows, by its names."""
