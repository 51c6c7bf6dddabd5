"""What a graph draws, made an argument of it: then somebody else can draw it, from any generator.

Shapes: R generators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Draw", "lift_noise"]

_aten = torch.ops.aten
# Those that take their generator under another name.
_WITH_GENERATOR: dict[Any, Any] = {
    _aten.randn.default: _aten.randn.generator,
    _aten.rand.default: _aten.rand.generator,
}


class Draw:
    """A draw whose distribution is known before anything else: it hangs on no argument."""

    def __init__(self, node: fx.Node, before: Sequence[fx.Node]) -> None:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        generator = graph.placeholder("generator")
        for other in before:
            copies[other] = graph.node_copy(other, copies.__getitem__)
        drawn = graph.node_copy(node, copies.__getitem__)
        drawn.target = _WITH_GENERATOR.get(node.target, node.target)
        drawn.kwargs = {**drawn.kwargs, "generator": generator}
        graph.output(drawn)
        self._make: Callable[[torch.Generator], Tensor] = fx.GraphModule({}, graph)

    def __call__(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One from each generator, `[R, ...]`: what the graph itself would draw from it."""
        return torch.stack([self._make(generator) for generator in generators])


def lift_noise(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Draw], bool]:
    """A graph that takes its draws as further arguments.

    Args:
        graph: What `trace_loss` gives; it is left as it is.

    Returns:
        The other graph; its draws, in the order of the graph, which is that of the stream; and
        whether these are all, and none is left that hangs on what the graph computes.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    lifted = fx.GraphModule(graph, copy)
    draws: list[Draw] = []
    last = [node for node in lifted.graph.nodes if node.op == "placeholder"][-1]
    complete = True
    for node in list(lifted.graph.nodes):
        if not _is_random(node):
            continue
        before = _before(node)
        if before is None or not _takes_generator(node):
            complete = False
            continue
        draws.append(Draw(node, before))
        with lifted.graph.inserting_after(last):
            last = lifted.graph.placeholder(f"noise_{len(draws)}")
        node.replace_all_uses_with(last)
        lifted.graph.erase_node(node)
    _drop_unused(lifted.graph)
    lifted.recompile()
    return lifted, draws, complete


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _takes_generator(node: fx.Node) -> bool:
    if node.target in _WITH_GENERATOR:
        return True
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    return any(argument.name == "generator" for argument in arguments)


def _before(node: fx.Node) -> list[fx.Node] | None:
    """All that a node is made of, in order; none where an argument of the graph is among it."""
    found: dict[fx.Node, None] = {}

    def visit(other: fx.Node) -> bool:
        if other.op != "call_function":
            return False
        if not all(visit(argument) for argument in other.all_input_nodes):
            return False
        found[other] = None
        return True

    known = all(visit(argument) for argument in node.all_input_nodes)
    return list(found) if known else None


def _drop_unused(graph: fx.Graph) -> None:
    """What the draws alone were made of; not what changes an argument in place."""
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and not node.users and not getattr(schema, "is_mutable", 1):
            graph.erase_node(node)
