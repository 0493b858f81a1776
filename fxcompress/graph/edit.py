"""The editing primitive: put a module on an edge, and what belongs to it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import PassError
from fxcompress.nn import ChannelSplit, Choice, Mask, Quantizer
from fxcompress.nn.functional import central_kernel, folded_bias, folded_weight

INSERTED = (Quantizer, Mask, Choice, ChannelSplit)
# What follows a tensor's name in that of its quantizer, and in those of Choices.
QUANTIZER, QUANTIZER_CHOICE, MASK_CHOICE = "_quantizer", "_quantizer_choice", "_mask_choice"
_DERIVED = (folded_weight, folded_bias, central_kernel)  # what computes one parameter from another


def module_of(gm: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a `call_module` node calls, None for any other node or value."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return gm.get_submodule(str(node.target)) if is_call else None


def inserted(gm: fx.GraphModule, node: Any) -> bool:
    """Return whether the node calls a module that a pass put on an edge, which a Choice of operators is not."""
    return isinstance(module_of(gm, node), INSERTED) and len(node.args) == 1


def first_argument(node: fx.Node) -> fx.Node:
    """Return the node that an inserted or deriving call sits on."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def chain_under(gm: fx.GraphModule, node: Any) -> list[fx.Node]:
    """Return the inserted calls that end at a node, in the order they are applied; none where it is not inserted."""
    found: list[fx.Node] = []
    while inserted(gm, node):
        found.insert(0, node)
        node = first_argument(node)
    return found


def tensor_under(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the tensor on which a chain of inserted modules sits: the node before the first of them."""
    chain = chain_under(gm, node)
    return first_argument(chain[0]) if chain else node


def parameter_under(gm: fx.GraphModule, node: Any) -> str | None:
    """Return the qualified name of the parameter from which an edge comes, through folding and inserted modules.

    None when the edge is not a parameter.
    """
    while isinstance(node, fx.Node):
        if node.op == "get_attr":
            return str(node.target)
        if not (inserted(gm, node) or node.target in _DERIVED):
            return None
        node = node.args[0]
    return None


def tensor_of_choice(name: str) -> str | None:
    """Return the name of the tensor that a Choice sits on, None for a Choice of operators or of another pass."""
    return next((name.removesuffix(end) for end in (QUANTIZER_CHOICE, MASK_CHOICE) if name.endswith(end)), None)


def tensor_of_quantizer(name: str) -> str:
    """Return the name of the tensor that a quantizer, or a Choice of them, is named after."""
    return name.removesuffix(QUANTIZER_CHOICE).removesuffix(QUANTIZER)


def get_tensor(gm: fx.GraphModule, name: str) -> Tensor:
    """Return the parameter or buffer of that qualified name."""
    path, _, leaf = name.rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def insert(gm: fx.GraphModule, after: fx.Node, name: str, module: nn.Module, users: Iterable[fx.Node]) -> fx.Node:
    """Put `module` on the edge from `after` to each of `users`, and return its node.

    The module is registered under `name`; where it is there already (a tied weight), it is called once more.
    Raises PassError when another module has the name.
    """
    if not has_module(gm, name):
        _register(gm, name, module)
    elif gm.get_submodule(name) is not module:
        raise PassError(f"{name!r} exists already in the graph; two steps cannot both put a module there")
    with gm.graph.inserting_after(after):
        node = gm.graph.call_module(name, (after,))
    for user in users:
        user.replace_input_with(after, node)
    return node


def _register(gm: fx.GraphModule, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    if has_module(gm, path) and hasattr(gm.get_submodule(path), leaf):
        raise PassError(f"{module._get_name()} {name!r} cannot be put there: the model has that name already")
    if not gm.add_submodule(name, module):
        raise PassError(f"{module._get_name()} {name!r} cannot be put there: {path!r} is not a module")


def has_module(gm: fx.GraphModule, name: str) -> bool:
    """Return whether a module is registered under that qualified name."""
    try:
        gm.get_submodule(name)
    except AttributeError:
        return False
    return True


def remove(gm: fx.GraphModule, node: fx.Node) -> None:
    """Take an inserted module off its edge; its module goes with its last call."""
    node.replace_all_uses_with(first_argument(node))
    gm.graph.erase_node(node)
    delete_if_unused(gm, str(node.target))


def delete_if_unused(gm: fx.GraphModule, target: str) -> None:
    """Delete a submodule that no node calls any more."""
    if not any(node.op == "call_module" and node.target == target for node in gm.graph.nodes):
        gm.delete_submodule(target)


def is_constant(gm: fx.GraphModule, node: Any) -> bool:
    """Return whether an edge depends on parameters and buffers only."""
    if not isinstance(node, fx.Node):
        return True
    if node.op == "get_attr":
        return True
    computed = inserted(gm, node) or node.target in _DERIVED
    return computed and all(is_constant(gm, argument) for argument in node.all_input_nodes)


@torch.no_grad()
def constant_value(gm: fx.GraphModule, node: Any) -> Any:
    """Return the value of an edge that depends on parameters and buffers only."""
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        return get_tensor(gm, str(node.target))
    arguments = [constant_value(gm, argument) for argument in node.args]
    module = module_of(gm, node)
    if module is not None:
        return module(*arguments)
    assert callable(node.target)
    return node.target(*arguments)
