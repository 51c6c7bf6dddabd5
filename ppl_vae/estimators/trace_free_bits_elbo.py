"""Free bits: a floor under the KL of each group of latents."""

from dataclasses import replace
from typing import Literal

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.term_modifier import TermModifier, num_data

__all__ = ["TraceFreeBits_ELBO"]


class TraceFreeBits_ELBO(TermModifier):  # noqa: N801 (Pyro's style)
    r"""A floor under the KL of each group of latents; below it a KL is free.

    .. math:: \sum_b E_q[\log p(x_b | z_b)]
        - B \sum_g \max\Big(\lambda,\ \frac1B \sum_b KL_g(q(z_b | x_b) \| p(z_b))\Big)

    The KL of a group is averaged over the batch, and the particles, before it is compared, so
    single data may be below the floor. A group is a latent site, or each unit of it. Below the
    ELBO, so still a lower bound of log p(x). A KL weight is refused: the floor replaces the
    warm-up. Cost: that of the inner estimator.

    Args:
        nats: :math:`\lambda` for each group, nats per datum, >= 0; 0 changes nothing where the KLs
            are in closed form.
        per: `"site"` or `"unit"`.
        estimator: Where the terms come from, `Trace_ELBO`, `TraceAnalyticKL_ELBO` or
            `TraceSTL_ELBO`; `TraceAnalyticKL_ELBO()` if not given.

    Raises:
        ValueError: `nats` or `per` is not acceptable; the estimator has no KL terms; a KL weight is
            in force; a latent site lies outside the data plate, or does not fall into units; the
            guide has a site that is not reparameterized, or no density.

    References:
        Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow,
        equation 15.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceFreeBits_ELBO(0.5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        nats: float = 0.5,
        per: Literal["site", "unit"] = "site",
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__(estimator)
        if not 0 <= nats < float("inf"):
            raise ValueError(f"TraceFreeBits_ELBO: nats is {nats}; accepted is a number >= 0")
        if per not in ("site", "unit"):
            raise ValueError(f"TraceFreeBits_ELBO: per is {per!r}; accepted are 'site', 'unit'")
        self.nats, self.per = nats, per

    def _loss(self, pairs: list[Pair]) -> Tensor:
        reconstruction = 0.0
        groups: dict[str, Tensor] = {}  # of each site [], or [*event]
        for pair in pairs:
            self._check(pair, "or TraceAnalyticKL_ELBO under the weight")
            self._check_groups(pair)
            pair = _by_unit(pair) if self.per == "unit" else pair
            observed, terms = self.estimator.terms(pair)
            reconstruction = reconstruction + observed
            for name, _, site in pair.latents:
                event_dim = len(site.get("units", ()))
                kl = terms[name].sum(tuple(range(terms[name].dim() - event_dim)))
                groups[name] = groups[name] + kl if name in groups else kl
        draws, size = self.num_draws, num_data(pairs[0])
        means = [self._mean(kl / (draws * size)) for kl in groups.values()]
        held = sum(mean.clamp(min=self.nats).sum() for mean in means)
        return -reconstruction / draws + size * held  # type: ignore[operator, return-value]

    def _check_groups(self, pair: Pair) -> None:
        plate = pair.data_plate
        if pair.auxiliary:
            raise ValueError(
                f"TraceFreeBits_ELBO needs the KL of each site, and the guide draws its latents "
                f"from the auxiliary site '{pair.auxiliary[0][0]}'; use MeanFieldGuide"
            )
        for name, site, _ in pair.latents:
            if not any(frame.name == plate.name for frame in site["cond_indep_stack"]):
                raise ValueError(
                    f"TraceFreeBits_ELBO averages the KL of each site over the batch, and '{name}' "
                    f"lies outside the plate '{plate.name}'; use TraceAnalyticKL_ELBO"
                )


def _by_unit(pair: Pair) -> Pair:
    """The pair with its latents' log-densities unit by unit, `[*plates, *event]`."""
    model_trace, guide_trace = pair.model_trace.copy(), pair.guide_trace.copy()
    for name, model_site, guide_site in pair.latents:
        for trace, site in ((model_trace, model_site), (guide_trace, guide_site)):
            trace.nodes[name] = _units(name, site)
    return replace(pair, model_trace=model_trace, guide_trace=guide_trace)


def _units(name: str, site: dict) -> dict:
    fn, count = site["fn"], site["fn"].event_dim
    if count and not (isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == count):
        raise ValueError(
            f"TraceFreeBits_ELBO: per is 'unit', and '{name}' is a {type(fn).__name__}, which does "
            "not fall into independent units; use per='site'"
        )
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * count)
    fn = fn.base_dist if count else fn
    log_prob = scale_and_mask(fn.log_prob(site["value"]), site["scale"], mask)
    units = fn.batch_shape[-count:] if count else ()
    return {**site, "fn": fn, "mask": mask, "log_prob": log_prob, "units": units}
