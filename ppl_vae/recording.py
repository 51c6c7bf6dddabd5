"""What a training writes: its config, its metrics, its checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_vae.checkpoint import CheckpointError
from ppl_vae.config import ConfigError, describe
from ppl_vae.data.splits import Splits
from ppl_vae.directory import RunDirectory
from ppl_vae.locking import Lock
from ppl_vae.loggers import Logger, Loggers, TensorBoard
from ppl_vae.loop import Loop

__all__ = ["Recorder", "run_config"]

# What may differ when a run is resumed: these change where and how long, not what.
_FREE = frozenset({"num_steps", "device", "root", "checkpoint_every", "compile"})


class Recorder:
    """Writes a run directory, and holds it until `close`; without one, only keeps the metrics.

    Args:
        out: The run directory, or none.
        config: What `config.yaml` is to hold.
        resume: Go on from the checkpoint there.
        tensorboard: Write TensorBoard events; where installed, if none.
        loggers: Where the lines go besides.

    Raises:
        ValueError: There is a run already and `resume` is false, or it was made with other
            arguments, or the folder cannot be written to.
    """

    def __init__(
        self,
        out: str | Path | None,
        config: Mapping[str, Any],
        *,
        resume: bool,
        tensorboard: bool | None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self.path = None if out is None else Path(out)
        self._directory = None if out is None else RunDirectory(out)
        self._config, self._resume = dict(config), resume
        wanted = TensorBoard.is_installed() if tensorboard is None else tensorboard
        if wanted and self.path is not None:
            loggers = [TensorBoard(), *loggers]
        self._loggers = Loggers(loggers)
        self._lock: Lock | None = None
        if self._directory is not None:
            self._check(self._directory)

    def begin(self, loop: Loop) -> None:
        """Makes the folder, or takes the training to where its checkpoint stands.

        Raises:
            LockedError: Another training is writing the folder.
            CheckpointError: The checkpoint is damaged, or of another training.
            WriteError: The folder cannot be written.
        """
        if self._directory is None:
            self._loggers.begin(None, self._config, loop.step)
            return
        self._directory.create()
        self._lock = Lock(self._directory.path)
        # Again, since another process may have begun a run here, and ended it.
        self._check(self._directory)
        state = self._directory.load() if self._resume else None
        if state is not None:
            self._go_on(loop, self._directory, state)
        self._directory.write_config(self._config)
        if state is None:
            self._directory.keep_metrics(0)
            self.save(loop)
        self._loggers.begin(self._directory.path, self._config, loop.step)

    def write(self, line: dict[str, Any]) -> None:
        """Takes a line of metrics."""
        self.lines.append(line)
        if self._directory is not None:
            self._directory.append_metrics(line)
        self._loggers.write(line)

    def save(self, loop: Loop) -> None:
        """Writes the checkpoint to resume from."""
        if self._directory is not None:
            state = loop.state_dict()
            state["progress"]["lines"] = len(self.lines)
            self._directory.save(state)

    def save_best(self, loop: Loop) -> None:
        """Writes the parameters of the best validation."""
        if self._directory is not None:
            self._directory.save(loop.best_state(), "best")

    def close(self) -> None:
        """Closes what follows the training, and gives the folder back."""
        try:
            self._loggers.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _check(self, directory: RunDirectory) -> None:
        """Refuses what would overwrite a run, or go on with it as another."""
        if directory.exists:
            if not self._resume:
                raise ValueError(
                    f"out is {directory.path}, which holds a run already; resume it (resume=True, "
                    "--resume), or name another folder"
                )
            _check_same(directory.config(), self._config, directory.path)

    def _go_on(self, loop: Loop, directory: RunDirectory, state: dict[str, Any]) -> None:
        try:
            lines = directory.metrics()[: state["progress"]["lines"]]
            loop.load_state_dict(state, lines[-1]["seconds"] if lines else 0.0)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the checkpoint in {directory.path} is none of this training "
                f"({type(error).__name__}: {reason}); restore it from a copy, or name another "
                "folder to start again"
            ) from None
        self.lines = directory.keep_metrics(len(lines))
        loop.best = directory.load("best")


def run_config(
    data: Any,
    model: Any,
    guide: Any,
    estimator: Any,
    schedule: Any,
    optimizer: Any,
    lr_schedule: Any,
    *,
    extra: Mapping[str, Any] | None,
    **plain: Any,
) -> dict[str, Any]:
    """The whole run as plain data: what `config.yaml` holds, and the command line reads.

    An object that has no class to name, such as a plain function, is written as null; `load_run`
    then asks for it.
    """
    objects = {
        "model": (model, ("data_shape", "model")),
        "guide": (guide, ("model",)),
        "estimator": (estimator, ()),
        "schedule": (schedule, ()),
        "optimizer": (optimizer, ()),
        "lr_schedule": (lr_schedule, ()),
    }
    config: dict[str, Any] = {"data": None, "binarize": None}
    if isinstance(data, Splits):
        config = {"data": data.name, "binarize": data.binarize}
    config |= extra or {}
    for name, (value, omit) in objects.items():
        try:
            config[name] = describe(value, omit=omit)
        except ConfigError:
            config[name] = None
    return {**config, **plain}


def _check_same(stored: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    for name in given.keys() - _FREE:
        if stored.get(name) != given[name]:
            raise ValueError(
                f"the run in {path} was made with {name} = {stored.get(name)!r}, and is to be "
                f"resumed with {given[name]!r}; resume it with its own config "
                f"(--config {path / 'config.yaml'}), or name another folder for another run"
            )
