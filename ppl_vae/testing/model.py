"""`check_model`."""

from collections.abc import Callable, Sequence
from typing import Any

from pyro import poutine
from torch import Tensor

from ppl_vae.estimators.sites import samples
from ppl_vae.guides.sites import find_data_plate
from ppl_vae.testing.handlers import SamePlates
from ppl_vae.testing.isolation import close, expect, isolated, reporting
from ppl_vae.testing.programs import (
    check_shapes,
    check_store,
    held,
    nesting,
    particles,
    run,
    values,
)

__all__ = ["check_model"]


def check_model(
    model: Callable, x: Tensor, *args: Any, global_sites: Sequence[str] = (), seed: int = 0
) -> None:
    """Checks that a Pyro program is a model as guides and estimators expect one.

    - It runs, has latent sites, observes something, and puts all of it into a plate over the data.
    - Log-densities are finite, and have the shape of the plates: `[B]`.
    - At the same latents they are the same: nothing in the model is random but its sites.
    - It takes any leading particles, `[K, B]` and `[J, K, B]`, and each particle is what the model
      gives for it alone.
    - It leaves in Pyro's parameter store only what is its own.

    Args:
        model: The model, any Pyro program.
        x: A few data, `[B, ...]`.
        *args: What else it takes.
        global_sites: Names of latent sites that are meant to lie outside of the data plate.
        seed: Of what is drawn.

    Raises:
        ConformanceError: The first thing that is not so.

    Example:
        >>> from ppl_vae.testing import check_model
        >>> check_model(ppl_vae.models.VAE((6,), latent_dim=2, hidden=(5,)), torch.rand(4, 6))
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> import pyro, pyro.distributions as dist
        >>> check_model(model, torch.rand(4))
        Traceback (most recent call last):
        ppl_vae.testing.isolation.ConformanceError: looking for the plate over the data raised \
ValueError: the model has no plate over the data; write `with pyro.plate("data", len(x), dim=-1):` \
around what is sampled per datum
    """
    args = (x, *args)
    with isolated(seed, model), SamePlates():
        trace = run(model, args, "running the model")
        check_store(model, trace, "model")
        _check_sites(trace, len(x), global_sites)
        check_shapes(trace, "model", "run once")
        _check_determined(model, args, trace)
        for sizes in ((3,), (2, 3)):
            _check_particles(model, args, trace, sizes)


def _check_sites(trace: poutine.Trace, num_data: int, global_sites: Sequence[str]) -> None:
    observed = [name for name, site in samples(trace) if site["is_observed"]]
    latent = [name for name, site in samples(trace) if not site["is_observed"]]
    expect(observed, "the model observes nothing; write `pyro.sample(..., obs=x)`")
    expect(latent, "the model has no latent site: every `pyro.sample` in it has `obs=...`")
    with reporting("looking for the plate over the data"):
        plate = find_data_plate(trace, num_data)
    for name, site in samples(trace):
        inside = any(frame.name == plate.name for frame in site["cond_indep_stack"])
        expect(
            inside or (name in latent and name in global_sites),
            f"the model's site '{name}' lies outside the plate '{plate.name}' over the data; move "
            "it inside, or name it in `global_sites` if it is a latent of all data",
        )


def _check_determined(model: Callable, args: tuple, trace: poutine.Trace) -> None:
    again = run(held(model, values(trace)), args, "running the model at given latents")
    for name, site in samples(trace):
        expect(
            close(again.nodes[name]["log_prob"], site["log_prob"]),
            f"the model's log-density of '{name}' is another when the model is run again at the "
            "same latents; expected was that nothing in it is random but its latent sites (is "
            "dropout on? `model.eval()` turns it off)",
        )


def _check_particles(model: Callable, args: tuple, trace: poutine.Trace, sizes: Sequence) -> None:
    how = f"with leading particles {list(sizes)}"
    program = particles(model, sizes, nesting(trace))
    drawn = run(program, args, f"running the model {how}")
    check_shapes(drawn, "model", how)
    plain = values(trace)
    for index in (tuple(0 for _ in sizes), tuple(size - 1 for size in sizes)):
        # Dimensions of size 1, between the particles and the site's own plates, are dropped.
        one = {
            name: value[index].reshape(plain[name].shape) for name, value in values(drawn).items()
        }
        alone = run(held(model, one), args, "running the model at given latents")
        for name, site in samples(alone):
            found = drawn.nodes[name]["log_prob"][index].reshape(site["log_prob"].shape)
            expect(
                close(found, site["log_prob"]),
                f"the model's log-density of '{name}' {how} is, for particle {list(index)}, "
                "another than the model gives for that particle alone; networks must treat "
                "leading dimensions as batch, and no statement may mix them",
            )
