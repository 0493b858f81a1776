"""Scalars: which nodes are numbers, sizes and shapes, on which operators mean plain Python and not tensors."""

import torch
from torch import fx

_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")
_METHODS = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "element_size",
    "item",
    "tolist",
    "get_device",
)
_PLAIN_PYTHON = ("builtins", "math", "_operator")
_OF_SIZES = (torch.sym_float, torch.sym_int, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_sqrt)


def scalars(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose value is not a tensor but a number, a size, a shape or a property of a tensor."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _reads_a_property(node) or (_is_plain_python(node) and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _reads_a_property(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return node.target in (torch.numel, torch.is_floating_point)


def _is_plain_python(node: fx.Node) -> bool:
    is_plain = getattr(node.target, "__module__", None) in _PLAIN_PYTHON or node.target in _OF_SIZES
    return node.op == "call_function" and is_plain
