r"""Linear-Gaussian models: every quantity of a VAE in closed form. The oracle of the test suite.

Shapes: B data, X dimensions of x, D of the latents.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.base import Model

__all__ = ["HierarchicalLinearGaussian", "LinearGaussian"]

Matrix = Tensor | Sequence[Sequence[float]]
Vector = Tensor | Sequence[float] | float


class _LinearGaussian(Model):
    """Conditioning of a joint normal; a leaf says how z and x arise from the prior."""

    def _joint(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prior covariance `[D, D]`, loading `[X, D]`, noise covariance `[X, X]`, bias `[X]`."""
        raise NotImplementedError

    def log_marginal(self, x: Tensor) -> Tensor:
        """The exact log p(x).

        Args:
            x: Data, `[B, X]`.

        Returns:
            log p(x), `[B]`, nats per datum.
        """
        prior, loading, noise, bias = self._joint()
        covariance = loading @ prior @ loading.mT + noise
        return dist.MultivariateNormal(bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        r"""The exact posterior of all latents together.

        .. math:: p(z | x) = N(P^{-1} W^T S^{-1} (x - b),\ P^{-1}),\quad
            P = \Sigma^{-1} + W^T S^{-1} W

        Args:
            x: Data, `[B, X]`.

        Returns:
            A normal of batch shape `[B]` over the latents, concatenated from `z1` upwards, `[D]`.
        """
        prior, loading, noise, bias = self._joint()
        weighted = torch.linalg.solve(noise, loading)  # [X, D]
        precision = torch.linalg.inv(prior) + loading.mT @ weighted
        loc = torch.linalg.solve(precision, ((x - bias) @ weighted).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def _keep(self, name: str, value: Matrix | Vector) -> Tensor:
        """Keeps an `nn.Parameter` as one, to be learned; anything else as a buffer."""
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            # A copy: loading a state must not write into the caller's tensor.
            self.register_buffer(name, torch.as_tensor(value, dtype=_float(value)).clone())
        return getattr(self, name)

    def _check_scale(self, name: str, scale: Tensor) -> None:
        if not ((scale > 0) & scale.isfinite()).all():
            raise ValueError(
                f"{type(self).__name__}: {name} is {scale.tolist()}; accepted are finite scales > 0"
            )


class LinearGaussian(_LinearGaussian):
    r"""Probabilistic PCA or factor analysis, with log p(x) and posterior in closed form.

    .. math:: z \sim N(0, I),\qquad x \sim N(W z + b, s^2)

    Sites: `z`, `[B, D]`; `x`, `[B, X]`; in the plate `data`.

    Args:
        loading: :math:`W`, `[X, D]`. An `nn.Parameter` is learned, anything else stays fixed.
        noise_scale: :math:`s`, a number or `[X]`.
        bias: :math:`b`, `[X]`; zero if not given.

    Raises:
        ValueError: Shapes that do not fit together, or a scale that is not positive.

    References:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis.

    Example:
        >>> model = LinearGaussian(torch.tensor([[2.0], [0.0]]), noise_scale=1.0)
        >>> x = torch.tensor([[0.0, 0.0]])
        >>> model.log_marginal(x)  # x ~ N(0, diag(5, 1))
        tensor([-2.6426])
        >>> model.posterior(x).variance
        tensor([[0.2000]])
    """

    def __init__(self, loading: Matrix, noise_scale: Vector, bias: Vector | None = None) -> None:
        matrix = _matrix(loading, "LinearGaussian: loading")
        super().__init__(matrix.shape[:1])
        loading = self._keep("loading", loading)
        scale = self._keep("noise_scale", noise_scale)
        self._check_scale("noise_scale", scale)
        bias = self._keep("bias", loading.new_zeros(len(matrix)) if bias is None else bias)
        for name, value in (("noise_scale", scale), ("bias", bias)):
            if value.dim() > 0 and tuple(value.shape) != (len(matrix),):
                raise ValueError(
                    f"LinearGaussian: {name} has shape {tuple(value.shape)}, the loading "
                    f"{tuple(matrix.shape)}; accepted is a number or [{len(matrix)}]"
                )

    def forward(self, x: Tensor) -> Tensor:
        """The program; `x` is `[B, X]`."""
        loading = self.loading
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loading.new_zeros(loading.shape[1]), 1.0).to_event(1))
            fn = dist.Normal(z @ loading.mT + self.bias, self.noise_scale).to_event(1)
            return pyro.sample("x", fn, obs=x)  # type: ignore[return-value]

    def _joint(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loading = self.loading
        eye = torch.eye(loading.shape[1], dtype=loading.dtype, device=loading.device)
        noise = (self.noise_scale**2).expand(len(loading)).diag()
        return eye, loading, noise, self.bias.expand(len(loading))


class HierarchicalLinearGaussian(_LinearGaussian):
    r"""Two linear-Gaussian levels, with log p(x) and posterior in closed form.

    .. math:: z_2 \sim N(0, I),\quad z_1 \sim N(W_2 z_2, s_1^2 I),\quad x \sim N(W_1 z_1, s_x^2 I)

    Sites: `z2`, `[B, D2]`; `z1`, `[B, D1]`; `x`, `[B, X]`; in the plate `data`.

    Args:
        loadings: :math:`(W_1, W_2)`, `[X, D1]` and `[D1, D2]`; `nn.Parameter` to learn them.
        scales: :math:`(s_1, s_x)`, numbers.

    Raises:
        ValueError: Shapes that do not fit together, or a scale that is not positive.
    """

    def __init__(
        self, loadings: tuple[Matrix, Matrix], scales: tuple[float | Tensor, float | Tensor]
    ) -> None:
        if len(loadings) != 2 or len(scales) != 2:
            raise ValueError(
                "HierarchicalLinearGaussian: accepted are two loadings (W1, W2) and two scales "
                f"(s1, sx); given were {len(loadings)} and {len(scales)}"
            )
        first = _matrix(loadings[0], "HierarchicalLinearGaussian: loadings[0]")
        second = _matrix(loadings[1], "HierarchicalLinearGaussian: loadings[1]")
        if first.shape[1] != second.shape[0]:
            raise ValueError(
                "HierarchicalLinearGaussian: loadings have the shapes "
                f"{tuple(first.shape)} and {tuple(second.shape)}; accepted are [X, D1] and [D1, D2]"
            )
        super().__init__(first.shape[:1])
        self._keep("loading1", loadings[0])
        self._keep("loading2", loadings[1])
        self._check_scale("scales[0]", self._keep("scale1", scales[0]))
        self._check_scale("scales[1]", self._keep("scale_x", scales[1]))

    def forward(self, x: Tensor) -> Tensor:
        """The program; `x` is `[B, X]`."""
        upper, lower = self.loading2, self.loading1
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(upper.new_zeros(upper.shape[1]), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2 @ upper.mT, self.scale1).to_event(1))
            fn = dist.Normal(z1 @ lower.mT, self.scale_x).to_event(1)
            return pyro.sample("x", fn, obs=x)  # type: ignore[return-value]

    def _joint(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lower, upper = self.loading1, self.loading2
        eye1, eye2, eye_x = (
            torch.eye(size, dtype=lower.dtype, device=lower.device)
            for size in (*upper.shape, lower.shape[0])
        )
        # (z1, z2) = (W2 z2 + s1 e, z2)
        top = torch.cat([upper @ upper.mT + self.scale1**2 * eye1, upper], dim=1)
        prior = torch.cat([top, torch.cat([upper.mT, eye2], dim=1)])
        loading = torch.cat([lower, lower.new_zeros(lower.shape[0], upper.shape[1])], dim=1)
        return prior, loading, self.scale_x**2 * eye_x, lower.new_zeros(lower.shape[0])


def _matrix(value: Matrix, what: str) -> Tensor:
    matrix = torch.as_tensor(value, dtype=_float(value))
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise ValueError(f"{what} has shape {tuple(matrix.shape)}; accepted is a matrix")
    if not matrix.isfinite().all():
        raise ValueError(f"{what} holds values that are not finite")
    return matrix


def _float(value: Matrix | Vector) -> torch.dtype:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.dtype if floating else torch.get_default_dtype()  # type: ignore[union-attr]
