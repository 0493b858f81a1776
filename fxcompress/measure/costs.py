"""Cost models: what a layer costs under an option, as a whole number of the smallest unit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from fxcompress.errors import NotReadyError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import get_tensor, inserted, module_of, parameter_under
from fxcompress.graph.operators import operator_of
from fxcompress.graph.shapes import Shapes, macs
from fxcompress.measure.latency import Row, flat, look_up
from fxcompress.nn import Choice, Mask, Quantizer
from fxcompress.nn.packing import packed_bytes

_FLOAT_BYTES = 4  # float tensors are exported as float32


@dataclass(frozen=True)
class LayerOption:
    """How a layer would run: its precisions (None is float), the share of zeros in its weight, and its work.

    `macs` and `input_shape` are None where no example inputs were given.
    """

    weight: Quantizer | None = None
    input: Quantizer | None = None
    sparsity: float = 0.0
    macs: int | None = None
    input_shape: tuple[int, ...] | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight, 32 for float."""
        return 32 if self.weight is None else self.weight.bits

    @property
    def input_bits(self) -> int:
        """Bits of an input, 32 for float."""
        return 32 if self.input is None else self.input.bits


CostModel = Callable[..., int]


def size(gm: fx.GraphModule, layer: Layer, option: LayerOption) -> int:
    """Return the bytes of a layer in the exported file: packed weight, scales, zero points and bias.

    A tied weight counts at its first layer. Zeros take the same room as other values.
    """
    total = 0
    if layer.weight is not None and not layer.tied:
        count = layer.weight_tensor(gm).numel()
        if option.weight is None:
            stored = count * _FLOAT_BYTES
        else:
            stored = packed_bytes(count, option.weight.bits) + quantizer_bytes(option.weight)
        total += stored * len(layer.weight_edges())  # folded with two batch norms, a weight is stored twice
    for edge in layer.bias_edges():
        name = parameter_under(gm, edge)
        channels = get_tensor(gm, name).numel() if name else _channels(gm, layer)
        total += channels * _FLOAT_BYTES
    return total


def quantizer_bytes(quantizer: Quantizer) -> int:
    """Return the bytes that a quantizer's scales and zero points take in the exported file."""
    return quantizer.scale.numel() * (_FLOAT_BYTES + 1)


def _channels(gm: fx.GraphModule, layer: Layer) -> int:
    return layer.weight_tensor(gm).shape[layer.operator.out_axis]


def bops(gm: fx.GraphModule, layer: Layer, option: LayerOption) -> int:
    """Return the bit operations: weight bits x input bits x multiply-accumulates with a weight that is not zero.

    As in HAWQ-V3 (Yao et al. 2021, section 3.4). Raises NotReadyError when the work is not known.
    """
    if option.macs is None:
        raise NotReadyError(
            "bit operations need the shapes that flow through the model: pass example_inputs=... or data=..."
        )
    return round(option.macs * option.weight_bits * option.input_bits * (1 - option.sparsity))


def latency(gm: fx.GraphModule, layer: Layer, option: LayerOption, *, table: str) -> int:
    """Return the nanoseconds of a layer from a measured table; operators without a weight are not counted.

    Raises NotReadyError when the table has no such entry, or when shapes are not known.
    """
    if layer.weight is None:
        return 0
    if option.input_shape is None and layer.operator.inputs:
        raise NotReadyError(
            "a latency budget needs the shapes that flow through the model: pass example_inputs=... or data=..."
        )
    first_argument = 1 + max(
        position for position in (layer.operator.weight, layer.operator.bias, 0) if position is not None
    )
    row = Row(
        kind=layer.kind,
        input=option.input_shape or (),
        weight=tuple(layer.weight_tensor(gm).shape),
        arguments=flat(layer.calls[0].args[first_argument:]),
        weight_bits=option.weight_bits,
        input_bits=option.input_bits,
        sparsity=option.sparsity,
        median=0,
    )
    return len(layer.calls) * look_up(table, row, layer.name)


COSTS: Mapping[str, CostModel] = {"size": size, "bops": bops, "latency": latency}


def option_of(gm: fx.GraphModule, layer: Layer, picks: Mapping[str, str], shapes: Shapes | None) -> LayerOption:
    """Return how a layer runs as the graph stands, with open Choices taken as `picks` says (else float and dense)."""
    on_weight = [module for edge in layer.weight_edges() for module in _modules(gm, edge, picks)]
    on_input = [module for edge in layer.input_edges()[:1] for module in _modules(gm, edge, picks)]
    edges = layer.input_edges()
    return LayerOption(
        weight=next((module for module in on_weight if isinstance(module, Quantizer)), None),
        input=next((module for module in on_input if isinstance(module, Quantizer)), None),
        sparsity=next((module.sparsity for module in on_weight if isinstance(module, Mask)), 0.0),
        macs=None if shapes is None else macs(gm, layer, shapes),
        input_shape=shapes.get(edges[0]) if shapes and edges else None,
    )


def _modules(gm: fx.GraphModule, edge: Any, picks: Mapping[str, str]) -> list[Any]:
    found = []
    while isinstance(edge, fx.Node) and inserted(gm, edge):
        module = module_of(gm, edge)
        if isinstance(module, Choice):
            module = module.options[picks[str(edge.target)]] if str(edge.target) in picks else None
        found.append(module)
        edge = edge.args[0]
    return found


def rest_size(gm: fx.GraphModule) -> int:
    """Return the bytes in the exported file of everything that is not a layer's: norms, other parameters, activation scales."""
    total = 0
    in_layers = {node for layer in layers(gm) for node in _upstream(layer.weight_edges() + layer.bias_edges())}
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if node in in_layers:
            continue
        if node.op == "get_attr":
            total += _float_bytes([get_tensor(gm, str(node.target))])
        elif isinstance(module, Quantizer):
            total += quantizer_bytes(module)
        elif isinstance(module, Choice):
            total += max((quantizer_bytes(o) for o in module.options.values() if isinstance(o, Quantizer)), default=0)
        elif module is not None and operator_of(node) is None:
            total += _float_bytes([*module.parameters(), *module.buffers()])
    return total


def _upstream(nodes: list[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return seen


def _float_bytes(tensors: list[Tensor]) -> int:
    return sum(prod(tensor.shape) * _FLOAT_BYTES for tensor in tensors if tensor.is_floating_point())
