"""Clamps before a quantizer: done on its codes, so that nothing stands between a layer and its quantizer."""

import torch
from torch import fx

from fxcompress.graph.operators.clamps import clamp_bounds
from fxcompress.nn import UniformQuantizer


def absorb_clamp(node: fx.Node, quantizer: UniformQuantizer) -> tuple[int, int]:
    """Take a clamp (relu, relu6, hardtanh) that only the call `node` of `quantizer` reads out of the graph.

    Returns the lowest and highest code that are left: rounding keeps the order, so clamping before it and after it is
    the same. ONNX Runtime does this itself only where the clamp ends where the codes of 8 bits do; elsewhere it would
    run the layer before the clamp in float.
    """
    before = node.args[0]
    assert isinstance(before, fx.Node)
    bounds = clamp_bounds(before) if quantizer.axis is None and len(before.users) == 1 else None
    if bounds is None:
        return quantizer.low, quantizer.high
    node.update_arg(0, before.args[0])
    low, high = quantizer.codes(torch.tensor(bounds)).tolist()
    return low, high
