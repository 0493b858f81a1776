"""Quantized weights: what enters their quantizer, and how another value is put there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxcompress.errors import PassError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import chain_under, constant_value, first_argument, get_tensor, module_of, parameter_under
from fxcompress.graph.operators.calls import Operator, argument_node
from fxcompress.graph.ties import memory, readers
from fxcompress.nn import Mask, Quantizer, UniformQuantizer
from fxcompress.nn.functional import folded_bias, folded_weight


class QuantizedWeight(NamedTuple):
    """A quantized weight: the layer it is named after, its quantizer with the nodes that call it, and its users.

    `obstacle` says why its rounding cannot be chosen; it is empty where it can.
    """

    layer: Layer
    quantizer: Quantizer
    nodes: tuple[fx.Node, ...]
    calls: tuple[fx.Node, ...]
    obstacle: str = ""

    @property
    def node(self) -> fx.Node:
        """The first call of its quantizer."""
        return self.nodes[0]

    @property
    def operator(self) -> Operator:
        """The layer's row of the operator table."""
        return self.layer.operator

    def parameter(self, gm: fx.GraphModule) -> str:
        """Return the qualified name of the parameter."""
        name = parameter_under(gm, self.node)
        assert name is not None  # computed weights are not quantized
        return name


def quantized_weights(gm: fx.GraphModule, outside: Collection[Any] = ()) -> list[QuantizedWeight]:
    """Return the quantized weights in graph order; layers with a tied weight are one, named after the first.

    `outside` are the tensors, by memory, that code outside of the graph reads.
    """
    found: dict[Quantizer, QuantizedWeight] = {}
    for layer in (layer for layer in layers(gm) if layer.operator.inputs):  # a look-up is not rounded for its inputs
        for call in layer.calls:
            for node in chain_under(gm, argument_node(call, layer.operator.weight)):
                quantizer = module_of(gm, node)
                if isinstance(quantizer, Quantizer) and quantizer.enabled:
                    one = found.get(quantizer, QuantizedWeight(layer, quantizer, (), ()))
                    nodes = one.nodes if node in one.nodes else (*one.nodes, node)
                    found[quantizer] = one._replace(nodes=nodes, calls=(*one.calls, call))
    read = readers(gm)
    whole = [one for one in found.values() if parameter_under(gm, one.node)]
    return [one._replace(obstacle=_obstacle(gm, one, read, outside)) for one in whole]


def _obstacle(
    gm: fx.GraphModule, one: QuantizedWeight, read: Mapping[Any, Sequence[fx.Node]], outside: Collection[Any]
) -> str:
    if not isinstance(one.quantizer, UniformQuantizer):
        return "it has no even steps (whole bits, no codebook)"
    key = memory(get_tensor(gm, one.parameter(gm)))
    if key in outside:
        return "the model's own Python reads its parameter for something else"
    other = next((node for node in read[key] if node not in one.calls), None)
    if other is not None:
        return f"the call {other.name!r} reads its parameter for something else"
    node = first_argument(one.node)
    while node.op != "get_attr":
        if not (isinstance(module_of(gm, node), Mask) or node.target is folded_weight):
            return f"{node.name!r} changes its parameter before it is quantized"
        node = first_argument(node)
    return ""


def float_weight(gm: fx.GraphModule, one: QuantizedWeight) -> Tensor:
    """Return what enters the quantizer: the weight with batch norm folded in and masks applied."""
    return constant_value(gm, first_argument(one.node)).detach()


@torch.no_grad()
def store(gm: fx.GraphModule, one: QuantizedWeight, value: Tensor) -> None:
    """Change the parameter so that `value` enters the quantizer; batch norm is divided out, masked weights stay.

    The weight is one without an obstacle.
    """
    node = first_argument(one.node)
    while node.op != "get_attr":
        before = constant_value(gm, node.args[0])
        module = module_of(gm, node)
        if isinstance(module, Mask):
            value = torch.where(module.mask, value, before)
        else:
            factor = folded_weight(torch.ones_like(value), *(constant_value(gm, arg) for arg in node.args[1:]))
            value = torch.where(factor != 0, value / factor, before)
        node = first_argument(node)
    get_tensor(gm, str(node.target)).copy_(value)


@torch.no_grad()
def add_to_bias(gm: fx.GraphModule, operator: Operator, call: fx.Node, shift: Tensor) -> None:
    """Add `shift`, one number for each output channel, to the bias that a layer's call reads.

    Through a folded batch norm its beta takes the shift. Raises PassError where the layer has no bias.
    """
    node = argument_node(call, operator.bias)
    if node is None:
        raise PassError(f"{call.name!r} has no bias to correct")
    if node.target is folded_bias:
        bias, gamma, beta, _, variance, eps = node.args
        scale = [constant_value(gm, one) for one in (gamma, variance, eps)]
        if not isinstance(beta, fx.Node):
            factor = folded_weight(torch.ones_like(shift), *scale)
            shift = torch.where(factor != 0, shift / factor, 0.0)
        taken = bias if beta is None else beta
        assert isinstance(taken, fx.Node)
        node = taken
    get_tensor(gm, str(node.target)).add_(shift)


def roundable(found: Iterable[QuantizedWeight]) -> list[tuple[QuantizedWeight, UniformQuantizer]]:
    """Return the weights whose rounding can be chosen, with their quantizers."""
    free = [one for one in found if not one.obstacle]
    return [(one, one.quantizer) for one in free if isinstance(one.quantizer, UniformQuantizer)]
