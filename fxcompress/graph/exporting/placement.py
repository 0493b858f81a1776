"""Placement: the devices and dtypes in an exported program that are the model's own, and so have to follow it."""

import copy
from collections.abc import Callable, Set
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxcompress.graph.exporting.calls import operators
from fxcompress.graph.exporting.follow import Constants, followed_mode
from fxcompress.graph.exporting.nesting import filled
from fxcompress.graph.exporting.program import Program
from fxcompress.graph.exporting.signature import Inputs
from fxcompress.graph.traced import Traced


class Placement(Enum):
    """What stands in the arguments of an operator for the model's device, its dtype and the limits of that."""

    DEVICE = "device"
    DTYPE = "dtype"
    MIN = "min"
    MAX = "max"


PLACEMENT = "_placement"  # the buffer by whose device and dtype a graph follows the model

Arguments = dict[fx.Node, Any]  # positional and keyword arguments, with a Placement where one follows


def followed_placements(program: Program, model: nn.Module, inputs: Inputs) -> Arguments:
    """Return the arguments of those operators in which the device or dtype of `model` is written down.

    Where there are any, `model` gets an empty buffer that tells its device and dtype. A program has `x.dtype` and
    `torch.float32` alike. So the model is run once more in another dtype, without values: what changes follows it.
    """
    tensors = (*model.parameters(), *model.buffers(), *inputs.tensors)
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if own is None:
        return {}
    lines: dict[str, list[fx.Node]] = {}
    found: Arguments = {}
    for node in operators(program.exported.graph_module):
        kinds = {_kind(leaf, own) for leaf in _leaves(node)} - {None}
        if kinds - {Placement.DEVICE}:
            lines.setdefault(program.following.place_of(node), []).append(node)
        elif kinds:
            found[node] = _marked(node, own, {Placement.DEVICE})
    changed = _changed(program.following.constants, model, inputs, own) if lines else {}
    for place, nodes in lines.items():
        calls = changed.get(place, [])
        for index, node in enumerate(nodes):
            follow = calls[index] if len(calls) == len(nodes) else set()
            found[node] = _marked(node, own, {Placement.DEVICE} | follow)
    if found:
        model.register_buffer(PLACEMENT, torch.empty(0, dtype=own.dtype, device=own.device), persistent=False)
    return found


def placement_node(
    traced: Traced, attribute: Callable[[str], fx.Node], kind: Placement, known: dict[Placement, fx.Node]
) -> fx.Node:
    """Return the node of the model's device, its dtype or a limit of that; `known` are those that are there."""
    if kind not in known:
        graph, source = traced.graph, attribute(PLACEMENT)
        if kind in (Placement.MIN, Placement.MAX):
            dtype = placement_node(traced, attribute, Placement.DTYPE, known)
            source = graph.call_function(torch.finfo, (dtype,))
            traced.plain.add(source)
        known[kind] = graph.call_function(getattr, (source, kind.value))
        traced.plain.add(known[kind])
    return known[kind]


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))


def _kind(leaf: Any, own: Tensor) -> Placement | None:
    """Return what an argument may stand for."""
    if isinstance(leaf, torch.device):
        return Placement.DEVICE if leaf == own.device else None
    if isinstance(leaf, torch.dtype):
        return Placement.DTYPE if leaf == own.dtype else None
    if not isinstance(leaf, float):
        return None
    limits = torch.finfo(own.dtype)
    return Placement.MIN if leaf == limits.min else Placement.MAX if leaf == limits.max else None


def _marked(node: fx.Node, own: Tensor, kinds: Set[Any]) -> Any:
    def mark(leaf: Any) -> Any:
        kind = _kind(leaf, own)
        return leaf if kind is None or kind not in kinds else kind

    return pytree.tree_map(mark, (node.args, node.kwargs))


def _changed(
    constants: Constants, model: nn.Module, inputs: Inputs, own: Tensor
) -> dict[str, list[set[Placement | None]]]:
    """Return, for the calls on each line that are given the model's dtype, what of it changes with the model."""
    dtype = torch.float16 if own.dtype is torch.bfloat16 else torch.bfloat16
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            moved = _moved(model, dtype)
            call = filled(inputs.call, [_empty(tensor, dtype) for tensor in inputs.tensors])
            with followed_mode(moved) as following:
                moved(*call.args, **call.kwargs)
    except Exception:  # the model's code needs values, or works on one device only
        return {}
    found: dict[str, list[set[Any]]] = {}
    for place, calls in constants.items():
        others = following.constants.get(place, [])
        if [len(one) for one in calls] == [len(one) for one in others]:
            pairs = [list(zip(*both, strict=True)) for both in zip(calls, others, strict=True)]
            given = [pair for pair in pairs if any(_kind(leaf, own) for leaf, _ in pair)]
            found[place] = [{_kind(leaf, own) for leaf, other in pair if leaf != other} for pair in given]
    return found


def _moved(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model without values, in another dtype."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers(), *held):
        moved = _empty(tensor, dtype)
        memo[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(model, memo)


def _empty(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = tensor.dtype if not tensor.is_floating_point() else dtype
    return torch.empty(tensor.shape, device=tensor.device, dtype=kept)
