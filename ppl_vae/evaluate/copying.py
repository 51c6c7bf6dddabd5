"""Whether a model copies its training data: samples beside data that it has not seen.

Shapes: N samples, M held-out data, T training data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.neighbors import check_rows, nearest_neighbors

__all__ = ["DataCopying", "data_copying"]


@dataclass(frozen=True)
class DataCopying:
    """How near samples come to the training data, and how near held-out data do.

    Attributes:
        samples: The distance of each sample to the nearest training datum, `[N]`.
        held_out: The same of each held-out datum, `[M]`.
    """

    samples: Tensor
    held_out: Tensor

    @property
    def nearer(self) -> Estimate:
        r"""The probability that a sample is nearer to the training data than a held-out datum.

        .. math:: P(d(x) < d(y)) + \tfrac12 P(d(x) = d(y))

        A half where the model draws from the distribution of the data; 1 if it copies; below a
        half if its samples are farther off than data are. The standard error is over samples and
        held-out data, for these training data (Sen, 1960); nan with one of either.
        """
        n, m = len(self.samples), len(self.held_out)
        # Of each held-out datum the samples that are nearer, and of each sample the held-out data.
        of_held_out = _share_nearer(self.samples, self.held_out)
        of_sample = _share_nearer(self.held_out, self.samples)
        square = of_sample.var() / n + of_held_out.var() / m if min(n, m) > 1 else math.nan
        return Estimate(of_held_out.mean().item(), math.sqrt(square))

    @property
    def z(self) -> float:
        r"""The statistic of Mann and Whitney, standardized: far below 0 where data are copied.

        .. math:: Z_U = \frac{U - N M / 2}{\sigma},\qquad U = N M (1 - \text{nearer}),\qquad
            \sigma^2 = \frac{N M}{12}
            \Big(N + M + 1 - \frac{\sum_t (t^3 - t)}{(N + M)(N + M - 1)}\Big)

        t being the sizes of groups of equal distances; 0 where all are equal.
        """
        n, m = len(self.samples), len(self.held_out)
        pooled = torch.cat([self.samples, self.held_out])
        tied = pooled.unique(return_counts=True)[1].double()
        ties = (tied**3 - tied).sum().item() / ((n + m) * (n + m - 1))
        variance = n * m / 12 * (n + m + 1 - ties)
        return n * m * (0.5 - self.nearer.value) / math.sqrt(variance) if len(tied) > 1 else 0.0

    @property
    def p_value(self) -> float:
        r""":math:`\Phi(Z_U)`: how often fresh draws would come as near as these, or nearer.

        Of the hypothesis that samples are as far from the training data as held-out data are; the
        normal approximation, which does from some twenty samples and held-out data on.
        """
        return torch.special.ndtr(torch.tensor(self.z, dtype=torch.float64)).item()


def data_copying(
    samples: Tensor, train: Tensor, held_out: Tensor, *, batch_size: int = 1000
) -> DataCopying:
    r"""The test of Meehan et al. for a model that copies, over all of the data space at once.

    .. math:: d(x) = \min_{t \in \text{train}} \| x - t \|

    Draws of the data's distribution are as far from the training data as held-out data are,
    whatever the model, the distance, or the number of training data; their p-value is uniform.
    Samples that are nearer than that are copies, with little added.

    **Compare like with like**: draws of x, not means of p(x | z), which lack the data's noise;
    samples, training and held-out data of one scale and one binarization. Held-out data must be
    drawn as the training data were. Over all of the space together: copies in one part may hide
    behind samples that are too far off in another, which `samples` and `held_out` show. (Meehan et
    al. split the space into cells for that, and average Z_U over them.)

    Args:
        samples: Draws of the model, `[N, *shape]`.
        train: What it was trained on, `[T, *shape]`.
        held_out: Data that it was not trained on, `[M, *shape]`.
        batch_size: As in `nearest_neighbors`, whose cost and memory it bounds.

    Raises:
        ValueError: Shapes that do not fit, no rows, values that are not finite, a number out of
            range.

    References:
        Meehan, Chaudhuri and Dasgupta (2020), A Non-Parametric Test to Detect Data-Copying in
        Generative Models; Sen (1960), On Some Convergence Properties of U-Statistics.

    Example:
        >>> train, held_out, fresh = torch.randn(3, 500, 2).unbind()
        >>> data_copying(train[:200] + 0.001, train, held_out).p_value < 1e-6
        True
        >>> data_copying(fresh, train, held_out).p_value < 1e-6
        False
    """
    check_rows("data_copying", samples=samples, train=train, held_out=held_out)
    found = [
        nearest_neighbors(x, train, num=1, batch_size=batch_size).distances[:, 0]
        for x in (samples, held_out)
    ]
    return DataCopying(found[0], found[1].to(found[0].device))


def _share_nearer(rivals: Tensor, distances: Tensor) -> Tensor:
    """Of each of `distances`, the share of `rivals` that are less, equal ones by half."""
    rivals = rivals.sort().values
    below = torch.searchsorted(rivals, distances, right=False)
    upto = torch.searchsorted(rivals, distances, right=True)
    return (below + upto).double() / (2 * len(rivals))
