"""Integer calls: which layers of a quantized graph an engine runs in integers, and who else reads their inputs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxcompress.graph.edit import chain_under, constant_value, is_constant, module_of
from fxcompress.graph.operators.calls import operator_of
from fxcompress.graph.operators.clamps import clamp_bounds
from fxcompress.nn import UniformQuantizer
from fxcompress.passes.targets import TARGETS


@dataclass(frozen=True)
class IntegerCall:
    """One call of a layer that runs in integers; `weight` is the edge that it takes."""

    weight: fx.Node
    bias: Tensor | None
    input_scale: Tensor
    linear: bool


def quantizer_under(gm: fx.GraphModule, node: Any) -> UniformQuantizer | None:
    """Return the Quantizer in the chain of inserted modules that ends at `node`."""
    modules = (module_of(gm, call) for call in chain_under(gm, node))
    return next((module for module in modules if isinstance(module, UniformQuantizer)), None)


def activations(gm: fx.GraphModule) -> dict[fx.Node, UniformQuantizer]:
    """Return the calls of quantizers that sit on activations, with their quantizers."""
    calls = [(node, module_of(gm, node)) for node in gm.graph.nodes]
    return {node: found for node, found in calls if isinstance(found, UniformQuantizer) and not is_constant(gm, node)}


def integer_calls(gm: fx.GraphModule) -> dict[fx.Node, IntegerCall]:
    """Return the calls that run in integers: weight quantized per tensor or output channel, input per tensor.

    ONNX Runtime has no integer convolution with a float result, so that one must be quantized too, per tensor.
    """
    found = {}
    for node in gm.graph.nodes:
        operator = operator_of(node)
        if operator is None or not operator.integer:
            continue
        source, weight, bias = node.args[:3]
        grid, input_grid = quantizer_under(gm, weight), _quantizer_before(gm, source)
        if grid is None or input_grid is None or not is_constant(gm, weight) or not is_constant(gm, bias):
            continue
        linear = operator.kind == "linear"
        if grid.axis in (None, 0) and input_grid.axis is None and (linear or _only_quantized(gm, node)):
            found[node] = IntegerCall(weight, constant_value(gm, bias), input_grid.scale, linear)
    return found


def feeds_float_layer(gm: fx.GraphModule, user: fx.Node, integer: dict[fx.Node, IntegerCall], *, whole: bool) -> bool:
    """Return whether `user`, or what it moves values to, is a layer with parameters that does not run in integers.

    What leaves a graph that is only a part of the model (not the `whole`) may meet such a layer.
    """
    if user.op == "output":
        return not whole
    if user in integer:
        return False
    if _moves(gm, user):
        return any(feeds_float_layer(gm, after, integer, whole=whole) for after in user.users)
    module = module_of(gm, user)
    if module is not None:
        return next(module.parameters(), None) is not None
    return any(is_constant(gm, operand) for operand in user.all_input_nodes)


def _quantizer_before(gm: fx.GraphModule, node: Any) -> UniformQuantizer | None:
    while isinstance(node, fx.Node) and _moves(gm, node):
        node = node.args[0]
    module = module_of(gm, node)
    return module if isinstance(module, UniformQuantizer) else None


def _only_quantized(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the one reader of a result is a per-tensor quantizer, after clamps that the quantizer takes over."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    module = module_of(gm, user)
    if isinstance(module, UniformQuantizer):
        return module.axis is None
    return clamp_bounds(user) is not None and _only_quantized(gm, user)


def _moves(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node only moves values: ONNX Runtime moves a DequantizeLinear through it."""
    dropout = isinstance(module_of(gm, node), nn.modules.dropout._DropoutNd)
    return dropout or TARGETS["onnxruntime"].moves_values(node)
