"""What follows a training, and what such have in common."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ppl_vae.writing import WriteError, write_text

__all__ = ["Logger", "Loggers", "check_installed", "keep", "kept", "leaves", "scalars"]


class Logger(Protocol):
    """What follows a training. A line is that of `metrics.jsonl`, with `step` and `split`."""

    def begin(self, folder: Path | None, config: Mapping[str, Any], step: int) -> None:
        """Before the first step that this process makes.

        Args:
            folder: The run directory; none where nothing is written.
            config: What `config.yaml` holds.
            step: How many steps are made already; > 0 in a run that is resumed.

        Raises:
            ValueError: It cannot be: what it needs is not installed, or not set.
        """
        ...

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes a line."""
        ...

    def close(self) -> None:
        """After the last."""
        ...


class Loggers:
    """Several. What fails on the way is left out with a warning, and the training goes on.

    Args:
        loggers: Each of them.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._all = list(loggers)
        self._begun: list[Logger] = []

    def begin(self, folder: Path | None, config: Mapping[str, Any], step: int) -> None:
        """As `Logger.begin`; an error is the caller's, since nothing is lost yet."""
        for logger in self._all:
            logger.begin(folder, config, step)
            self._begun.append(logger)

    def write(self, line: Mapping[str, Any]) -> None:
        """As `Logger.write`.

        Raises:
            WriteError: The disk is full; so it is for the rest of the run.
        """
        for logger in list(self._begun):
            try:
                logger.write(line)
            except WriteError:
                raise
            except Exception as error:
                self._begun.remove(logger)
                _warn(logger, error, "the training goes on without it")

    def close(self) -> None:
        """As `Logger.close`, each of them."""
        while self._begun:
            logger = self._begun.pop()
            try:
                logger.close()
            except WriteError:
                raise
            except Exception as error:
                _warn(logger, error, "it may lack the last lines")


def check_installed(installed: bool, what: str, extra: str) -> None:
    """Says what to install.

    Raises:
        ValueError: It is not.
    """
    if not installed:
        raise ValueError(f'{what} is not installed; pip install "ppl_vae[{extra}]"')


def _warn(logger: Logger, error: Exception, then: str) -> None:
    warnings.warn(
        f"{type(logger).__name__} failed: {type(error).__name__}: {error}; {then}. metrics.jsonl "
        "has every line",
        stacklevel=4,
    )


def kept(folder: Path | None, of: str) -> str | None:
    """The id of a run elsewhere that a run directory belongs to."""
    path = None if folder is None else folder / f"{of}.id"
    return path.read_text().strip() if path is not None and path.is_file() else None


def keep(folder: Path | None, of: str, id: str) -> None:
    """Writes such an id down."""
    if folder is not None:
        write_text(folder / f"{of}.id", f"{id}\n")


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values, the names with the split in front."""
    for name, value in leaves(line):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name not in ("step", "split"):
            yield f"{line['split']}/{name}", value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a tree holds, under names with slashes."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
