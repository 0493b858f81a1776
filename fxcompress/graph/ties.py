"""Ties: tensors that are one piece of memory under several names, and what reads them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from fxcompress.graph.edit import get_tensor, is_constant, module_of


def memory(tensor: Tensor) -> Any:
    """Return what is equal for two tensors just if they are the same values in the same memory."""
    try:
        storage = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a kind of tensor that has none of its own
        return id(tensor)
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def readers(gm: fx.GraphModule) -> Mapping[Any, Sequence[fx.Node]]:
    """Return by the memory of each tensor what reads it, as often as it does so.

    That is a node behind what is computed from parameters only, or the call of a module that holds it.
    """
    found: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            found[memory(get_tensor(gm, str(node.target)))] += _behind(gm, node)
        elif (module := module_of(gm, node)) is not None:
            for tensor in module.parameters():
                found[memory(tensor)].append(node)
    return found


def _behind(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the users of a node, in the place of each that is computed from parameters only what reads that."""
    return [one for user in node.users for one in (_behind(gm, user) if is_constant(gm, user) else [user])]
