"""Codes of a guide beside the factors of the data: what the metrics take.

Shapes: N data, D code dimensions, F factors.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.data.splits import Splits
from ppl_vae.evaluate.latents import posterior_means

__all__ = ["codes_and_factors"]


def codes_and_factors(
    guide: Callable,
    data: Splits,
    *,
    split: Literal["train", "valid", "test"] = "test",
    sites: Sequence[str] | None = None,
    num_particles: int = 10,
    batch_size: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The guide's posterior means for a split with labels, and these.

    Args:
        guide: The guide.
        data: A data set with labels in that split, as `sprites`. Classes `[N]` are one factor.
        split: Of the data.
        sites: The latent sites whose means are the codes, side by side in this order; all
            real-valued ones in the data plate, in the guide's order, if not given.
        num_particles: Draws to average (see `posterior_means`).
        batch_size: Data at once.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        Codes `[N, D]`, of all sites together, and factors `[N, F]`.

    Raises:
        ValueError: The split has no labels or no data; the guide has no such site.

    Example:
        >>> data = ppl_vae.data.load("digits")
        >>> model = ppl_vae.models.VAE(data.data_shape, 5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> codes, factors = codes_and_factors(guide, data)
        >>> codes.shape[1], factors.shape[1]
        (5, 1)
    """
    if split not in data.labels or len(data.labels[split]) == 0:
        known = [name for name, labels in data.labels.items() if len(labels)]
        raise ValueError(
            f"{data.name}: split {split!r} has no labels; those with labels are {known}"
        )
    labels = data.labels[split]
    means = posterior_means(
        guide, getattr(data, split),
        num_particles=num_particles, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    names = list(means) if sites is None else list(sites)
    if not names or not set(names) <= set(means):
        raise ValueError(
            f"sites is {sites!r}; accepted are real-valued latent sites in the data plate, of "
            f"which the guide has {list(means)}"
        )
    codes = torch.cat([means[name] for name in names], dim=1)
    return codes, labels.reshape(len(labels), -1)
