"""Placement: the devices and dtypes in an exported program that are the model's own, and so have to follow it."""

import copy
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from fxcompress.graph.exporting.calls import operators
from fxcompress.graph.exporting.program import Program, fixed_program
from fxcompress.graph.exporting.signature import Inputs
from fxcompress.graph.traced import Traced


class Placement(Enum):
    """What stands in the arguments of an operator for the model's device, its dtype and the limits of that."""

    DEVICE = "device"
    DTYPE = "dtype"
    MIN = "min"
    MAX = "max"
    EPS = "eps"
    TINY = "tiny"


PLACEMENT = "_placement"  # the buffer by whose device and dtype a graph follows the model
_LIMITS = (Placement.MIN, Placement.MAX, Placement.EPS, Placement.TINY)

Arguments = dict[fx.Node, Any]  # positional and keyword arguments, with a Placement where one follows


def followed_placements(program: Program, model: nn.Module, inputs: Inputs) -> Arguments:
    """Return the arguments of those operators in which the device or dtype of `model` is written down.

    Where there are any, `model` gets an empty buffer that tells its device and dtype. A program has `x.dtype` and
    `torch.float32` alike. So the model is exported once more in another dtype, without values: what changes follows
    it. A line of the code that does something else in the other dtype keeps its own.
    """
    tensors = (*model.parameters(), *model.buffers(), *inputs.tensors)
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if own is None:
        return {}
    nodes = [node for node in operators(program.exported.graph_module) if any(_kinds(node, own))]
    follows_dtype = any(set(_kinds(node, own)) - {None, Placement.DEVICE} for node in nodes)
    moved = _leaves_in_another_dtype(program, model, inputs, own) if follows_dtype else {}
    found = {node: _marked(node, own, moved.get(node, _leaves(node))) for node in nodes}
    if found:
        model.register_buffer(PLACEMENT, torch.empty(0, dtype=own.dtype, device=own.device), persistent=False)
    return found


def placement_node(
    traced: Traced, attribute: Callable[[str], fx.Node], kind: Placement, known: dict[Placement, fx.Node]
) -> fx.Node:
    """Return the node of the model's device, its dtype or a limit of that; `known` are those that are there."""
    if kind not in known:
        graph, source = traced.graph, attribute(PLACEMENT)
        if kind in _LIMITS:
            dtype = placement_node(traced, attribute, Placement.DTYPE, known)
            source = graph.call_function(torch.finfo, (dtype,))
            traced.plain.add(source)
        known[kind] = graph.call_function(getattr, (source, kind.value))
        traced.plain.add(known[kind])
    return known[kind]


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))


def _kinds(node: fx.Node, own: Tensor) -> list[Placement | None]:
    return [_kind(leaf, own) for leaf in _leaves(node)]


def _kind(leaf: Any, own: Tensor) -> Placement | None:
    """Return what an argument may stand for."""
    if isinstance(leaf, torch.device):
        return Placement.DEVICE if leaf == own.device else None
    if isinstance(leaf, torch.dtype):
        return Placement.DTYPE if leaf == own.dtype else None
    limits = torch.finfo(own.dtype)
    is_limit = (kind for kind in _LIMITS if isinstance(leaf, float) and leaf == getattr(limits, kind.value))
    return next(is_limit, None)


def _marked(node: fx.Node, own: Tensor, moved: list[Any]) -> Any:
    """Return the arguments of a node with Placements, given its leaves in another dtype: a device always follows."""
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    kinds = _kinds(node, own)
    marked = [
        kind if kind is Placement.DEVICE or (kind is not None and leaf != other) else leaf
        for leaf, other, kind in zip(leaves, moved, kinds, strict=True)
    ]
    return pytree.tree_unflatten(marked, structure)


def _leaves_in_another_dtype(program: Program, model: nn.Module, inputs: Inputs, own: Tensor) -> Arguments:
    """Return the arguments, one after the other, that operators have when the model is of another dtype.

    Some models run in one of the other dtypes only. Operators of lines that do something else then are left out.
    """
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        if dtype is own.dtype:
            continue
        try:
            with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
                tensors = [_empty(tensor, dtype) for tensor in inputs.tensors]
                moved = fixed_program(_moved(model, dtype), Inputs(tensors, call=inputs.call))
        except Exception:  # the model's code needs values, or works on one device only
            continue
        limits = {getattr(torch.finfo(one), kind.value) for one in (own.dtype, dtype) for kind in _LIMITS}
        both = [_by_line(one, limits) for one in (program, moved)]
        return dict(_paired(*both))
    return {}


def _by_line(program: Program, limits: set[float]) -> dict[str, list[fx.Node]]:
    """Return the operators that have dtypes or their limits among their arguments, by the line of their code."""
    lines: dict[str, list[fx.Node]] = {}
    for node in operators(program.exported.graph_module):
        if any(
            isinstance(leaf, torch.dtype) or (isinstance(leaf, float) and leaf in limits) for leaf in _leaves(node)
        ):
            lines.setdefault(program.following.place_of(node), []).append(node)
    return lines


def _paired(lines: dict[str, list[fx.Node]], moved: dict[str, list[fx.Node]]) -> Iterator[tuple[fx.Node, list[Any]]]:
    for line, nodes in lines.items():
        others = moved.get(line, [])
        if [(node.target, len(_leaves(node))) for node in nodes] == [
            (node.target, len(_leaves(node))) for node in others
        ]:
            yield from ((node, _leaves(other)) for node, other in zip(nodes, others, strict=True))


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
