"""In-place operations become out-of-place ones, so that every node is a value of its own that a pass can edit."""

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.errors import CaptureError
from fxcompress.graph.traced import Traced

INPLACE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
# Functions and methods whose result never shares memory with an argument.
_FRESH = re.compile(
    r"add|sub|mul|div|truediv|pow|neg|matmul|bmm|linear|embedding|conv(_transpose)?[123]d|(adaptive_)?(avg|max)_pool[123]d|"
    r"interpolate|(batch|layer|group)_norm|scaled_dot_product_attention|(log_)?softmax|mean|sum|cat|concat|stack|clone|"
    r"p?relu|relu6|leaky_relu|elu|gelu|silu|mish|hardtanh|hardswish|hardsigmoid|sigmoid|tanh|softplus|"
    r"(new_)?(empty|zeros|ones)(_like)?|randn?(_like)?"
)


def remove_inplace(traced: Traced, model: nn.Module) -> set[fx.Node]:
    """Turn in-place operations on activations into out-of-place ones, later readers of the tensor following them.

    Returns the operations that remain in place: those that change a parameter or buffer, which is the model's state.
    Raises CaptureError where another tensor that shares the memory is read later.
    """
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    fresh = {node for node in traced.graph.nodes if _is_fresh(traced.module_of(model, node), node)}
    state = set()
    for node in traced.graph.nodes:
        module = traced.module_of(model, node)
        if not _is_inplace(module, node):
            continue
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node) and changed not in traced.plain:
            sharing = _sharing_memory(fresh, changed, position, position[node])
            if any(other.op == "get_attr" for other in sharing):
                state.add(node)
                continue
            _refuse_later_readers(node, changed, sharing, position)
            for reader in [user for user in changed.users if position[user] > position[node]]:
                reader.replace_input_with(changed, node)
        _take_out_of_place(module, node)
        if _is_fresh(module, node):
            fresh.add(node)
    return state


def _is_inplace(module: nn.Module | None, node: fx.Node) -> bool:
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.op == "call_method":
        return _ends_in_place(str(node.target))
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    of_torch = _ends_in_place(name) and node.target in (getattr(torch, name, None), getattr(F, name, None))
    return node.target in INPLACE_OPERATORS or node.kwargs.get("inplace") is True or of_torch


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _out_of_place(target: Any) -> Any:
    """Return the function or method that computes the same out of place; the same one where there is none."""
    if target in INPLACE_OPERATORS:
        return INPLACE_OPERATORS[target]
    if isinstance(target, str):
        return target[:-1] if callable(getattr(torch.Tensor, target[:-1], None)) else target
    name = target.__name__.removesuffix("_")
    return getattr(F, name, None) or getattr(torch, name, target)


def _take_out_of_place(module: nn.Module | None, node: fx.Node) -> None:
    if module is not None:
        module.inplace = False  # type: ignore[assignment]
    elif "inplace" in node.kwargs:
        node.update_kwarg("inplace", False)
    else:
        node.target = _out_of_place(node.target)


def _sharing_memory(fresh: set[fx.Node], node: fx.Node, position: dict[fx.Node, int], end: int) -> set[fx.Node]:
    """Return the nodes before `end` that may share memory with a node, itself included."""
    found, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        views = [user for user in one.users if position[user] < end and user not in fresh]
        for other in views + ([] if one in fresh else _may_be_view_of(one)):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _may_be_view_of(node: fx.Node) -> list[fx.Node]:
    is_view = node.op == "call_method" or node.target in (operator.getitem, getattr)
    return [source for source in node.all_input_nodes if source.op != "get_attr" or is_view]


def _is_fresh(module: nn.Module | None, node: fx.Node) -> bool:
    if module is not None:
        return isinstance(module, _BatchNorm)
    if isinstance(node.target, torch._ops.OpOverload):
        return all(result.alias_info is None for result in node.target._schema.returns)
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, fx.Node) and isinstance(source.target, torch._ops.OpOverload):
        return len(source.target._schema.returns) > 1 and _is_fresh(None, source)  # such as the values of topk
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return _FRESH.fullmatch(str(name)) is not None


def _refuse_later_readers(
    node: fx.Node, changed: fx.Node, sharing: set[fx.Node], position: dict[fx.Node, int]
) -> None:
    for other in sharing - {changed}:
        for reader in other.users:
            if position[reader] > position[node]:
                raise CaptureError(
                    f"{node.name!r} changes {changed.name!r} in place, and {reader.name!r} later reads "
                    f"{other.name!r}, which may share its memory; compute it out of place"
                )
