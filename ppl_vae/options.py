"""The options of a training as plain data, and the classes among them made."""

from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vae.config import ConfigError, instantiate
from ppl_vae.messages import about

__all__ = ["CLASSES", "make_options"]

# Made when there are data, or at once.
_FACTORIES = ("model", "guide", "optimizer", "lr_schedule")
_INSTANCES = ("estimator", "schedule")
CLASSES = (*_FACTORIES, *_INSTANCES)
"""Options that are classes."""


def make_options(options: Mapping[str, Any], allow: Sequence[str] = ()) -> dict[str, Any]:
    """The options of a training with the classes made, as `ppl_vae.training.train` takes them.

    Raises:
        ConfigError: As `instantiate`; the message says of which option.
    """
    made = dict(options)
    for name in (name for name in CLASSES if name in made):
        try:
            made[name] = instantiate(made[name], allow=allow, as_partial=name in _FACTORIES)
        except (TypeError, ValueError) as error:
            raise ConfigError(about(name, made[name], error)) from error
    return made
