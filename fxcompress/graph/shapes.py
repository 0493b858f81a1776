"""Shapes: what flows through each node for given inputs, and the work that it means."""

from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.edit import constant_value, first_argument
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.layers import Layer
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.operators import argument_node


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # an error says what it says, not in which node
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


Shapes = dict[fx.Node, tuple[int, ...]]


@torch.no_grad()
def shapes(gm: fx.GraphModule, arguments: Arguments | None) -> Shapes | None:
    """Run the graph once, in eval mode, and return the shape of each tensor by node; None without arguments."""
    if arguments is None:
        return None
    recorder = _Recorder(gm)
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    named = [arguments.kwargs.get(str(node.target), node.args[0] if node.args else None) for node in placeholders]
    with eval_mode(gm):
        recorder.run(*arguments.args, *named[len(arguments.args) :])
    return recorder.shapes


def macs(gm: fx.GraphModule, layer: Layer, known: Shapes) -> int:
    """Return the multiply-accumulates of all calls of a layer, for inputs of the known shapes."""
    total = 0
    for call in layer.calls:
        weight = argument_node(call, layer.operator.weight)
        if weight is not None:
            kernel = known.get(weight) or tuple(constant_value(gm, weight).shape)
            total += layer.operator.macs(known[first_argument(call)], kernel, known[call])
    return total
