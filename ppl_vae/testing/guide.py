"""`check_guide`.

Shapes: K particles, B data.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.estimators.densities import per_datum
from ppl_vae.estimators.pair import Pair, join
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.sites import is_auxiliary, is_point, samples
from ppl_vae.estimators.trace_elbo import Trace_ELBO
from ppl_vae.testing.handlers import SamePlates
from ppl_vae.testing.isolation import close, expect, isolated, keeping, reporting
from ppl_vae.testing.networks import check_networks
from ppl_vae.testing.programs import (
    check_shapes,
    check_store,
    find_leaves,
    frames,
    held,
    nesting,
    particles,
    run,
    values,
)

__all__ = ["check_guide"]


def check_guide(
    guide: Callable,
    model: Callable,
    x: Tensor,
    *args: Any,
    amortized: bool = True,
    invertible: bool = True,
    seed: int = 0,
) -> None:
    """Checks that a Pyro program is a guide for a model as estimators expect one.

    - It samples exactly the model's latents, with the model's event shapes, supports and plates,
      and observes nothing.
    - Its log-densities are finite, of shape `[B]`, and determined by the values: the same where a
      sample is put back in.
    - Each datum is guided by itself, however many there are: neither the order nor the company of
      data matters, and x does.
    - It takes leading particles, `[K, B]`, each of which has the density that it has alone; and no
      network of it runs more than once on the same input.
    - Every parameter gets a finite gradient that is not zero, pathwise or from the score function.
    - It leaves in Pyro's parameter store only what is its own, under names that the model does not
      use.

    The guide is set up first, if it has a `setup`, as `ppl_vae.fit` does.

    Args:
        guide: The guide, any Pyro program.
        model: The model that it is made for.
        x: A few different data, `[B, ...]`; enough of them that no unit is idle for all.
        *args: What else both take. A tensor of length B goes with the data.
        amortized: Whether q of a datum is to be a function of that datum. False leaves out what is
            checked of that; so does a latent outside the data plate, or a plate that subsamples x.
        invertible: Whether log q can be had at any value, and not only at the guide's own draws, as
            of flows without an inverse. False leaves out what is checked by it.
        seed: Of what is drawn.

    Raises:
        ConformanceError: The first thing that is not so.

    Example:
        >>> from ppl_vae.testing import check_guide
        >>> model = ppl_vae.models.VAE((6,), latent_dim=2, hidden=(5,))
        >>> check_guide(ppl_vae.guides.MeanFieldGuide(model, hidden=(5,)), model, torch.rand(4, 6))
    """
    args = (x, *args)
    with isolated(seed, model, guide), SamePlates():
        if callable(set_up := getattr(guide, "setup", None)):
            with reporting("setting up the guide"):
                set_up(*args)
            pyro.clear_param_store()
        trace = run(guide, args, "running the guide")
        ours = check_store(guide, trace, "guide")
        _check_sites(guide, model, args)
        _check_names(model, args, ours)
        check_shapes(trace, "guide", "run once")
        if invertible:
            _check_determined(guide, args, trace)
        if amortized and invertible:
            _check_data(guide, model, args, trace)
        _check_particles(guide, args, trace, at_given_values=invertible)
        check_networks(guide, args, nesting(trace))
        _check_gradients(guide, model, args)


def _check_sites(guide: Callable, model: Callable, args: tuple) -> None:
    with reporting("running the model against the guide"):
        guide_trace = run_guide(guide, args, {})
        model_trace = run_model(model, guide_trace, args, {})
        pair = join(model_trace, guide_trace)
    for name, theirs, ours in pair.latents:
        expect(  # The loops over a plate; what `run_model` compares are the vectorized.
            frames(ours) == frames(theirs),
            f"the guide's '{name}' lies in the plates (name, dim, size, full size) {frames(ours)}; "
            f"expected were the model's, {frames(theirs)}",
        )


def _check_names(model: Callable, args: tuple, ours: dict[str, Tensor]) -> None:
    store = pyro.get_param_store()
    with store.scope():
        run(model, args, "running the model")
        theirs = dict(store.named_parameters())
    for name in ours:
        expect(
            name not in theirs or theirs[name] is ours[name],
            f"model and guide both have a parameter '{name}' in Pyro's parameter store, which has "
            "one of each name: under plain SVI one of the two would never train. Name the modules "
            'apart, as in `PyroModule(name="guide")`',
        )


def _check_determined(guide: Callable, args: tuple, trace: poutine.Trace) -> None:
    again = run(held(guide, values(trace)), args, "running the guide at its own sample")
    for name, site in _sites(trace):
        same = _signature(site, None), _signature(again.nodes[name], None)
        expect(
            close(*same),
            f"the guide's log-density of '{name}' at its own sample is another when the sample is "
            "put back in; expected was a density determined by the values (is dropout on? "
            "`guide.eval()` turns it off)",
        )


def _check_data(guide: Callable, model: Callable, args: tuple, trace: poutine.Trace) -> None:
    pair = Pair(run(model, args, "running the model"), trace)
    with reporting("looking for the plate over the data"):
        plate = pair.data_plate
    num_data = len(args[0])
    local = all(any(f.name == plate.name for f in s["cond_indep_stack"]) for _, s in _sites(trace))
    if not local or plate.size != num_data:
        return

    whole = {name: _signature(site, plate) for name, site in _sites(trace)}

    def signatures(args: tuple, index: Tensor, what: str) -> dict[str, Tensor]:
        chosen = {
            name: value.index_select(plate.dim - trace.nodes[name]["fn"].event_dim, index)
            for name, value in values(trace).items()
        }
        again = run(held(guide, chosen), args, f"running the guide on {what}")
        check_shapes(again, "guide", f"run on {what}")
        return {name: _signature(again.nodes[name], plate) for name in whole}

    everything = torch.arange(num_data, device=args[0].device)
    for index, what in (
        (everything[:1], "the first datum alone"),
        (everything.flip(0), "the data in reverse"),
    ):
        found = signatures(_rows(args, index), index, what)
        for name, value in found.items():
            expect(
                close(value, whole[name][index]),
                f"the guide's q of '{name}' for a datum is another when it is run on {what}; "
                "expected was that each datum is guided by itself (is batch normalization on? "
                "`guide.eval()` turns it off)",
            )
    _check_sites(guide, model, _rows(args, everything[:1]))
    if num_data > 1:
        shifted = everything.roll(1)
        found = signatures(_rows(args, shifted), everything, "other data")
        expect(
            not all(close(found[name], whole[name]) for name in found),
            "the guide has the same q for different data: it does not read x. For a guide that is "
            "no function of the datum say `amortized=False`",
        )


def _check_particles(
    guide: Callable, args: tuple, trace: poutine.Trace, *, at_given_values: bool
) -> None:
    size, how = 3, "with leading particles [3]"
    drawn = run(particles(guide, (size,), nesting(trace)), args, f"running the guide {how}")
    check_shapes(drawn, "guide", how)
    plain = values(trace)
    for k in range(size if at_given_values else 0):
        one = {name: value[k].reshape(plain[name].shape) for name, value in values(drawn).items()}
        alone = run(held(guide, one), args, "running the guide at given values")
        for name, site in _sites(alone):
            expected = _signature(site, None)
            found = _signature(drawn.nodes[name], None)[k].reshape(expected.shape)
            expect(
                close(found, expected),
                f"the guide's log-density of '{name}' {how} is, for particle {k}, another than the "
                "guide gives for that particle alone; networks must treat leading dimensions as "
                "batch, and no statement may mix them",
            )


def _check_gradients(guide: Callable, model: Callable, args: tuple) -> None:
    leaves = find_leaves(args, guide=guide)
    trace = run(guide, args, "running the guide")
    if all(site["fn"].has_rsample for _, site in samples(trace)):
        elbo, name = Trace_ELBO(num_particles=3), "Trace_ELBO"
    else:
        # Pyro's takes the score of what is not reparameterized, and latents of all data, too.
        elbo, name = pyro.infer.Trace_ELBO(num_particles=3), "the score function"
    with keeping(leaves):
        with reporting(f"the gradient of {name}"):
            loss = elbo.differentiable_loss(model, guide, *args)
            if loss.requires_grad:
                loss.backward()
        for leaf_name, leaf in leaves.items():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            expect(
                bool((grad != 0).any()),
                f"{leaf_name} gets no gradient from {name}; expected was that every parameter is "
                "learned (is it used? is it detached?)",
            )
            expect(
                bool(grad.isfinite().all()),
                f"{leaf_name} gets a gradient from {name} that is not finite",
            )


def _rows(args: tuple, index: Tensor) -> tuple:
    """The arguments for some of the data."""
    size = len(args[0])
    return tuple(
        a[index] if isinstance(a, Tensor) and a.dim() > 0 and len(a) == size else a for a in args
    )


def _sites(trace: poutine.Trace) -> Any:
    return [(name, site) for name, site in samples(trace) if not is_auxiliary(site)]


def _signature(site: Any, plate: Any) -> Tensor:
    """What tells one q from another: the log-density at a value, or the point itself.

    Of each datum, `[B]` or `[B, ...]`, where a plate is given; else as the site has it.
    """
    if is_point(site["fn"]):
        value = site["value"]
        return value if plate is None else value.movedim(plate.dim - site["fn"].event_dim, 0)
    if plate is None:
        return site["log_prob"]
    # The plate of the run at hand, which may be one of fewer data.
    return per_datum(site, next(f for f in site["cond_indep_stack"] if f.name == plate.name))
