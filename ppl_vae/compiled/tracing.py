"""From a pair of Pyro programs and an estimator to one graph of tensor operations.

The programs' Python runs once. What is left of it is a graph of the loss and of its gradients, in
which no handler, no trace and no module remains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.estimators import Estimator
from ppl_vae.exchange import Substitution
from ppl_vae.handlers import Weight, weighted
from ppl_vae.randomness import fork, looking, validation

__all__ = [
    "TraceError",
    "Traced",
    "TracedLoss",
    "held_by",
    "sites_of",
    "tensors_of",
    "trace_function",
    "trace_loss",
    "with_tensors",
]


class TraceError(ValueError):
    """A program that is no one graph, whatever the data: the message says why."""


@dataclass(frozen=True)
class Traced:
    """A graph, and what it takes besides what it is given.

    Attributes:
        graph: From `inputs` to what the function gave.
        constants: Tensors that the function has from elsewhere, read anew at each call.
    """

    graph: fx.GraphModule
    constants: tuple[Tensor, ...]

    def inputs(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The graph's arguments."""
        return [*given, *self.constants]


@dataclass(frozen=True)
class TracedLoss(Traced):
    """The graph of a loss, `[]`, and of its gradients.

    It takes `held`, then the tensors of the batch, then those of the KL weight.

    Attributes:
        held: The parameters, and what the programs remember: buffers, which are changed in place.
        reached: The parameters that there are gradients of, in the order of the gradients.
    """

    held: tuple[Tensor, ...]
    reached: tuple[Tensor, ...]

    @property
    def num_inputs(self) -> int:
        """How many arguments the graph takes."""
        return sum(node.op == "placeholder" for node in self.graph.graph.nodes)


def trace_loss(
    model: Callable,
    guide: Callable,
    estimator: ELBO,
    parameters: Sequence[Tensor],
    args: Sequence[Any],
    weight: Weight = 1.0,
) -> TracedLoss:
    """The graph of an estimator's loss and gradients.

    Args:
        model: The model.
        guide: The guide.
        estimator: One of ours: Pyro's own look at values between batch and gradient.
        parameters: What gradients are wanted of.
        args: A batch; the graph is for its shapes, and for the values of what is no tensor.
        weight: The KL weight. A tensor, or a mapping to tensors, is an input of the graph; a number
            becomes part of it.

    Raises:
        TraceError: Something looks at the value of a tensor, the loss depends on no parameter, or
            the graph gives another loss than the programs at the same noise.
    """
    if not isinstance(estimator, Estimator):
        name = f"{type(estimator).__module__}.{type(estimator).__name__}"
        raise TraceError(f"{name} looks at the values of tensors at every site, and ours do not")
    for value in args:
        if not isinstance(value, Tensor | str | int | float | None):
            raise TraceError(
                f"a minibatch holds a {type(value).__name__}, whose values would be compiled in; "
                "accepted are tensors, numbers, strings and None"
            )
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        raise TraceError("a parameter has a hook, which gradients of a graph pass by")
    count = len(parameters)
    held = held_by(model, guide, estimator, parameters)
    batch = [value for value in args if isinstance(value, Tensor)]
    reached: list[Tensor] = []

    def loss_and_gradients(*values: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in values[:count]]
        rest = iter(values[len(held) :])
        inside = [next(rest) if isinstance(value, Tensor) else value for value in args]
        around = with_tensors(weight, rest)
        # What is frozen is a leaf as well: Pyro asks for it.
        others = zip(held[count:], values[count : len(held)], strict=True)
        leaves += [v.detach().requires_grad_() if old.requires_grad else v for old, v in others]
        with Substitution(held, leaves), weighted(around):
            loss = estimator.differentiable_loss(model, guide, *inside)
        if not loss.requires_grad:
            raise TraceError("the loss depends on no parameter that is trained")
        gradients = torch.autograd.grad(loss, leaves[:count], allow_unused=True)
        found = list(zip(parameters, _apart(gradients), strict=True))
        reached[:] = [parameter for parameter, value in found if value is not None]
        return (loss.detach(), *(_laid_out(v, p) for p, v in found if v is not None))

    with looking(model, guide), validation(False):
        # First, for an estimator finds out in its first run how many plates there are.
        with fork(), torch.no_grad(), weighted(weight):
            expected = estimator.differentiable_loss(model, guide, *args)
        given = [*held, *batch, *tensors_of(weight)]
        with fork():
            traced = trace_function(loss_and_gradients, given)
        with fork(), torch.no_grad():
            found, *_ = traced.graph(*traced.inputs([value.clone() for value in given]))
    _check_same(found, expected)
    return TracedLoss(traced.graph, traced.constants, held, tuple(reached))


