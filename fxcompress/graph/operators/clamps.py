"""Clamps: what relu, relu6, hardtanh and torch.clamp clip to."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

_FIXED: dict[Callable[..., Any] | str, tuple[float, float]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), (0.0, math.inf)),
    F.relu6: (0.0, 6.0),
}
_GIVEN: dict[Callable[..., Any] | str, dict[str, float]] = {
    F.hardtanh: {"min_val": -1.0, "max_val": 1.0},
    torch.clamp: {"min": -math.inf, "max": math.inf},
    "clamp": {"min": -math.inf, "max": math.inf},
}


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
