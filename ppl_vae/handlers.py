"""Effect handlers in the form of `pyro.poutine`: the KL weight, on latent sites only."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from numbers import Real

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

__all__ = [
    "ScaleLatentsMessenger",
    "Weight",
    "borrowed_parameters",
    "is_weighted",
    "same_scale",
    "same_weights",
    "scale_latents",
    "weight_of",
    "weighted",
]

_KEY = "kl_weights"
_REST = "scale_without_kl_weight"

Weight = float | torch.Tensor | Mapping[str, float | torch.Tensor]


def scale_latents(weight: Weight) -> "ScaleLatentsMessenger":
    r"""Weighs the log-densities of the latent sites, in model and guide alike.

    Entered around an estimator it turns the ELBO of one datum into

    .. math:: E_q[\log p(x | z) + \beta (\log p(z) - \log q(z | x))]

    that is, it puts the weight :math:`\beta` on the KL term and leaves the observed sites alone.
    Differs from `pyro.poutine.scale` in three ways: it skips observed sites, it takes 0 (a warm-up
    starts there), and it takes one weight for each site.

    Args:
        weight: A number or a tensor `[]`, finite and not negative, for every latent site; or a
            mapping from site names to such weights (a site that is not named keeps weight 1).

    Raises:
        ValueError: The weight is negative, not finite, or a tensor with dimensions.

    References:
        Higgins et al. (2017), beta-VAE; Bowman et al. (2016), Generating Sentences from a
        Continuous Space (the warm-up).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro import poutine
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> with scale_latents(0.25):
        ...     trace = poutine.trace(model).get_trace(torch.tensor(0.))
        >>> trace.nodes["z"]["scale"], trace.nodes["x"]["scale"]
        (0.25, 1.0)
    """
    return ScaleLatentsMessenger(weight)


class ScaleLatentsMessenger(Messenger):
    """The handler behind `scale_latents`.

    It leaves the weight in the site's `infer` dictionary, so that an estimator can tell it from a
    plate's N/B and from a user's own `poutine.scale` (`weight_of`, `same_scale`).

    Args:
        weight: As `scale_latents`.

    Raises:
        ValueError: As `scale_latents`.
    """

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        for name, value in weight.items() if isinstance(weight, Mapping) else [("", weight)]:
            _check(value, f" of site '{name}'" if name else "")
        self.weight = weight

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        weight = self.weight
        if isinstance(weight, Mapping):
            if msg["name"] not in weight:
                return
            weight = weight[msg["name"]]
        rest, msg["scale"] = msg["scale"], msg["scale"] * weight
        # By handler, since replaying hands the guide's `infer` to the model, this handler's weight
        # included. And in a new dictionary: a user may hand one `infer` to several sites.
        weights = {**msg["infer"].get(_KEY, {}), id(self): weight}
        msg["infer"] = {**msg["infer"], _KEY: weights, _REST: rest}


@contextmanager
def same_weights() -> Iterator[None]:
    """Enters, once more, the KL weights that are in force around the caller.

    For a program that runs programs of its own where no outer handler reaches (`poutine.block`),
    and is to weigh their latents as its own are weighed.
    """
    around = [h.weight for h in _PYRO_STACK if isinstance(h, ScaleLatentsMessenger)]
    with ExitStack() as stack:
        for weight in around:
            stack.enter_context(scale_latents(weight))
        yield


def borrowed_parameters() -> Messenger:
    """Around a program that another one runs: its modules' parameters are used as they are.

    They are not registered in Pyro's parameter store a second time, under whatever names they have
    from there.
    """
    return _Borrowing()


class _Borrowing(Messenger):
    def _pyro_param(self, msg: dict) -> None:
        _, *initial = msg["args"]
        if initial and isinstance(initial[0], torch.nn.Parameter):
            msg["value"], msg["done"] = initial[0], True


def weight_of(site: dict) -> float | torch.Tensor:
    """The KL weight that `scale_latents` put on a trace's site, a number or `[]`; 1.0 outside."""
    return math.prod(site["infer"].get(_KEY, {}).values())  # type: ignore[arg-type]


def is_weighted(site: dict) -> bool:
    """Whether `scale_latents` reached a trace's site, whatever its weight."""
    return _KEY in site["infer"]


def same_scale(site: dict, other: dict) -> bool:
    """Whether two sites have one scale: plates, KL weight and a user's own `poutine.scale`.

    No tensor's value is looked at: where a scale is one, the KL weights must be the same objects,
    and what they multiply equal numbers.

    Args:
        site: Of a trace.
        other: Of the same trace, or of the guide's.
    """
    scales = [site["scale"], other["scale"]]
    if any(isinstance(scale, torch.Tensor) for scale in scales):
        one, two = site["infer"].get(_KEY, {}), other["infer"].get(_KEY, {})
        if one.keys() != two.keys() or not all(_same(one[key], two[key]) for key in one):
            return False
        scales = [site["infer"].get(_REST), other["infer"].get(_REST)]
    numbers = all(isinstance(scale, int | float) for scale in scales)
    return numbers and scales[0] == scales[1]


def weighted(weight: Weight) -> AbstractContextManager:
    """`scale_latents(weight)`, or nothing at all where the weight is exactly 1.

    Args:
        weight: Numbers or tensors `[]`, as `scale_latents` takes them.
    """
    unit = isinstance(weight, Real) and weight == 1
    return nullcontext() if unit else scale_latents(weight)


def _same(one: float | torch.Tensor, other: float | torch.Tensor) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    return one == other


def _check(weight: object, where: str) -> None:
    accepted = "accepted are a finite number >= 0 or a 0-dim tensor"
    if isinstance(weight, torch.Tensor):
        # The value is not looked at: that would wait for the device at every step.
        if weight.dim() != 0:
            shape = tuple(weight.shape)
            raise ValueError(f"the KL weight{where} is a tensor of shape {shape}; {accepted}")
    elif isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"the KL weight{where} is {weight!r}; {accepted}")
    elif not 0 <= weight < float("inf"):
        raise ValueError(f"the KL weight{where} is {weight}; {accepted}")
