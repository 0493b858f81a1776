"""Weights that can be tuned: what enters their quantizer, and how another value is put there."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fxcompress.errors import PassError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import chain_under, constant_value, first_argument, get_tensor, module_of, parameter_under
from fxcompress.graph.operators.calls import Operator, argument_node
from fxcompress.nn import Mask, Quantizer, UniformQuantizer
from fxcompress.nn.functional import folded_bias, folded_weight


class Tunable(NamedTuple):
    """A quantized weight: the layer it is named after, its quantizer with the node that calls it, and its users."""

    layer: Layer
    quantizer: Quantizer
    node: fx.Node
    calls: tuple[fx.Node, ...]

    @property
    def operator(self) -> Operator:
        """The layer's row of the operator table."""
        return self.layer.operator

    def parameter(self, gm: fx.GraphModule) -> str:
        """Return the qualified name of the parameter."""
        name = parameter_under(gm, self.node)
        assert name is not None  # without one it is no tunable
        return name


def tunables(gm: fx.GraphModule) -> list[Tunable]:
    """Return the quantized weights in graph order; layers with a tied weight are one, named after the first.

    A weight that is quantized in two ways, because it is folded with two batch norms, is left out: its parameter
    cannot serve both.
    """
    found: dict[Quantizer, Tunable] = {}
    for layer in (layer for layer in layers(gm) if layer.operator.inputs):  # a look-up is not rounded for its inputs
        for call in layer.calls:
            for node in chain_under(gm, argument_node(call, layer.operator.weight)):
                quantizer = module_of(gm, node)
                if isinstance(quantizer, Quantizer) and quantizer.enabled:
                    first = found.get(quantizer, Tunable(layer, quantizer, node, ()))
                    found[quantizer] = first._replace(calls=(*first.calls, call))
    parameters = [parameter_under(gm, one.node) for one in found.values()]
    return [one for one, name in zip(found.values(), parameters, strict=True) if name and parameters.count(name) == 1]


def float_weight(gm: fx.GraphModule, one: Tunable) -> Tensor:
    """Return what enters the quantizer: the weight with batch norm folded in and masks applied."""
    return constant_value(gm, first_argument(one.node)).detach()


@torch.no_grad()
def store(gm: fx.GraphModule, one: Tunable, value: Tensor) -> None:
    """Change the parameter so that `value` enters the quantizer; batch norm is divided out, masked weights stay.

    Raises PassError where the weight comes to its quantizer in another way.
    """
    node = first_argument(one.node)
    while node.op != "get_attr":
        before = constant_value(gm, node.args[0])
        module = module_of(gm, node)
        if isinstance(module, Mask):
            value = torch.where(module.mask, value, before)
        elif node.target is folded_weight:
            factor = folded_weight(torch.ones_like(value), *(constant_value(gm, arg) for arg in node.args[1:]))
            value = torch.where(factor != 0, value / factor, before)
        else:
            raise PassError(f"the weight of {one.layer.name!r} comes through {node.name!r} and cannot be tuned")
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


def uniform(found: Iterable[Tunable]) -> list[tuple[Tunable, UniformQuantizer]]:
    """Return those on a uniform grid with their quantizers."""
    return [(one, one.quantizer) for one in found if isinstance(one.quantizer, UniformQuantizer)]
