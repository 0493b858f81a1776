"""Block reconstruction: the roundings and activation scales of a block are learned together, block by block."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx

from fxcompress.graph.edit import get_tensor, is_constant, module_of
from fxcompress.measure.progress import progress
from fxcompress.nn import UniformQuantizer
from fxcompress.tune.finished import Finished
from fxcompress.tune.left import say_unrounded
from fxcompress.tune.reconstruct import Recipe, Sample, reconstruct
from fxcompress.tune.soft_rounding import LearnedScale, SoftRounding
from fxcompress.tune.walk import Stretch, Walk
from fxcompress.tune.weights import QuantizedWeight, float_weight, roundable, store

Scales = Mapping[fx.Node, LearnedScale]


def block_reconstruction(gm: fx.GraphModule, walk: Walk, finished: Finished, **arguments: Any) -> None:
    """Learn for each block in turn its roundings and the scales of its activations (BRECQ, Li et al. 2021).

    Blocks are the parts of the walk: a residual block, or a layer with what follows it (section 3.2 there). A block's
    input is that of the network quantized so far, its target the output of the block in the float model. Scales that
    are powers of two stay. Warns of weights that cannot be rounded so, which are those without even steps or with a
    parameter that serves something else, too; raises PassError where all are and no scale is learned either.
    """
    recipe = Recipe(**arguments)
    scaled = recipe.scale_learning_rate and any(True for _ in _learnable(gm, gm.graph.nodes))
    still = "only the scales of activations are learned" if scaled else ""
    say_unrounded("block_reconstruction", walk.weights(), still=still)
    for stretch in progress(walk.stretches(), "reconstructing"):
        weights = {
            one: SoftRounding(quantizer, float_weight(gm, one)) for one, quantizer in roundable(stretch.weights)
        }
        scales = _scales(stretch) if recipe.scale_learning_rate else {}
        names = [one.parameter(gm) for one in weights] + [f"{node.target}.scale" for node in scales]
        if names:
            work = partial(_reconstruct, stretch, weights, scales, recipe)
            finished.once(names[0], gm, dict.fromkeys(names), work)


def _scales(stretch: Stretch) -> Scales:
    """Return a learned scale for each call of an activation's quantizer; calls of one quantizer share theirs."""
    found: dict[UniformQuantizer, LearnedScale] = {}
    scales = {}
    for node, quantizer in _learnable(stretch.gm, stretch.part.nodes):
        scales[node] = found.setdefault(quantizer, LearnedScale(quantizer))
    return scales


def _learnable(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, UniformQuantizer]]:
    """Yield the calls of quantizers of activations whose scale can be learned."""
    for node in nodes:
        quantizer = None if is_constant(gm, node) else module_of(gm, node)
        if isinstance(quantizer, UniformQuantizer) and quantizer.enabled and not quantizer.power_of_two:
            yield node, quantizer


def _reconstruct(
    stretch: Stretch, weights: Mapping[QuantizedWeight, SoftRounding], scales: Scales, recipe: Recipe
) -> None:
    roundings = {node: rounding for one, rounding in weights.items() for node in one.nodes}
    name = stretch.weights[0].layer.name if stretch.weights else stretch.part.nodes[0].name
    reconstruct(stretch.gm, stretch.part.constants, _samples(stretch), roundings, scales, recipe, name)
    for one, rounding in weights.items():
        store(stretch.gm, one, rounding.hard())
    for node, learned in scales.items():
        get_tensor(stretch.gm, f"{node.target}.scale").copy_(learned.scale.detach())


def _samples(stretch: Stretch) -> list[Sample]:
    outputs = tuple(node for node in stretch.part.gives if node in stretch.part.nodes)
    samples = []
    for values, given in zip(stretch.before, stretch.float(*outputs), strict=True):
        targets = {
            node: value
            for node, value in zip(outputs, given, strict=True)
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        samples.append(Sample(stretch.part.nodes, tuple(targets), values, tuple(targets.values())))
    return samples
