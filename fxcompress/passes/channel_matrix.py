"""A layer's weight as a matrix of output by input channels, and the parameters that scale its channels."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxcompress.graph import Layer
from fxcompress.graph.edit import constant_value, get_tensor
from fxcompress.graph.operators.calls import argument_node
from fxcompress.graph.ties import memory
from fxcompress.nn.functional import folded_bias, folded_weight

KINDS = ("linear", *(f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)))

Readers = Mapping[Any, set[fx.Node]]


class Scalable(NamedTuple):
    """A layer of which nothing but its one call reads the weight, so that its channels can be scaled.

    `weight` is the edge of its weight as the call reads it. `gamma` and `beta` are the nodes of the batch norm that
    was folded in, None without one; `bias` is the node of the bias, None without one or where it cannot be changed.
    """

    layer: Layer
    call: fx.Node
    weight: fx.Node
    gamma: fx.Node | None
    beta: fx.Node | None
    bias: fx.Node | None

    @property
    def positions(self) -> int:
        """How many axes follow the axis of the channels."""
        return 0 if self.layer.kind == "linear" else int(self.layer.kind[-2])

    def blocks(self, weight: Tensor) -> Tensor:
        """Return a view of a weight of the layer, of shape (groups, outputs, inputs, positions ...)."""
        names = list(self.layer.operator.arguments)
        groups = self.call.args[names.index("groups")] if "groups" in names else 1
        parts = weight.unflatten(0, (groups, -1))
        return parts.transpose(1, 2) if self.layer.operator.out_axis == 1 else parts

    def matrix(self, gm: fx.GraphModule) -> Tensor:
        """Return the largest magnitude of each kernel, of shape (groups, outputs, inputs), in float64."""
        blocks = self.blocks(constant_value(gm, self.weight)).detach().abs().double()
        return blocks.flatten(3).amax(3) if blocks.dim() > 3 else blocks.clone()

    def scale_outputs(self, gm: fx.GraphModule, factor: Tensor) -> None:
        """Multiply what the layer gives, one number for each channel; a folded norm takes it."""
        if self.gamma is not None:
            scaled = [self.gamma, self.beta]
        else:
            blocks = self.blocks(self.layer.weight_tensor(gm))
            blocks.mul_(_along(factor, blocks, 1))
            scaled = [self.bias]
        for node in scaled:
            if node is not None:
                value = get_tensor(gm, str(node.target))
                value.mul_(factor.to(value))

    def scale_inputs(self, gm: fx.GraphModule, factor: Tensor) -> None:
        """Multiply the weight by one number for each channel that enters."""
        blocks = self.blocks(self.layer.weight_tensor(gm))
        blocks.mul_(_along(factor, blocks, 2))

    def response(self, gm: fx.GraphModule, constant: Tensor) -> Tensor:
        """Return what the layer adds to each output when the same number is added to all of an input channel."""
        kernels = self.blocks(constant_value(gm, self.weight))
        kernels = kernels.flatten(3).sum(3) if kernels.dim() > 3 else kernels
        return (kernels * _along(constant, kernels, 2)).sum(2).flatten()


def _along(vector: Tensor, blocks: Tensor, axis: int) -> Tensor:
    """Return one number for each channel of axis 1 (outputs) or 2 (inputs) in a shape that broadcasts."""
    shape = [1] * blocks.dim()
    shape[0], shape[axis] = blocks.shape[0], -1
    return vector.to(blocks).view(shape)


def readers(gm: fx.GraphModule) -> Readers:
    """Return which nodes read each parameter or buffer, by its memory."""
    found: dict[Any, set[fx.Node]] = defaultdict(set)
    for node in gm.graph.find_nodes(op="get_attr"):
        value = get_tensor(gm, str(node.target))
        if isinstance(value, Tensor):
            found[memory(value)].update(node.users)
    return found


def scalable(gm: fx.GraphModule, layer: Layer, known: Readers) -> Scalable | None:
    """Return the layer as one whose channels can be scaled, None where its parameters serve something else too."""
    (call, *more), operator = layer.calls, layer.operator
    weight, bias = argument_node(call, operator.weight), argument_node(call, operator.bias)
    if layer.kind not in KINDS or more or weight is None:
        return None
    if weight.op == "get_attr":
        plain = _read_by(gm, bias, {call}, known)
        return (
            Scalable(layer, call, weight, None, None, bias)
            if _read_by(gm, weight, {call}, known) and (bias is None or plain)
            else None
        )
    if weight.target is not folded_weight or bias is None or bias.target is not folded_bias:
        return None
    gamma, beta = weight.args[1], bias.args[2]
    own = (
        _read_by(gm, weight.args[0], {weight}, known)
        and _read_by(gm, gamma, {weight, bias}, known)
        and _read_by(gm, beta, {bias}, known)
    )
    assert isinstance(gamma, fx.Node | None)
    assert isinstance(beta, fx.Node | None)
    return Scalable(layer, call, weight, gamma, beta, beta) if own else None


def _read_by(gm: fx.GraphModule, node: Any, nodes: set[fx.Node], known: Readers) -> bool:
    """Return whether a node is a parameter that these nodes read and no other."""
    is_parameter = isinstance(node, fx.Node) and node.op == "get_attr"
    return is_parameter and known[memory(get_tensor(gm, str(node.target)))] == nodes
