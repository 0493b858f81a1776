"""AdaRound: layer by layer, each weight is rounded up or down so that the layer's output stays what it was."""

from functools import partial
from typing import Any

from torch import fx

from fxcompress.graph.edit import is_constant
from fxcompress.graph.operators.clamps import clamp_bounds
from fxcompress.measure.progress import progress
from fxcompress.tune.finished import Finished
from fxcompress.tune.left import say_unrounded
from fxcompress.tune.parts import constants_of
from fxcompress.tune.reconstruct import Recipe, Sample, reconstruct
from fxcompress.tune.soft_rounding import SoftRounding
from fxcompress.tune.walk import Stretch, Walk
from fxcompress.tune.weights import QuantizedWeight, float_weight, roundable, store


def ada_round(gm: fx.GraphModule, walk: Walk, finished: Finished, **arguments: Any) -> None:
    """Learn for each weight in turn which elements are rounded up (Nagel et al. 2020, sections 3.3 and 3.4).

    A layer's input is that of the network quantized so far, its target the output of the float model. The chosen
    roundings become the parameter's values, so that rounding to nearest gives them ever after. Warns of weights
    that cannot be rounded so, which are those without even steps or with a parameter that serves something else, too;
    raises PassError where all are.
    """
    say_unrounded("ada_round", walk.weights())
    recipe = Recipe(**arguments)
    for stretch in progress(walk.stretches(), "rounding"):
        for one, quantizer in roundable(stretch.weights):
            rounding = SoftRounding(quantizer, float_weight(gm, one))
            work = partial(_round, stretch, one, rounding, recipe)
            finished.once(one.layer.name, gm, [one.parameter(gm)], work)


def _round(stretch: Stretch, one: QuantizedWeight, rounding: SoftRounding, recipe: Recipe) -> None:
    calls = [call for call in one.calls if call in stretch.part.nodes]
    samples = [sample for call in calls for sample in _samples(stretch, call)]
    constants = constants_of(stretch.part.constants, calls)
    reconstruct(stretch.gm, constants, samples, dict.fromkeys(one.nodes, rounding), {}, recipe, one.layer.name)
    store(stretch.gm, one, rounding.hard())


def _samples(stretch: Stretch, call: fx.Node) -> list[Sample]:
    """Return what enters a call and what it should give, behind the clamp that follows it."""
    users = tuple(call.users)
    nodes = (call, *users) if len(users) == 1 and clamp_bounds(users[0]) is not None else (call,)
    inputs = [node for node in call.all_input_nodes if not is_constant(stretch.gm, node)]
    return [
        Sample(nodes, nodes[-1:], dict(zip(inputs, values, strict=True)), target)
        for values, target in zip(stretch.quantized(*inputs), stretch.float(nodes[-1]), strict=True)
    ]
