"""Where metrics go besides the run directory: what is told, and that none can end a training."""

import json
import warnings

import pytest
import torch

import ppl_vae
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.loggers import MLflow, TensorBoard, WeightsAndBiases
from ppl_vae.models import VAE


class Keeping:
    """Keeps what it is told; fails where it is asked to."""

    def __init__(self, failing_at=None):
        self.begun, self.lines, self.closed, self.failing_at = [], [], 0, failing_at

    def begin(self, folder, config, step):
        self.begun.append((folder, dict(config), step))

    def write(self, line):
        if line["step"] == self.failing_at:
            raise TimeoutError("nobody answers")
        self.lines.append(dict(line))

    def close(self):
        self.closed += 1


def train(num_steps=20, **options):
    torch.manual_seed(0)
    x = torch.rand(32, 4)
    model = VAE((4,), latent_dim=2, hidden=(8,))
    settings = {"log_every": 5, "eval_every": 10, "compile": False, "tensorboard": False}
    return ppl_vae.fit(model, MeanFieldGuide(model, hidden=(8,)), x, valid=x, num_steps=num_steps,
                       batch_size=8, progress=False, **{**settings, **options})  # fmt: skip


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_is_told_the_config_and_every_line(tmp_path):
    logger = Keeping()
    train(loggers=[logger], out=tmp_path / "run")
    ((folder, config, step),) = logger.begun
    assert (folder, step, logger.closed) == (tmp_path / "run", 0, 1)
    assert config["num_steps"] == 20
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert logger.lines == [json.loads(line) for line in written]
    train(30, loggers=[logger], out=tmp_path / "run", resume=True)
    assert logger.begun[1][2] == 20 and logger.closed == 2
    assert [line["step"] for line in logger.lines[len(written) :]] == [20, 25, 30]


def test_a_logger_needs_no_run_directory():
    logger = Keeping()
    train(loggers=[logger])
    assert logger.begun[0][0] is None and len(logger.lines) == 6 and logger.closed == 1


def test_a_logger_that_fails_is_left_out_and_the_training_is_what_it_is_without_it():
    failing, other = Keeping(failing_at=10), Keeping()
    with pytest.warns(UserWarning, match="Keeping failed: TimeoutError: nobody answers; the train"):
        found = train(loggers=[failing, other])
    assert [line["step"] for line in failing.lines] == [0, 5] and failing.closed == 0
    assert [line["step"] for line in other.lines] == [0, 5, 10, 10, 15, 20]
    alone = train()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])


@pytest.mark.parametrize("logger", [TensorBoard, WeightsAndBiases, MLflow])
def test_what_is_not_installed_is_said_before_the_first_step(logger, monkeypatch, tmp_path):
    monkeypatch.setattr(f"{logger.__module__}.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'is not installed; pip install "ppl_vae\['):
        train(loggers=[logger()], out=tmp_path / "run")


def test_tensorboard_wants_a_folder():
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    with pytest.raises(ValueError, match="name it by `out`"):
        train(loggers=[TensorBoard()])


def test_mlflow_gets_every_number_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "vaes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(loggers=[MLflow()], out=tmp_path / "run")
        train(30, loggers=[MLflow()], out=tmp_path / "run", resume=True)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("vaes")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["num_steps"] == "20"
    lines = lines_of(tmp_path / "run")
    for split in ("train", "valid"):
        theirs = {
            m.step: m.value for m in client.get_metric_history(run.info.run_id, f"{split}/elbo")
        }
        ours = {line["step"]: line["elbo"] for line in lines if line["split"] == split}
        assert theirs == ours
    assert "train/kl/z" in run.data.metrics


def test_weights_and_biases_gets_every_number(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent, init = [], wandb.init

    def watched(**options):
        run = init(**options)
        log = run.log
        monkeypatch.setattr(run, "log", lambda data: (sent.append(data), log(data)))
        return run

    monkeypatch.setattr(wandb, "init", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(loggers=[WeightsAndBiases("vaes")], out=tmp_path / "run")
        first = (tmp_path / "run" / "wandb.id").read_text()
        train(30, loggers=[WeightsAndBiases("vaes")], out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "wandb.id").read_text() == first
    lines = lines_of(tmp_path / "run")
    assert [
        (data["step"], data[f"{line['split']}/elbo"])
        for data, line in zip(sent, lines, strict=True)
    ] == [(line["step"], line["elbo"]) for line in lines]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
