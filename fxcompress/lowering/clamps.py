"""Clamps before a quantizer: done on its codes, so that nothing stands between a layer and its quantizer."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcompress.nn import UniformQuantizer

_FIXED: dict[Callable[..., Any] | str, tuple[float, float]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), (0.0, math.inf)),
    F.relu6: (0.0, 6.0),
}
_GIVEN: dict[Callable[..., Any] | str, dict[str, float]] = {
    F.hardtanh: {"min_val": -1.0, "max_val": 1.0},
    torch.clamp: {"min": -math.inf, "max": math.inf},
    "clamp": {"min": -math.inf, "max": math.inf},
}


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


def clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Return the bounds of a clamp with constant bounds, None for any other operator."""
    if node.target in _FIXED:
        return _FIXED[node.target]
    if node.target not in _GIVEN:
        return None
    names = _GIVEN[node.target]
    given: dict[str, Any] = names | dict(zip(names, node.args[1:], strict=False))
    given |= {name: value for name, value in node.kwargs.items() if name in names}
    low, high = (default if given[name] is None else given[name] for name, default in names.items())
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None
