"""What an estimator's gradient is worth at a point: signal, noise, direction, bias.

Shapes: n draws, P entries of all gradients together.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.estimators.sites import samples
from ppl_vae.evaluate.draws import EstimatorDraws, GradientDraws, at_rest, seeds
from ppl_vae.evaluate.moments import Deviations, Moments
from ppl_vae.evaluate.signal import GroupSignal, Reference, Sampled, group_signal
from ppl_vae.handlers import Weight
from ppl_vae.optimizers import check_prefix, fits
from ppl_vae.randomness import on_copies

__all__ = ["GradientSignal", "GroupSignal", "gradient_signal"]


@dataclass(frozen=True)
class GradientSignal:
    """What `gradient_signal` found.

    Attributes:
        groups: The figures of each group, by its prefix.
        mean: The mean gradient of each parameter, by its name, in double; a reference for another
            call, though one whose error that call does not know.
        variance: The variance of each entry over draws, likewise.
        num_draws: n.
    """

    groups: dict[str, GroupSignal]
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    num_draws: int

    def __getitem__(self, group: str) -> GroupSignal:
        return self.groups[group]


def gradient_signal(
    model: Callable,
    guide: Callable,
    estimator: ELBO,
    x: Tensor,
    *,
    num_draws: int = 200,
    groups: Sequence[str] | None = None,
    reference: Mapping[str, Tensor] | ELBO | None = None,
    reference_draws: int | None = None,
    weight: Weight = 1.0,
    seed: int = 0,
    max_entries: int = 20_000_000,
) -> GradientSignal:
    r"""Signal, noise, direction and bias of the gradients that an estimator gives for one batch.

    .. math:: \text{SNR} = \frac{|\mu|}{\sqrt{\operatorname{tr} C}}, \qquad
        \text{SNR}_{\text{entry}} = \frac1P \sum_j \frac{|\mu_j|}{\sigma_j}, \qquad
        \text{DSNR} = E\Big[\frac{|g_\parallel|}{|g_\perp|}\Big], \quad
        g_\parallel = (g \cdot u) u,\ g_\perp = g - g_\parallel,\ u = \frac{\mu}{|\mu|}

    for independent gradients g with mean :math:`\mu` and covariance C, at parameters and data that
    stay what they are; so this is the noise of the guide's draws, not that of minibatches. SNR and
    :math:`|\mu|` are corrected for the noise of the mean itself, which without signal would make an
    SNR of :math:`1 / \sqrt n`; see `GroupSignal` for each figure and its error.

    Draw i starts from a seed that depends on `seed` and i alone. Two estimators that use their
    random numbers alike (those of the same K and M do) then see the same samples, which makes
    *differences* between their means less noisy than the means. It makes no figure of one
    estimator more exact, and its standard errors are those of each estimator alone: for a
    difference they are too large. Draws of different K share a stream, and not their samples.

    Parameters, their `grad`, buffers, parameter store, estimator and random streams are left as
    they were. Programs run in the mode that they are in; call `eval()` first where there is dropout
    or batch normalization. Cost: n gradients, and as many again where they are too many numbers to
    keep; memory: a dozen vectors of P doubles, and what is kept.

    Args:
        model: The model.
        guide: The guide.
        estimator: A `pyro.infer.ELBO`, of ours or Pyro's own.
        x: Data, `[B, *data_shape]`.
        num_draws: n >= 3; for figures to a tenth, hundreds.
        groups: Prefixes of parameter names, as in `fit`'s parameter groups; they may overlap, and
            `""` is everything. If not given `"model"`, `"guide"`, `"param"` (of plain functions),
            and the guide's head of each latent site where it has one, `"guide.heads.z"`.
        reference: A gradient by parameter names, taken as exact; or an estimator, whose mean
            gradient it is.
        reference_draws: How many draws that takes; 10 n if not given.
        weight: The KL weight.
        seed: Of the draws; those of the reference are others.
        max_entries: How many numbers may be kept, n P of them; beyond, draws are made twice. The
            figures are the same.

    Raises:
        ValueError: No estimator; fewer than 3 draws; a prefix that fits no parameter; a reference
            that lacks a parameter or has another shape; a gradient that is not finite.

    References:
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better, for SNR and
        DSNR; Tucker et al. (2019), Doubly Reparameterized Gradient Estimators.

    Example:
        >>> model = ppl_vae.models.VAE((4,), latent_dim=2, hidden=(5,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(5,))
        >>> elbo = ppl_vae.estimators.TraceIWAE_ELBO(num_particles=10)
        >>> found = gradient_signal(model, guide, elbo, torch.rand(3, 4).round(), num_draws=50)
        >>> found["guide.heads.z"].num_entries
        24
        >>> found["model"].snr.value > found["guide"].snr.value
        True
    """
    num_reference = 10 * num_draws if reference_draws is None else reference_draws
    counts = (("num_draws", num_draws, 3), ("reference_draws", num_reference, 3),
              ("max_entries", max_entries, 0))  # fmt: skip
    for name, value, low in counts:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(
                f"gradient_signal: {name} is {value!r}; accepted is an integer >= {low}"
            )
    with at_rest():
        point = EstimatorDraws(model, guide, estimator, x, weight)
        prefixes = _groups(point, guide, x) if groups is None else _listed(groups)
        if not prefixes:
            raise ValueError(
                "gradient_signal: there is no group; accepted are prefixes of the names of "
                "parameters that ask for a gradient, of which model and guide have "
                f"{len(point.parameters)}"
            )
        for prefix in prefixes:
            check_prefix(prefix, point.parameters, "groups")
        names = [n for n in point.parameters if any(fits(n, prefix) for prefix in prefixes)]
        sizes = [point.parameters[name].numel() for name in names]
        drawn = GradientDraws(point, names, seeds(seed, num_draws), max_entries)
        moments = _moments(drawn)
        directions, compared, theirs = {"mean": moments.mean}, None, None
        if reference is not None:
            if isinstance(reference, Mapping):
                value = _given(reference, point, names)
            else:
                other = EstimatorDraws(model, guide, reference, x, weight)
                theirs = GradientDraws(
                    other, names, seeds(seed, num_reference, "reference"), max_entries
                )
                of_theirs = _moments(theirs)
                value = of_theirs.mean
            off = moments.mean - value
            own = None if theirs is None else _deviations(of_theirs, theirs, sizes, {"off": off})
            compared = Reference(value, own)
            directions |= {"off": off, "reference": value}
        sampled = Sampled(moments, _deviations(moments, drawn, sizes, directions), sizes)
        found = {
            prefix: group_signal(
                sampled, compared, [i for i, name in enumerate(names) if fits(name, prefix)]
            )
            for prefix in prefixes
        }
        shapes = {name: point.parameters[name].shape for name in names}
    return GradientSignal(
        found, _by_name(moments.mean, shapes), _by_name(moments.variance, shapes), num_draws
    )


def _listed(groups: Sequence[str]) -> list[str]:
    return [groups] if isinstance(groups, str) else list(groups)


def _groups(point: EstimatorDraws, guide: Callable, x: Tensor) -> list[str]:
    """Model, guide, what belongs to neither, and the head of each site."""
    wholes = [p for p in ("model", "guide", "param") if any(fits(n, p) for n in point.parameters)]
    with on_copies(guide), torch.no_grad():
        sites = dict(samples(poutine.trace(guide).get_trace(x)))
    heads = (re.match(r"guide\.(?:.+\.)?heads\.([^.]+)(?=\.)", name) for name in point.parameters)
    found = [match[0] for match in heads if match is not None and match[1] in sites]
    return list(dict.fromkeys([*wholes, *found]))


def _moments(gradients: Iterable[Tensor]) -> Moments:
    moments = Moments()
    for gradient in gradients:
        moments.add(gradient)
    return moments


def _deviations(
    moments: Moments, gradients: Iterable[Tensor], sizes: list[int], along: dict[str, Tensor]
) -> Deviations:
    deviations = Deviations(moments, sizes, along)
    for gradient in gradients:
        deviations.add(gradient)
    return deviations


def _given(reference: Mapping[str, Tensor], point: EstimatorDraws, names: list[str]) -> Tensor:
    """A reference by names as one vector, `[P]`."""
    for name in names:
        wanted = tuple(point.parameters[name].shape)
        found = tuple(reference[name].shape) if name in reference else "missing"
        if found != wanted:
            raise ValueError(
                f"gradient_signal: the reference of '{name}' is {found}; accepted is a tensor of "
                f"the parameter's shape, {wanted}, for each of {len(names)} parameters"
            )
    like = point.parameters[names[0]]
    return torch.cat([reference[name].to(like.device).double().flatten() for name in names])


def _by_name(values: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """One vector, `[P]`, taken apart."""
    parts = values.split([shape.numel() for shape in shapes.values()])
    return {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
