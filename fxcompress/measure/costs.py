"""Cost models: what a layer costs under an option, as a whole number of the smallest unit."""

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor, fx, nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import constant_value, get_tensor, is_constant, module_of
from fxcompress.graph.regions import Islands
from fxcompress.graph.ties import memory
from fxcompress.measure.decisions import choice_of
from fxcompress.measure.latency import Row, Table, flat, look_up
from fxcompress.measure.options import LayerOption, Picks
from fxcompress.nn import Choice, Quantizer

_FLOAT_BYTES = 4  # float tensors are exported as float32

CostModel = Callable[..., int]


def size(gm: fx.GraphModule, layer: Layer, option: LayerOption) -> int:
    """Return the bytes of a layer in the exported file: packed weight, scales, zero points, levels and bias.

    The bias of a layer that runs in integers is an int32 with a scale for each channel. A tied weight counts at its
    first layer; what a batch norm was folded into is a weight of its own. Zeros take the same room as other values.
    """
    total = 0
    if option.weight_shape is not None:
        count = prod(option.weight_shape)
        stored = count * _FLOAT_BYTES if option.weight is None else option.weight.stored_bytes(count)
        total += stored * option.stored_weights
    pair = (option.weight, option.input)
    in_integers = layer.operator.integer and all(one is not None and one.integer for one in pair)
    bias_bytes = 2 * _FLOAT_BYTES if in_integers else _FLOAT_BYTES
    for edge in layer.bias_edges():
        total += constant_value(gm, edge).numel() * bias_bytes if is_constant(gm, edge) else 0
    return total


def bops(gm: fx.GraphModule, layer: Layer, option: LayerOption) -> int:
    """Return the bit operations: weight bits x input bits x multiply-accumulates with a weight that is not zero.

    As in HAWQ-V3 (Yao et al. 2021, section 3.4). Raises NotReadyError when the work is not known.
    """
    if option.macs is None:
        raise NotReadyError(
            "budget bops needs the shapes that flow through the model: pass example_inputs=... or data=..."
        )
    return round(option.macs * option.weight_bits * option.input_bits * (1 - option.sparsity))


def latency(gm: fx.GraphModule, layer: Layer, option: LayerOption, *, table: Table | str) -> int:
    """Return the nanoseconds of all calls of a layer from a measured table; an operator without a weight takes none.

    Raises NotReadyError when the table has no such entry, when shapes are not known, or for a quantizer that tables
    do not speak of.
    """
    if option.weight_shape is None:
        return 0
    for part, quantizer in (("weight", option.weight), ("input", option.input)):
        if quantizer is not None and not quantizer.integer:
            raise NotReadyError(
                f"budget latency: the {part} of {layer.name!r} is {quantizer}, and a table knows uniform quantizers "
                "of 2 to 8 bits with fixed ranges, per tensor or per channel; take it off the list"
            )
    if option.input_shapes is None:
        raise NotReadyError(
            "budget latency needs the shapes that flow through the model: pass example_inputs=... or data=..."
        )
    first = 1 + max(layer.operator.weight or 0, layer.operator.bias or 0)
    rows = [
        Row(
            kind=layer.kind,
            input=flowing,
            weight=option.weight_shape,
            arguments=flat(call.args[first:]),
            weight_bits=option.weight_bits,
            input_bits=option.input_bits,
            sparsity=option.sparsity,
            median=0,
        )
        for call, runs in zip(layer.calls, option.input_shapes, strict=True)
        for flowing in runs
    ]
    return sum(look_up(table, row, layer.name) for row in rows)


COSTS: Mapping[str, CostModel] = {"size": size, "bops": bops, "latency": latency}


def rest_size(gm: fx.GraphModule) -> int:
    """Return the bytes in the exported file of what is neither a layer's nor open: norms, parameters, scales.

    By islands this is also what the model's own Python reads, and no graph.
    """
    total = 0
    edges = [edge for layer in layers(gm) for edge in layer.weight_edges() + layer.bias_edges()]
    in_layers = _upstream([edge for edge in edges if is_constant(gm, edge)])
    seen = set()
    for node in gm.graph.nodes:
        if node in in_layers or (node.op, node.target) in seen:
            continue
        seen.add((node.op, node.target))
        module = module_of(gm, node)
        if node.op == "get_attr":
            total += _float_bytes(get_tensor(gm, str(node.target)))
        elif isinstance(module, Quantizer):
            total += module.stored_bytes(0)
        elif isinstance(module, nn.Module) and not isinstance(module, Choice):
            total += _float_bytes(*module.parameters(), *module.buffers())
    return total + _float_bytes(*_outside(gm))


def _outside(gm: fx.GraphModule) -> list[Tensor]:
    """Return what only the model's own Python reads of its parameters and buffers; a whole graph leaves none."""
    if not isinstance(gm, Islands):
        return []
    called = [module_of(gm, node) for node in gm.graph.nodes]
    held = [tensor for module in called if module is not None for tensor in (*module.parameters(), *module.buffers())]
    read = [get_tensor(gm, str(node.target)) for node in gm.graph.find_nodes(op="get_attr")]
    inside = {memory(tensor) for tensor in (*held, *read)}
    return [tensor for tensor in (*gm.parameters(), *gm.buffers()) if memory(tensor) not in inside]


def scales_size(gm: fx.GraphModule, picks: Picks) -> int:
    """Return the bytes in the exported file of the scales that open Choices of activations take on with `picks`."""
    total = 0
    for name, label in picks.items():
        choice = choice_of(gm, name)
        option = choice.options[label]
        if "input.bits" in choice.settings[label] and isinstance(option, Quantizer):
            total += option.stored_bytes(0)
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


def _float_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * _FLOAT_BYTES for tensor in tensors if tensor.is_floating_point())
