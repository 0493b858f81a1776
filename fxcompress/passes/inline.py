"""Inlining: a small graph takes the place of one node of a larger one."""

from typing import Any

from torch import fx

from fxcompress.graph.edit import has_module


def inline(gm: fx.GraphModule, node: fx.Node, body: fx.GraphModule, inputs: tuple[Any, ...], prefix: str) -> None:
    """Replace `node` by the operations of `body` on `inputs`; parameters of `body` are stored under `prefix`."""
    if any(True for _ in body.parameters(recurse=False)) and not has_module(gm, prefix):
        gm.add_submodule(prefix, body)
    values: dict[Any, Any] = {}
    given = iter(inputs)
    with gm.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "get_attr":
                values[inner] = gm.graph.get_attr(f"{prefix}.{inner.target}")
            elif inner.op != "output":
                values[inner] = gm.graph.node_copy(inner, values.__getitem__)
    result = values[body.graph.output_node().args[0]]
    node.replace_all_uses_with(result)
    gm.graph.erase_node(node)
    result.name = node.name  # a free name again: what follows is named after it