def trace_function(function: Callable, tensors: Sequence[Tensor]) -> Traced:
    """The graph of a function of tensors, at the shapes of these.

    The function may draw and may change its arguments in place; what is given is left as it is.

    Raises:
        TraceError: The function looks at the value of a tensor.
    """
    examples = [value.detach().clone() for value in tensors]
    try:
        graph = make_fx(function)(*examples)
    except TraceError:
        raise
    except Exception as error:  # Whatever a program raises when its tensors have no values.
        raise TraceError(_reason(error)) from error
    for node in graph.graph.nodes:
        node.meta.clear()  # Shapes of the trace, each in a world of its own, and stack traces.
    return Traced(graph, _lift_constants(graph))


def _check_same(found: Tensor, expected: Tensor) -> None:
    """The programs' Python ran once; what it does besides operations on tensors is not repeated."""
    if not torch.allclose(found, expected, rtol=1e-3, equal_nan=True):
        raise TraceError(
            f"at the same noise the programs' loss is {expected.item():.6g}, that of their graph "
            f"{found.item():.6g}; something in them is no operation on tensors, as a seed that is "
            "set inside"
        )


def held_by(
    model: Any, guide: Any, estimator: Any, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The parameters, and what programs and estimator keep and may change: each tensor once."""
    kept = (*parameters, *_kept(model), *_kept(guide), *_kept(estimator))
    return tuple({id(value): value for value in kept}.values())


def _kept(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, nn.Module):
        yield from thing.buffers()
        yield from thing.parameters()  # those that are frozen
    elif isinstance(thing, ELBO):
        for value in vars(thing).values():
            if isinstance(value, Tensor):
                yield value
            else:
                yield from _kept(value)


def tensors_of(weight: Weight) -> list[Tensor]:
    """The tensors of a KL weight."""
    values = weight.values() if isinstance(weight, Mapping) else [weight]
    return [value for value in values if isinstance(value, Tensor)]


def sites_of(weight: Weight) -> tuple[str, ...] | None:
    """The sites that a KL weight names, in its order; none where it is one for all."""
    return tuple(weight) if isinstance(weight, Mapping) else None


def with_tensors(weight: Weight, values: Iterator[Tensor]) -> Weight:
    """The same KL weight, of other tensors."""
    if isinstance(weight, Mapping):
        return {
            name: next(values) if isinstance(value, Tensor) else value
            for name, value in weight.items()
        }
    return next(values) if isinstance(weight, Tensor) else weight


def _apart(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Each in memory of its own, as those of a sum's terms are not: clipping changes them."""
    taken: set[int] = set()
    found = []
    for value in gradients:
        if value is not None:
            place = value.untyped_storage().data_ptr()
            value = value.clone() if place in taken else value
            taken.add(place)
        found.append(value)
    return found


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """As optimizers want it: in memory like its parameter."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter.detach()).copy_(gradient)


def _lift_constants(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    """Makes arguments of the tensors that the graph has found by itself.

    As constants, their values of today would be compiled in. Not those that a program writes as
    numbers (`torch.tensor(2.0)`), which are copied before use.
    """
    found: dict[str, fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not isinstance(getattr(graph, node.target), Tensor):
            continue
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        if node.target not in found:
            with graph.graph.inserting_after(last):
                last = found[node.target] = graph.graph.placeholder(f"constant_{len(found)}")
        node.replace_all_uses_with(found[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    return tuple(getattr(graph, name) for name in found)


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    if ".item()" in str(error) or "data-dependent" in str(error).lower():
        return f"something between batch and gradient looks at the value of a tensor ({first})"
    return f"{type(error).__name__}: {first}"
