"""The beta-VAE metric: whether differences of codes tell which factor was held fixed.

Shapes: N data, D codes, F factors, M differences, L pairs in a difference.
"""

import numpy as np
from torch import Tensor

from ppl_vae.evaluate.disentanglement.agreement import agreeing_pairs, halves
from ppl_vae.evaluate.disentanglement.resampling import resampled_rows, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, standardize, tabulate
from ppl_vae.evaluate.estimate import Estimate

__all__ = ["beta_vae_score"]


def beta_vae_score(
    codes: Tensor,
    factors: Tensor,
    *,
    num_differences: int = 1000,
    num_pairs: int = 64,
    num_resamples: int = 20,
    seed: int = 0,
) -> Estimate:
    r"""The metric of Higgins et al.: the accuracy of a linear classifier of mean differences.

    For each factor k in turn, L pairs of rows are drawn that agree in k, and make one input

    .. math:: \frac1L \sum_{l=1}^L |z_{l1} - z_{l2}|, \quad [D]

    from which multinomial logistic regression tells k. The score is the share of right answers to
    other inputs.

    The paper draws from a generator. Here a pair is drawn from the table: a value evenly from those
    that two rows or more have, then two different rows of that value. The pairs to train on come
    from one half of the rows, those to test on from the other. Inputs are standardized, so that the
    scale of a code does not matter to the regression (scikit-learn's, C = 1).

    *Ceiling*: 1, of codes that each are one factor; also where one factor has no code, since then
    no difference is small. *Chance*: 1/F.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete, F >= 2.
        num_differences: M, rounded up to a multiple of F: of inputs to train on, and as many to
            test on.
        num_pairs: L.
        num_resamples: Of the data, for the standard error: the standard deviation of the score over
            pairs anew, from halves drawn anew with replacement. 0 for none (nan).
        seed: Of halves, pairs and resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes or
            factors, a factor that is constant or not discrete, a number out of range, too few rows
            to agree in a factor.

    References:
        Higgins et al. (2017), beta-VAE: Learning Basic Visual Concepts with a Constrained
        Variational Framework, section 3.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
        >>> beta_vae_score(factors.double(), factors).value
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    metric = "beta_vae_score"
    counts = {"num_differences": num_differences, "num_pairs": num_pairs}
    check_numbers(metric, seed, num_resamples, **counts)
    table = tabulate(codes, factors, metric, min_factors=2)
    generator = np.random.default_rng(seed)
    parts = halves(table, metric, generator)
    each = -(-num_differences // len(table.sizes))
    fixed = np.repeat(np.arange(len(table.sizes)), each)
    z, scores = table.standardized, []
    for weight in weights(len(z), num_resamples, generator):
        train, test = (
            _differences(z[rows], table.factors[rows], (each, num_pairs), generator)
            for rows in (resampled_rows(part, weight) for part in parts)
        )
        told = LogisticRegression(max_iter=1000).fit(standardize(train, train), fixed)
        scores.append((told.predict(standardize(test, train)) == fixed).mean())
    return spread(np.array(scores))


def _differences(
    z: np.ndarray, factors: np.ndarray, shape: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    """Mean differences with each factor fixed in turn, `[F M, D]`; `shape` is M and L."""
    found = []
    for column in factors.T:
        one, other = agreeing_pairs(column, shape[0] * shape[1], generator)
        found.append(np.abs(z[one] - z[other]).reshape(*shape, -1).mean(axis=1))
    return np.concatenate(found)
