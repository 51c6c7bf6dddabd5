"""NumPyro's SVI of the same networks: a jitted step, and a whole epoch in one `lax.fori_loop`.

Shapes: as in contenders.py.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from contenders import BETWEEN, D1, D2, HIDDEN, LR, SIZE, Steps, Task
from jax import lax
from numpyro.infer import SVI, Trace_ELBO


def _dense(name: str, sizes: tuple[int, ...], x: Any) -> Any:
    """Dense layers with a relu between, their parameters as torch draws them."""
    for i, (before, after) in enumerate(pairwise(sizes)):
        bound = before**-0.5
        keys = jax.random.split(jax.random.PRNGKey(i))
        w = numpyro.param(
            f"{name}.{i}.w",
            jax.random.uniform(keys[0], (before, after), minval=-bound, maxval=bound),
        )
        b = numpyro.param(
            f"{name}.{i}.b", jax.random.uniform(keys[1], (after,), minval=-bound, maxval=bound)
        )
        x = x @ w + b
        x = jax.nn.relu(x) if i < len(sizes) - 2 else x
    return x


def _normal(name: str, sizes: tuple[int, ...], x: Any) -> Any:
    loc, logvar = jnp.split(_dense(name, sizes, x), 2, -1)
    return dist.Normal(loc, jnp.exp(0.5 * logvar)).to_event(1)


def _programs(levels: int) -> tuple[Callable, Callable]:
    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            if levels == 1:
                prior = dist.Normal(jnp.zeros(D1), 1.0).to_event(1)
            else:
                z2 = numpyro.sample("z2", dist.Normal(jnp.zeros(D2), 1.0).to_event(1))
                prior = _normal("down", (D2, BETWEEN, 2 * D1), z2)
            z1 = numpyro.sample("z1", prior)
            logits = _dense("decoder", (D1, HIDDEN, SIZE), z1)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", _normal("encoder", (SIZE, HIDDEN, 2 * D1), x))
            if levels == 2:
                numpyro.sample("z2", _normal("up", (D1, BETWEEN, 2 * D2), z1))

    return model, guide


def numpyros(task: Task, *, fused: bool) -> Steps:
    """Steps one by one, or all that are asked for in one program."""
    x = jnp.asarray(task.x.cpu().numpy())
    elbo = Trace_ELBO(num_particles=task.num_particles)
    svi = SVI(*_programs(task.levels), numpyro.optim.Adam(LR), elbo)
    state = svi.init(jax.random.PRNGKey(0), x[: task.batch_size])
    per_epoch = len(x) // task.batch_size

    @jax.jit
    def step(state: Any, order: Any, i: Any) -> Any:
        index = lax.dynamic_slice_in_dim(order, i % per_epoch * task.batch_size, task.batch_size)
        return svi.update(state, x[index])[0]

    @partial(jax.jit, static_argnums=2)
    def steps(state: Any, order: Any, num: int) -> Any:
        return lax.fori_loop(0, num, lambda i, state: step(state, order, i), state)

    key, kept = jax.random.PRNGKey(1), [state]

    def run(num: int) -> None:
        order = jax.random.permutation(key, len(x))
        if fused:
            kept[0] = steps(kept[0], order, num)
        else:
            for i in range(num):
                kept[0] = step(kept[0], order, i)
        jax.block_until_ready(kept[0])

    return run


CONTENDERS: dict[str, Callable[[Task], Steps]] = {
    "NumPyro, jit": partial(numpyros, fused=False),
    "NumPyro, epoch in one": partial(numpyros, fused=True),
}
