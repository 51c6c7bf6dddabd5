"""What there is to choose from, by kind: read off the packages' public names."""

import inspect
import re
from types import ModuleType

from ppl_vae import data, estimators, families, guides, models, schedules

__all__ = ["KINDS", "catalogue"]

_BASES: dict[str, tuple[ModuleType, type]] = {
    "models": (models, models.Model),
    "likelihoods": (models, models.Likelihood),
    "encoders": (models, models.Encoder),
    "decoders": (models, models.Decoder),
    "guides": (guides, guides.Guide),
    "families": (families, families.Family),
    "estimators": (estimators, estimators.Estimator),
    "baselines": (estimators, estimators.Baseline),
    "schedules": (schedules, schedules.Schedule),
}

KINDS = (*_BASES, "data")


def catalogue(kind: str) -> dict[str, str]:
    """The names of one kind, each with the first line of its documentation.

    Args:
        kind: One of `KINDS`.

    Raises:
        ValueError: It is none of them.
    """
    if kind == "data":
        return {
            **{name: _plain(text) for name, text in data.DESCRIPTIONS.items()},
            "<path>": "your own .npz, .npy, folder of .npy shards or folder of images",
        }
    if kind not in _BASES:
        raise ValueError(f"there are no {kind!r} to list; accepted are {', '.join(KINDS)}")
    package, base = _BASES[kind]
    found = {}
    for name in package.__all__:
        member = getattr(package, name)
        is_concrete = inspect.isclass(member) and not inspect.isabstract(member)
        if is_concrete and issubclass(member, base) and member is not base:
            found[name] = _plain((inspect.getdoc(member) or "").split("\n")[0])
    return found


def _plain(text: str) -> str:
    """A line of documentation as a terminal shows it best: formulas and names without marks."""
    text = re.sub(r":math:`([^`]*)`", r"\1", text)
    text = re.sub(r"\\(?:operatorname|mathrm|text)\{(\w+)\}", r"\1", text)
    return re.sub(r"\*\*|`", "", text).replace("\\", "")
