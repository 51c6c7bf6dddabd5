"""The evidence lower bound, by sampling."""

from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.pair import Pair, samples

__all__ = ["Trace_ELBO"]


class Trace_ELBO(Estimator):  # noqa: N801 (Pyro's style)
    r"""The evidence lower bound, every term sampled, with pathwise gradients.

    .. math:: \log p(x) \ge E_{q(z | x)}[\log p(x, z) - \log q(z | x)]
        \approx \frac1K \sum_k \log p(x, z_k) - \log q(z_k | x), \qquad z_k \sim q(z | x)

    Equal to Pyro's estimator of the same name given the same noise, without its wait for the device
    at every site. The gradient is the pathwise one, so each of the guide's sites must be
    reparameterized. Under a KL weight :math:`\beta` (`ppl_vae.handlers.scale_latents`) the latent
    terms are :math:`\beta (\log p(z) - \log q(z | x))`; for :math:`\beta \le 1` that is still a
    lower bound in expectation. Cost: K runs of guide and model, the encoder run once.

    Args:
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.

    Raises:
        ValueError: The guide has a site that is not reparameterized, or does not fit the model.

    References:
        Kingma and Welling (2014); Ranganath et al. (2014); Wingate and Weber (2013).

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = Trace_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> loss = elbo(torch.rand(3, 784).round())
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)
    """

    def _loss(self, pairs: list[Pair]) -> Tensor:
        elbo = 0.0
        for pair in pairs:
            _check_reparameterized(pair)
            for _, site in samples(pair.model_trace):
                elbo = elbo + site["log_prob"].sum()
            for _, site in samples(pair.guide_trace):
                elbo = elbo - site["log_prob"].sum()
        return -elbo / self.num_particles  # type: ignore[return-value, operator]


def _check_reparameterized(pair: Pair) -> None:
    for name, site in samples(pair.guide_trace):
        if not site["fn"].has_rsample:
            raise ValueError(
                f"Trace_ELBO needs reparameterized guides, and the guide samples '{name}' from "
                f"{type(site['fn']).__name__}, which is not. Accepted there are Pyro's own "
                "estimators: pyro.infer.Trace_ELBO, TraceGraph_ELBO, or TraceEnum_ELBO for a "
                "discrete site that can be enumerated"
            )
