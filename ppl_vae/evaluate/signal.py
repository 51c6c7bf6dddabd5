"""What the gradients of one group of parameters are worth: figures from moments, with errors.

Shapes: n draws, S segments (parameters), G of them in the group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.moments import (
    Deviations,
    Moments,
    by_segment,
    jackknife,
    ratios,
    squared_length,
    total_variance,
)

__all__ = ["GroupSignal", "Reference", "Sampled", "group_signal"]


@dataclass(frozen=True)
class GroupSignal:
    r"""The gradients g of a group of parameters, with mean :math:`\mu` and covariance C.

    Of minus the bound, summed over the batch, so in nats per unit of a parameter. Standard errors
    are the jackknife's over draws, except for `dsnr`. What is squared is unbiased, and where there
    is little to find it may be negative; its root is then given as 0, with an error of nan. Where
    all draws are one and the same, ratios are infinite or nan.

    Attributes:
        num_entries: How many numbers the parameters have.
        num_varying: How many of their gradients are not the same in every draw.
        squared_norm: :math:`|\mu|^2`.
        variance: :math:`\operatorname{tr} C`.
        squared_snr: :math:`|\mu|^2 / \operatorname{tr} C`.
        entry_snr: The mean over entries that vary of :math:`|m_j| / s_j`, mean and standard
            deviation of the draws. Not corrected: without any signal it is about
            :math:`\sqrt{2 / \pi n}`.
        dsnr: The directional signal-to-noise ratio, :math:`E[|g_\parallel| / |g_\perp|]`, of g's
            part along the direction u and of what remains. u is that of the reference; without
            one, of the mean of all other draws, which points the less to :math:`\mu` the less
            signal there is: then it is too low. A random g of P entries has about
            :math:`\sqrt{2 / \pi P}`; a group of one entry, infinity. The standard error is that of
            the mean over draws, u held.
        squared_bias: :math:`|\mu - r|^2` for a reference r, or none. The error of r is taken into
            account where an estimator gave it.
    """

    num_entries: int
    num_varying: int
    squared_norm: Estimate
    variance: Estimate
    squared_snr: Estimate
    entry_snr: Estimate
    dsnr: Estimate
    squared_bias: Estimate | None

    @property
    def norm(self) -> Estimate:
        r"""The norm of the mean gradient, :math:`|\mu|`; error by the delta method."""
        return _root(self.squared_norm)

    @property
    def snr(self) -> Estimate:
        r"""The signal-to-noise ratio of the whole, :math:`|\mu| / \sqrt{\operatorname{tr} C}`."""
        return _root(self.squared_snr)

    @property
    def bias(self) -> Estimate | None:
        r"""The length of the bias, :math:`|\mu - r|`, or none."""
        return None if self.squared_bias is None else _root(self.squared_bias)


@dataclass(frozen=True)
class Sampled:
    """Draws of an estimator's gradient, gone through twice.

    Attributes:
        moments: After the first time.
        deviations: After the second, along `"mean"` and, with a reference, `"off"`, the mean less
            the reference, and `"reference"`.
        sizes: Entries of each segment.
    """

    moments: Moments
    deviations: Deviations
    sizes: list[int]


@dataclass(frozen=True)
class Reference:
    """A gradient to compare with.

    Attributes:
        value: r, `[P]`.
        deviations: Of its own draws, along `"off"`; none if it is exact.
    """

    value: Tensor
    deviations: Deviations | None


def group_signal(
    sampled: Sampled, reference: Reference | None, members: Sequence[int]
) -> GroupSignal:
    """The figures of one group, of the segments `members`."""
    index = torch.tensor(list(members))
    moments, deviations, sizes = sampled.moments, sampled.deviations, sampled.sizes

    def total(values: Tensor) -> Tensor:
        """Over a group, of what is known of each entry, `[P] -> []`."""
        return by_segment(values, sizes).cpu()[index].sum()

    def each(values: Tensor) -> Tensor:
        """Likewise of each draw, `[n, S] -> [n]`."""
        return values.cpu()[:, index].sum(1)

    mean, squares = moments.mean, each(deviations.squares)
    along = each(deviations.along("mean"))
    length, lengths = squared_length(total(mean**2), along, squares)
    trace, traces = total_variance(squares)
    num_entries = sum(sizes[i] for i in members)
    num_varying = int(total((moments.squares > 0).double()))
    snr = total(ratios(mean, moments.variance)) / num_varying
    bias = None
    if reference is None:
        dsnr = _dsnr_of_others(total(mean**2), along, squares)
    else:
        off, r = mean - reference.value, reference.value
        dsnr = _dsnr(
            total(r**2), total(off**2), total(off * r),
            each(deviations.along("reference")), each(deviations.along("off")), squares,
        )  # fmt: skip
        value, without = squared_length(total(off**2), each(deviations.along("off")), squares)
        bias = jackknife(value, without)
        if (own := reference.deviations) is not None:
            theirs = each(own.squares)
            # Its draws pull the other way: r - m.
            _, rest = squared_length(total(off**2), -each(own.along("off")), theirs)
            error = math.hypot(bias.standard_error, jackknife(value, rest).standard_error)
            noise = total_variance(theirs)[0] / len(theirs)
            bias = Estimate((value - noise).item(), error)
    if num_entries == 1:  # Nothing is orthogonal, but for rounding.
        dsnr = torch.full_like(dsnr, math.inf)
    return GroupSignal(
        num_entries=num_entries,
        num_varying=num_varying,
        squared_norm=jackknife(length, lengths),
        variance=jackknife(trace, traces),
        squared_snr=jackknife(length / trace, lengths / traces),
        entry_snr=jackknife(snr, each(deviations.ratios) / num_varying),
        dsnr=Estimate.of_mean(dsnr),
        squared_bias=bias,
    )


def _dsnr_of_others(square: Tensor, along: Tensor, squares: Tensor) -> Tensor:
    """|parallel| / |orthogonal| of each draw to the mean of the others, `[n]`.

    The draw is that mean and n / (n - 1) times its own deviation, whose part across is all there
    is across.
    """
    n = len(squares)
    length = square - 2 * along / (n - 1) + squares / (n - 1) ** 2  # of the mean of the others
    inner = along - squares / (n - 1)  # of it, and the deviation
    scale = n / (n - 1)
    across = scale**2 * (squares - inner**2 / length)
    return (length + scale * inner).abs() / length.sqrt() / across.clamp(min=0).sqrt()


def _dsnr(
    square: Tensor, off_square: Tensor, off_inner: Tensor,
    along: Tensor, along_off: Tensor, squares: Tensor,
) -> Tensor:  # fmt: skip
    """|parallel| / |orthogonal| of each draw to a reference r, `[n]`.

    The draw is r and what it is off, whose part across is all there is across.
    """
    length = off_square + 2 * along_off + squares  # of what each draw is off
    inner = off_inner + along  # of that, and r
    across = length - inner**2 / square
    return (square + inner).abs() / square.sqrt() / across.clamp(min=0).sqrt()


def _root(squared: Estimate) -> Estimate:
    """The root; its error is that of the square over twice the root."""
    if not squared.value > 0:
        return Estimate(0.0 if squared.value <= 0 else math.nan, math.nan)
    root = math.sqrt(squared.value)
    return Estimate(root, squared.standard_error / (2 * root))
