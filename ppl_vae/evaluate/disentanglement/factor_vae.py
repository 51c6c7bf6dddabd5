"""The FactorVAE metric: whether the code that varies least tells which factor was held fixed.

Shapes: N data, D codes, F factors, M batches, L rows in a batch.
"""

import numpy as np
from torch import Tensor

from ppl_vae.evaluate.disentanglement.agreement import agreeing_batches, halves
from ppl_vae.evaluate.disentanglement.resampling import resampled_rows, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, tabulate
from ppl_vae.evaluate.estimate import Estimate

__all__ = ["factor_vae_score"]


def factor_vae_score(
    codes: Tensor,
    factors: Tensor,
    *,
    num_batches: int = 800,
    batch_size: int = 64,
    threshold: float = 0.01,
    num_resamples: int = 20,
    seed: int = 0,
) -> Estimate:
    r"""The metric of Kim and Mnih: the accuracy of a majority vote over the least variable code.

    For each factor k in turn a batch of L rows that agree in k is drawn, and votes for

    .. math:: d = \operatorname{argmin}_i \operatorname{Var}_L[z_i] / \operatorname{Var}_N[z_i],
        \qquad k(d) = \operatorname{argmax}_k \#\{(d, k)\}

    over active codes i; the classifier k(d) answers with the factor that most votes for d came
    from. The score is the share of right answers to votes of other batches.

    The paper draws from a generator. Here a batch is drawn from the table: a value evenly from
    those that two rows or more have, then L rows of that value with replacement. So the fewer rows
    share a value, the noisier the votes: some tens of rows are wanted for each. The batches to
    train on come from one half of the rows, those to test on from the other.

    *Ceiling*: 1, of codes that each are one factor, however many codes there are for one. Where one
    factor has no code it is (F - 1 + n/D) / F, for n of D active codes that are noise: the votes of
    noise are then all for that factor, and with much noise its absence hardly shows. *Chance*: 1/F,
    which is also the score where no code is active.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete, F >= 2.
        num_batches: M, rounded up to a multiple of F: of votes to train on, and as many to test on.
        batch_size: L, 2 or more.
        threshold: Codes whose variance over the data is above it are active; the others are pruned.
        num_resamples: Of the data, for the standard error: the standard deviation of the score over
            batches anew, from halves drawn anew with replacement. 0 for none (nan).
        seed: Of halves, batches and resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes or
            factors, a factor that is constant or not discrete, a number out of range, too few rows
            to agree in a factor.

    References:
        Kim and Mnih (2018), Disentangling by Factorising.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
        >>> factor_vae_score(factors.double(), factors).value
        1.0
    """
    metric = "factor_vae_score"
    check_numbers(metric, seed, num_resamples, num_batches=num_batches, batch_size=batch_size)
    if batch_size < 2:
        raise ValueError(f"{metric}: batch_size is 1; accepted is an integer >= 2")
    table = tabulate(codes, factors, metric, min_factors=2)
    generator = np.random.default_rng(seed)
    z = table.standardized[:, table.active(threshold)]
    num_factors = len(table.sizes)
    if z.shape[1] == 0:
        return Estimate(1 / num_factors, 0.0)
    parts = halves(table, metric, generator)
    scores = []
    for weight in weights(len(z), num_resamples, generator):
        train, test = (
            _votes(
                z[rows],
                table.factors[rows],
                (-(-num_batches // num_factors), batch_size),
                generator,
            )
            for rows in (resampled_rows(part, weight) for part in parts)
        )
        answers = train.argmax(axis=1)
        scores.append(test[np.arange(len(test)), answers].sum() / test.sum())
    return spread(np.array(scores))


def _votes(
    z: np.ndarray, factors: np.ndarray, shape: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    """How often each code varied least when each factor was fixed, `[D, F]`.

    `shape` is batches for each factor and rows in a batch.
    """
    votes = np.zeros((z.shape[1], factors.shape[1]), dtype=np.int64)
    for f in range(factors.shape[1]):
        batches = z[agreeing_batches(factors[:, f], *shape, generator)]  # [M / F, L, D]
        least = batches.var(axis=1).argmin(axis=1)
        votes[:, f] = np.bincount(least, minlength=z.shape[1])
    return votes
