"""What a graph changes in place, given back by it instead."""

import operator

import torch
from torch import fx
from torch.utils import _pytree as pytree

__all__ = ["changed", "out_of_place"]


def changed(graph: fx.GraphModule) -> list[int]:
    """The numbers of those arguments that the graph changes in place, themselves or a view."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    found = {
        _whole(value)
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        for i, argument in enumerate(node.target._schema.arguments[: len(node.args)])
        if argument.alias_info is not None and argument.alias_info.is_write
        for value in pytree.tree_leaves(node.args[i])
    }
    return [i for i, node in enumerate(places) if node in found]


def out_of_place(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph that leaves its arguments alone, and gives besides what `changed` would become."""
    numbers = changed(graph)
    copy = fx.Graph()
    result = copy.graph_copy(graph.graph, {})
    given = [node for node in copy.nodes if node.op == "placeholder"]
    clones = []
    for number in numbers:
        with copy.inserting_after(given[-1]):
            clone = copy.call_function(torch.ops.aten.clone.default, (given[number],))
        given[number].replace_all_uses_with(clone, lambda node, own=clone: node is not own)
        clones.append(clone)
    outputs = result if isinstance(result, list | tuple) else [result]
    copy.output((*outputs, *clones))
    return fx.GraphModule(graph, copy)


def _whole(node: object) -> fx.Node | None:
    """The tensor that this one is, or is a view of."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        # What returns an alias of its first argument: views, one of several, changes in place.
        views = schema is not None and schema.returns and schema.returns[0].alias_info is not None
        if not (views or node.target is operator.getitem):
            return node
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None
