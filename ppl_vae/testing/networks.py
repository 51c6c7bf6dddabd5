"""What the networks of a guide do with particles.

Shapes: K particles, B data.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.estimators.sites import is_point, samples
from ppl_vae.testing.isolation import expect
from ppl_vae.testing.programs import held, particles, run

__all__ = ["check_networks"]

_NUM_PARTICLES = 3


def check_networks(guide: Callable, args: tuple, nesting: int) -> None:
    """Checks that no network of a guide runs more than once on the same input in one pass.

    Neither in several calls, nor in one on as many copies of it as there are particles. What reads
    a latent has another input for each particle; what reads x, has not.
    """
    if not isinstance(guide, nn.Module):
        return
    program = particles(guide, (_NUM_PARTICLES,), nesting)
    trace = run(program, args, "running the guide with leading particles [3]")
    # Particles of a point mass are equal, and what reads them is none the worse for it.
    apart = {
        name: site["value"].detach() + torch.rand_like(site["value"].detach())
        for name, site in samples(trace)
        if is_point(site["fn"])
    }
    seen: dict[str, list[list[Tensor]]] = {}
    handles = [
        module.register_forward_pre_hook(_watch(name, seen), with_kwargs=True)
        for name, module in guide.named_modules()
        if name and any(True for _ in module.parameters())
    ]
    try:
        # No densities: those of the points are none any more.
        held(program, apart)(*args)
    finally:
        for handle in handles:
            handle.remove()
    for name, inputs in seen.items():
        expect(
            not any(_is_repeated(tensors) for tensors in inputs),
            f"the guide's network '{name}' runs on {_NUM_PARTICLES} copies of one input where "
            f"{_NUM_PARTICLES} particles are drawn at once; expected was one run per datum however "
            "many particles. Apply it to x as given, before anything is sampled",
        )
        twice = [one for i, one in enumerate(inputs) if any(_same(one, o) for o in inputs[:i])]
        expect(
            not twice,
            f"the guide's network '{name}' runs {len(inputs)} times in one pass, "
            f"{len(twice) + 1} times on the same input; expected was one run",
        )


def _watch(name: str, seen: dict[str, list[list[Tensor]]]) -> Callable:
    def watch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        tensors = [v.detach() for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if tensors:
            seen.setdefault(name, []).append(tensors)

    return watch


def _is_repeated(tensors: list[Tensor]) -> bool:
    """Whether every input is K copies of one thing, along its first dimension."""
    for value in tensors:
        if value.dim() == 0 or len(value) == 0 or len(value) % _NUM_PARTICLES:
            return False
        first, *others = value.chunk(_NUM_PARTICLES)
        if not all(torch.equal(first, other) for other in others):
            return False
    return True


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
