"""How each layer of a graph would run, for any way to take its open Choices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn

from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import chain_under, constant_value, module_of, tensor_under
from fxcompress.graph.shapes import Shape, Shapes, flowing_in, macs
from fxcompress.nn import ChannelSplit, Choice, Mask, Quantizer

Picks = Mapping[str, str]  # the option taken, by the name of the Choice


@dataclass(frozen=True)
class LayerOption:
    """How a layer would run: its precisions (None is float), the share of zeros in its weight, and its work.

    `weight_shape` is None for an operator without a weight. `stored_weights` is how many are stored for the layer:
    two where it is folded with two norms, none where an earlier layer has the same. `macs` (of all calls together)
    and `input_shapes` (of the first argument, for each call) are None where no example inputs were given.
    """

    weight: Quantizer | None = None
    input: Quantizer | None = None
    sparsity: float = 0.0
    weight_shape: tuple[int, ...] | None = None
    stored_weights: int = 0
    macs: int | None = None
    input_shapes: tuple[tuple[Shape, ...], ...] | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight, 32 for float."""
        return 32 if self.weight is None else self.weight.bits

    @property
    def input_bits(self) -> int:
        """Bits of an input, 32 for float."""
        return 32 if self.input is None else self.input.bits


Fields = Mapping[str, Any]  # fields of a LayerOption


class _Stage(NamedTuple):
    """A module on an edge of a layer: the fields that it decides, by label; decided ones stand under None."""

    choice: str | None
    fields: Mapping[str | None, Fields]


class Surveyed(NamedTuple):
    """A layer with all that says how it runs: the modules on its edges, and the fields that no Choice changes."""

    layer: Layer
    stages: tuple[_Stage, ...]
    always: Fields

    def option(self, picks: Picks) -> LayerOption:
        """Return how the layer runs with open Choices taken as `picks` says; the others are float and dense."""
        fields: dict[str, Any] = {}
        for stage in self.stages:
            fields |= stage.fields.get(None if stage.choice is None else picks.get(stage.choice), {})
        return LayerOption(**{**self.always, **fields})

    @property
    def untouched(self) -> LayerOption:
        """How the layer runs in float and dense."""
        return LayerOption(**self.always)


Survey = dict[str, Surveyed]


def survey(gm: fx.GraphModule, shapes: Shapes | None) -> Survey:
    """Return each layer of the graph with what says how it runs, by name in graph order."""
    found: Survey = {}
    plain: set[str] = set()
    for layer in layers(gm):
        stages = [_stage(gm, node, "weight") for edge in layer.weight_edges() for node in chain_under(gm, edge)]
        stages += [_stage(gm, node, "input") for edge in layer.input_edges()[:1] for node in chain_under(gm, edge)]
        always = _weight(gm, layer, plain) | _work(gm, layer, shapes)
        stages += _widened(gm, layer, always)
        found[layer.name] = Surveyed(layer, tuple(stages), always)
    return found


def _weight(gm: fx.GraphModule, layer: Layer, plain: set[str]) -> dict[str, Any]:
    """Return shape and number of the weights stored for a layer; `plain` collects those stored as they are."""
    if layer.owner is None:
        return {}
    tensors = {tensor_under(gm, edge) for edge in layer.weight_edges()}
    computed = [tensor for tensor in tensors if tensor.op != "get_attr"]
    first_plain = len(computed) < len(tensors) and layer.owner not in plain
    if first_plain:
        plain.add(layer.owner)
    shape = tuple(constant_value(gm, tensors.pop()).shape)
    return {"weight_shape": shape, "stored_weights": len(computed) + first_plain}


def _widened(gm: fx.GraphModule, layer: Layer, always: Fields) -> list[_Stage]:
    """Return as a stage the shape that a weight has with the channels that splitting adds; it is stored so."""
    chain = [module_of(gm, node) for edge in layer.weight_edges()[:1] for node in chain_under(gm, edge)]
    splits = [module for module in chain if isinstance(module, ChannelSplit)]
    shape = list(always.get("weight_shape", ()))
    for split in splits:
        shape[split.axis] += len(split.added)
    return [_Stage(None, {None: {"weight_shape": tuple(shape)}})] if splits else []


def _work(gm: fx.GraphModule, layer: Layer, shapes: Shapes | None) -> dict[str, Any]:
    if shapes is None:
        return {}
    return {
        "macs": macs(gm, layer, shapes),
        "input_shapes": tuple(tuple(shapes.get(flowing_in(layer, call), ())) for call in layer.calls),
    }


def _stage(gm: fx.GraphModule, node: fx.Node, on: str) -> _Stage:
    module = module_of(gm, node)
    if isinstance(module, Choice):
        return _Stage(str(node.target), {label: _fields(option, on) for label, option in module.options.items()})
    return _Stage(None, {None: _fields(module, on)})


def _fields(module: nn.Module | None, on: str) -> Fields:
    if isinstance(module, Quantizer):
        return {on: module}
    return {"sparsity": module.sparsity} if isinstance(module, Mask) else {}
