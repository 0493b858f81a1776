"""Shapes: what flows through each node for given inputs, and the work that it means."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.edit import constant_value
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.layers import Layer
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.operators.calls import argument_node
from fxcompress.graph.regions import Islands, Region, bound, regions

Shape = tuple[int, ...]
Shapes = dict[fx.Node, list[Shape]]  # one for each time that a node runs; regions may run several times


class _Recorder(fx.Interpreter):
    """Runs nodes one by one and keeps the shapes of the tensors that they give."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # an error says what it says, not in which node
        self.shapes: Shapes = defaultdict(list)

    def run_region(self, region: Region, inputs: dict[fx.Node, Any]) -> Any:
        self.env = {}
        for node in region.nodes:
            value = inputs[node] if node in inputs else self.run_node(node)
            self.env[node] = value
            if isinstance(value, Tensor):
                self.shapes[node].append(tuple(value.shape))
        return value


@torch.no_grad()
def shapes(gm: fx.GraphModule, arguments: Arguments | None) -> Shapes | None:
    """Run the graph once, in eval mode, and return the shapes of each tensor by node; None without arguments."""
    if arguments is None:
        return None
    recorder = _Recorder(gm)
    found = regions(gm)
    with eval_mode(gm):
        if isinstance(gm, Islands):
            with gm.calling([_recorded(recorder, region) for region in found]):
                gm(*arguments.args, **arguments.kwargs)
        else:
            _recorded(recorder, found[0])(gm, *arguments.args, **arguments.kwargs)
    return dict(recorder.shapes)


def _recorded(recorder: _Recorder, region: Region) -> Callable[..., Any]:
    def call(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        inputs = bound(gm, region, args, kwargs)
        outside = recorder.env  # a region may call a module with a region of its own
        try:
            return recorder.run_region(region, inputs)
        finally:
            recorder.env = outside

    return call


def flowing_in(layer: Layer, call: fx.Node) -> Any:
    """Return the first input of a layer's call: what its work is counted on."""
    return call.args[layer.operator.inputs[0] if layer.operator.inputs else 0]


def macs(gm: fx.GraphModule, layer: Layer, known: Shapes) -> int:
    """Return the multiply-accumulates of all runs of a layer, for inputs of the known shapes."""
    total = 0
    for call in layer.calls:
        weight = argument_node(call, layer.operator.weight)
        if weight is not None and call in known:  # a region that the inputs do not reach does not run
            kernel = known[weight][0] if weight in known else tuple(constant_value(gm, weight).shape)
            runs = zip(known[flowing_in(layer, call)], known[call], strict=True)
            total += sum(layer.operator.macs(before, kernel, after) for before, after in runs)
    return total
