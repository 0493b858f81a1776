"""Scaling of channels: what makes a tensor can give each channel divided, if all that reads it multiplies it back."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from fxcompress.graph.edit import get_tensor, module_of
from fxcompress.graph.exporting.sizes import expect_sizes
from fxcompress.graph.operators.calls import argument_node, operator_of, row_of
from fxcompress.graph.shapes import Shapes
from fxcompress.graph.ties import memory, readers
from fxcompress.nn import Mask, Quantizer
from fxcompress.tune.region_links import Links

LAYERS = ("linear", "addmm")  # with their channels on the last axis
_RMS_NORMS = (F.rms_norm, torch.rms_norm, torch.ops.aten.rms_norm.default)
_ROW_MAJOR = ("view", "reshape", "contiguous", "flatten", "unflatten", "squeeze", "unsqueeze")
_HOMOGENEOUS = ("relu", "leaky_relu")


class Axis(NamedTuple):
    """A parameter and its axis that holds the channels."""

    parameter: str
    axis: int


class Scaling(NamedTuple):
    """A tensor whose channels, on the last axis, can be scaled without changing what the model computes.

    Parameters are `divided`, and the weights of the `calls` that read it `multiplied`. `quantizers` are the nodes of
    those that it passes on the way.
    """

    divided: tuple[Axis, ...]
    multiplied: tuple[Axis, ...]
    calls: tuple[fx.Node, ...]
    quantizers: tuple[fx.Node, ...]

    @torch.no_grad()
    def apply(self, gm: fx.GraphModule, scale: Tensor) -> None:
        """Divide and multiply by `scale`, one number for each channel."""
        for sign, axes in ((-1, self.divided), (1, self.multiplied)):
            for name, axis in axes:
                tensor = get_tensor(gm, name)
                factor = scale.pow(sign).view([-1 if index == axis else 1 for index in range(tensor.dim())])
                tensor.copy_(tensor.double() * factor)


class _Graph(NamedTuple):
    """A graph with what is known of it: shapes, links between regions, and the parameters with one reader."""

    gm: fx.GraphModule
    shapes: Shapes
    links: Links
    sole: Collection[str]


def scalings(gm: fx.GraphModule, shapes: Shapes, links: Links) -> list[Scaling]:
    """Return where channels can be scaled, each layer in one place: with the last that makes its input.

    Made by the weight and bias of a layer norm, by the weight of an RMS norm, also written out as a product, or by a
    linear layer; read by nothing but linear layers, through what keeps channels apart and scales with them.
    """
    graph = _Graph(gm, shapes, links, _sole(gm, links))
    found: list[Scaling] = []
    taken: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        divided = _made_by(graph, node)
        scaling = _followed(graph, node, divided) if divided and node in shapes else None
        if scaling is not None and taken.isdisjoint(scaling.calls):
            found.insert(0, scaling)
            taken.update(scaling.calls)
    return found


def _sole(gm: fx.GraphModule, links: Links) -> set[str]:
    """Return the parameters that are read in one place."""
    known = readers(gm)
    named = ((name, memory(parameter)) for name, parameter in gm.named_parameters(remove_duplicate=False))
    return {name for name, key in named if len(known.get(key, ())) + (key in links.read) == 1}


def _made_by(graph: _Graph, node: fx.Node) -> tuple[Axis, ...]:
    """Return what is to be divided so that a node gives each channel divided; nothing where that cannot be."""
    operator, module = operator_of(node), module_of(graph.gm, node)
    kind = "" if operator is None else operator.kind
    found: list[Axis | None] = []
    if kind in LAYERS:
        assert operator is not None
        assert operator.bias is not None
        found = [_weight(graph, node, operator.out_axis), *_vectors(graph, node.args[operator.bias])]
    elif kind == "layer_norm":
        found = [*_vectors(graph, node.args[2], needed=True), *_vectors(graph, node.args[3])]
    elif kind == "mul":
        constants = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        found = _vectors(graph, constants[0], needed=True) if len(constants) == 1 else []
    elif node.target in _RMS_NORMS:
        found = _vectors(graph, node.args[2] if len(node.args) > 2 else None, needed=True)
    elif isinstance(module, nn.RMSNorm) and len(module.normalized_shape) == 1:
        name = f"{node.target}.weight"
        found = [Axis(name, 0) if name in graph.sole else None]
    known = tuple(axis for axis in found if axis is not None)
    return known if len(known) == len(found) else ()


def _vectors(graph: _Graph, argument: Any, *, needed: bool = False) -> list[Axis | None]:
    """Return a vector that can be scaled, None in its place for one that cannot, and nothing where none is needed."""
    if argument is None and not needed:
        return []
    name = str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else ""
    return [Axis(name, 0) if name in graph.sole and get_tensor(graph.gm, name).dim() == 1 else None]


def _weight(graph: _Graph, call: fx.Node, axis: int) -> Axis | None:
    """Return the weight of a layer, None where something else than masks and a quantizer is between, or reads it."""
    node: Any = argument_node(call, row_of(call).weight)
    while isinstance(module_of(graph.gm, node), Mask | Quantizer) and len(node.users) == 1:
        node = node.args[0]
    name = str(node.target) if node is not None and node.op == "get_attr" else ""
    return Axis(name, axis) if name in graph.sole else None


def _followed(graph: _Graph, maker: fx.Node, divided: tuple[Axis, ...]) -> Scaling | None:
    """Follow a tensor to the layers that read it; None where anything else does."""
    channels = graph.shapes[maker][0][-1]
    if any(get_tensor(graph.gm, name).shape[axis] != channels for name, axis in divided):  # one number for several
        return None
    multiplied: list[Axis] = []
    calls: list[fx.Node] = []
    passed: list[fx.Node] = []
    waiting = [maker]
    while waiting:
        node = waiting.pop()
        for user in _readers(graph, node):
            weight = _read_by_layer(graph, user, node)
            if weight is not None:
                multiplied.append(weight)
                calls.append(user)
            elif user in passed or not _passes(graph, user, node, channels):
                return None
            else:
                passed.append(user)
                waiting.append(user)
    quantizers = tuple(node for node in passed if isinstance(module_of(graph.gm, node), Quantizer))
    return Scaling(divided, tuple(multiplied), tuple(calls), quantizers) if calls else None


def _readers(graph: _Graph, node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads the values of a node, in its region and in those that it is handed to."""
    yield from graph.links.handed.get(node, ())
    for user in node.users:
        returned = user.op == "output" and node in graph.links.handed
        asks = user.op == "call_method" and user.target in ("size", "dim")
        if not (returned or asks or user.target in (getattr, expect_sizes)):
            yield user


def _read_by_layer(graph: _Graph, call: fx.Node, node: fx.Node) -> Axis | None:
    operator = operator_of(call)
    if operator is None or operator.kind not in LAYERS or list(call.args).count(node) != 1:
        return None
    return _weight(graph, call, 1 - operator.out_axis) if call.args[operator.inputs[0]] is node else None


def _passes(graph: _Graph, user: fx.Node, node: fx.Node, channels: int) -> bool:
    """Return whether what a node gives has each channel, on the last axis, scaled as the tensor that it reads."""
    operator, module = operator_of(user), module_of(graph.gm, user)
    kind = str(user.target) if user.op == "call_method" else operator.kind if operator is not None else ""
    known = isinstance(module, Quantizer | _DropoutNd) or user.op == "placeholder"
    known |= kind in (*_ROW_MAJOR, *_HOMOGENEOUS) or (kind == "mul" and list(user.args).count(node) == 1)
    return known and all(shape[-1:] == (channels,) for one in (user, node) for shape in graph.shapes.get(one, [()]))
