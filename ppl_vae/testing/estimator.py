"""`check_estimator`.

Shapes: K particles, B data.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.sites import samples
from ppl_vae.randomness import seed_all
from ppl_vae.testing.handlers import Enlarge
from ppl_vae.testing.isolation import close, expect, isolated, keeping, reporting
from ppl_vae.testing.programs import find_leaves
from ppl_vae.testing.svi import step

__all__ = ["Factory", "check_estimator"]

#: `factory(num_particles=K, vectorize_particles=...)` makes an estimator.
Factory = Callable[..., ELBO]

_RATIO = 2.5  # N/B


def check_estimator(
    factory: Factory,
    model: Callable,
    guide: Callable,
    x: Tensor,
    *args: Any,
    num_particles: Sequence[int] = (1, 2),
    num_draws: int = 30,
    seed: int = 0,
) -> None:
    """Checks that a `pyro.infer.ELBO` keeps the promises of `ppl_vae.estimators.Estimator`.

    - Nothing is drawn from the random stream but the particles: the first evaluation, which may
      have to find the plate nesting, gives what the second gives.
    - `loss`, `loss_and_grads`, `differentiable_loss`, and `elbo(model, guide)` where both are
      modules, have one value, bit for bit; all but the first have one gradient, and `loss` leaves
      none. An estimator that remembers something has `state_dict` and `load_state_dict`.
    - Gradients reach what Pyro cannot see, such as a tensor in a closure.
    - Loss and gradients are linear in the N/B of a subsampled data plate (skipped where a latent
      lies outside of it).
    - Particles drawn at once, and one after the other, agree in expectation.
    - One step of plain `SVI` moves every parameter (`check_svi`).

    That the bound is one, and the gradient its own, `check_bound` and `check_unbiased` say.

    Args:
        factory: `factory(num_particles=K, vectorize_particles=...)` makes an estimator: a class, or
            a `functools.partial` of one.
        model: A model that the estimator is made for.
        guide: A guide that the estimator is made for.
        x: A few data, `[B, ...]`; enough of them that no unit is idle for all.
        *args: What else both take.
        num_particles: The K to try, two or more among them.
        num_draws: Evaluations on each side where expectations are compared; they are to be within 5
            standard errors.
        seed: Of what is drawn.

    Raises:
        ConformanceError: The first thing that is not so.

    Example:
        >>> from ppl_vae.testing import check_estimator
        >>> model = ppl_vae.models.VAE((6,), latent_dim=2, hidden=(5,), activation="tanh")
        >>> guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(5,), activation="tanh")
        >>> x = torch.rand(4, 6).round()
        >>> check_estimator(ppl_vae.estimators.TraceIWAE_ELBO, model, guide, x)
    """
    args = (x, *args)
    most = max(num_particles)
    if most < 2:
        raise ValueError(f"num_particles is {list(num_particles)}; accepted is one >= 2 among them")
    with isolated(seed, model, guide):
        leaves = find_leaves(args, guide=guide, model=model)
        case = _Case(factory, model, guide, args, leaves, seed)
        with keeping(leaves):
            case.check_stream(most)
            for how in (*((k, True) for k in num_particles), (most, False)):
                value, gradients = case.check_ways_in(*how)
                if how[0] == most:
                    case.check_closures(*how, value, gradients)
                    case.check_subsampling(*how, value, gradients)
            case.check_expectation(most, num_draws)
            step(model, guide, args, case.make(most, True), leaves, seed)


class _Case:
    """An estimator, a pair, and what the pair could learn."""

    def __init__(
        self,
        factory: Factory,
        model: Callable,
        guide: Callable,
        args: tuple,
        leaves: dict[str, Tensor],
        seed: int,
    ) -> None:
        self.factory, self.model, self.guide, self.args = factory, model, guide, args
        self.leaves, self.seed = leaves, seed

    def check_ways_in(self, size: int, vectorize: bool) -> tuple[float, list[Tensor | None]]:
        """Checks value and gradients of all ways in, and returns them."""
        how, pair = _words(size, vectorize), (self.model, self.guide)
        elbo = self.make(size, vectorize)
        value = self.evaluate(lambda: elbo.loss(*pair, *self.args), f"loss, {how},")
        expect(
            isinstance(value, float),
            f"loss, {how}, returns a {type(value).__name__}; expected is a float",
        )
        for name, gradient in zip(self.leaves, self.take_gradients(), strict=True):
            expect(gradient is None, f"loss, {how}, leaves a gradient in {name}; expected is none")
        state = _state(elbo)
        ways: dict[str, Callable] = {
            "loss_and_grads": lambda: elbo.loss_and_grads(*pair, *self.args),
            "differentiable_loss": lambda: elbo.differentiable_loss(*pair, *self.args),
        }
        if all(isinstance(program, nn.Module) for program in pair):
            ways["elbo(model, guide)"] = lambda: elbo(*pair)(*self.args)
        expected: list[Tensor | None] = []
        for way, call in ways.items():
            found = self.evaluate(call, f"{way}, {how},")
            if isinstance(found, Tensor):
                expect(
                    found.shape == () and found.requires_grad,
                    f"{way}, {how}, returns a tensor of shape {list(found.shape)}"
                    f"{'' if found.requires_grad else ' without gradient'}; expected is a 0-dim "
                    "tensor with the estimator's gradient",
                )
                found.backward()
            self.expect_value(found, value, f"{way}, {how},", "loss")
            gradients = self.take_gradients()
            if expected:
                self.expect_gradients(gradients, expected, f"{way}, {how},", "loss_and_grads")
            expected = expected or gradients
            _restore(elbo, state)
        return value, expected

    def check_closures(
        self, size: int, vectorize: bool, value: float, gradients: list[Tensor | None]
    ) -> None:
        """Checks gradients where no `param` statement is seen."""
        how = f"{_words(size, vectorize)}, with parameters that Pyro cannot see,"
        hidden = [poutine.block(p, hide_types=["param"]) for p in (self.model, self.guide)]
        elbo = self.make(size, vectorize)
        found = self.evaluate(lambda: elbo.loss_and_grads(*hidden, *self.args), how)
        what = f"loss_and_grads, {how}"
        self.expect_value(found, value, what, "loss")
        self.expect_gradients(
            self.take_gradients(), gradients, what, "loss_and_grads with all seen"
        )

    def check_subsampling(
        self, size: int, vectorize: bool, value: float, gradients: list[Tensor | None]
    ) -> None:
        """Checks that loss and gradients are multiplied by the N/B of the data plate."""
        pair = trace_pair(self.model, self.guide, self.args, {})
        with reporting("looking for the plate over the data"):
            plate = pair.data_plate
        sites = [s for t in (pair.model_trace, pair.guide_trace) for _, s in samples(t)]
        if any(all(f.name != plate.name for f in s["cond_indep_stack"]) for s in sites):
            return
        how = f"{_words(size, vectorize)}, from a batch of B out of N = {_RATIO} B data,"
        programs = [Enlarge(plate.name, _RATIO)(program) for program in (self.model, self.guide)]
        elbo = self.make(size, vectorize)
        loss = self.evaluate(lambda: elbo.differentiable_loss(*programs, *self.args), how)
        expect(
            close(loss.detach(), torch.full_like(loss, _RATIO * value)),
            f"the loss, {how} is {loss.item():.8g}; expected was N/B times that of the batch, "
            f"{_RATIO * value:.8g}. The plate's N/B belongs in front of the sum over data, and not "
            "into a logarithm",
        )
        loss.backward()
        scaled = [None if g is None else _RATIO * g for g in gradients]
        what = "N/B times that of the batch"
        self.expect_gradients(self.take_gradients(), scaled, f"the loss, {how}", what)

    def check_stream(self, size: int) -> None:
        """Checks that the second evaluation draws what the first drew."""
        elbo = self.make(size, True)

        def loss() -> Any:
            return elbo.loss(self.model, self.guide, *self.args)

        first, second = self.evaluate(loss, "loss"), self.evaluate(loss, "loss")
        expect(
            first == second,
            f"the first loss of an estimator is {first!r}, and the second from the same seed "
            f"{second!r}; expected is the same number. Finding the plate nesting, or whatever else "
            "the first run does, must not draw from the random stream",
        )

    def check_expectation(self, size: int, num_draws: int) -> None:
        """Checks that particles in a plate and in a loop agree on average."""
        seed_all(self.seed)
        runs = []
        for vectorize in (True, False):
            elbo = self.make(size, vectorize)
            losses = [elbo.loss(self.model, self.guide, *self.args) for _ in range(num_draws)]
            runs.append(torch.tensor(losses, dtype=torch.float64))
        one, other = (float(losses.mean()) for losses in runs)
        error = math.sqrt(sum(float(losses.var()) for losses in runs) / num_draws)
        # Without noise, as from a point mass, there is rounding still, in the type of the data.
        rounding = torch.finfo(torch.get_default_dtype()).eps ** 0.6 * abs(one)
        expect(
            abs(one - other) <= 5 * error + rounding,
            f"the mean loss of {num_draws} draws is {one:.6g} with {size} particles drawn at once, "
            f"and {other:.6g} in a loop; expected was the same within 5 standard errors of "
            f"{error:.2g}",
        )

    def make(self, size: int, vectorize: bool) -> ELBO:
        """An estimator without a past."""
        with reporting(f"making the estimator, {_words(size, vectorize)},"):
            return self.factory(num_particles=size, vectorize_particles=vectorize)

    def evaluate(self, call: Callable[[], Any], what: str) -> Any:
        """Seeded: two calls draw the same."""
        seed_all(self.seed)
        with reporting(what):
            return call()

    def take_gradients(self) -> list[Tensor | None]:
        """The gradients of the leaves, which then have none."""
        gradients = [leaf.grad for leaf in self.leaves.values()]
        for leaf in self.leaves.values():
            leaf.grad = None
        return gradients

    def expect_value(self, found: Any, value: float, what: str, than: str) -> None:
        """Checks for the same number, bit for bit."""
        found = found.item() if isinstance(found, Tensor) else found
        expect(
            found == value,
            f"{what} has the value {found!r}; expected is that of {than}, {value!r}, to the bit",
        )

    def expect_gradients(
        self, found: list[Tensor | None], expected: list[Tensor | None], what: str, than: str
    ) -> None:
        """Checks for the same gradients, leaf by leaf."""
        for name, one, other in zip(self.leaves, found, expected, strict=True):
            if one is None or other is None:
                expect(
                    one is None and other is None,
                    f"{what} gives {name} {'no' if one is None else 'a'} gradient, and {than} "
                    f"gives {'none' if other is None else 'one'}; expected is the same",
                )
                continue
            expect(
                close(one, other),
                f"{what} gives {name} another gradient than {than}: it differs by up to "
                f"{float((one - other).abs().max()):.3g}, where the largest is "
                f"{float(other.abs().max()):.3g}",
            )


def _state(elbo: ELBO) -> Any:
    has_state = callable(getattr(elbo, "state_dict", None))
    return copy.deepcopy(elbo.state_dict()) if has_state else None  # type: ignore[attr-defined]


def _restore(elbo: ELBO, state: Any) -> None:
    if state is not None:
        elbo.load_state_dict(copy.deepcopy(state))  # type: ignore[attr-defined]


def _words(size: int, vectorize: bool) -> str:
    how = "drawn at once" if vectorize else "in a loop"
    return f"with {size} particle{'s' if size > 1 else ''} {how}"
