"""What lies between two layers: operators across which each channel can be scaled by a positive number of its own."""

import math
from typing import Any, NamedTuple

from torch import fx, nn

from fxcompress.graph.edit import inserted, module_of
from fxcompress.graph.operators.calls import operator_of
from fxcompress.graph.operators.clamps import clamp_bounds
from fxcompress.passes.fold_batch_norm import expect_features

_ELEMENTWISE = ("relu", "leaky_relu", "prelu", "contiguous")
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PLAIN = (*_DROPOUT, nn.Identity)


class Passage(NamedTuple):
    """The way from a layer's call to the next one: the nodes in between, and how channels lie at its end.

    `positions` is how many axes follow the channels' axis; `repeats` is how many neighbouring features each channel
    became by flattening. `end` is the node at which the way ends, and `why` says why where it is no layer.
    """

    nodes: tuple[fx.Node, ...]
    end: fx.Node | None
    positions: int
    repeats: int
    why: str = ""


class _State(NamedTuple):
    """How channels lie: the axes behind theirs, their sizes multiplied where known, and neighbours of one channel."""

    positions: int
    size: int | None
    repeats: int = 1


def passage(gm: fx.GraphModule, call: fx.Node, positions: int, *, clamped: bool) -> Passage:
    """Follow the result of a layer's call, whose channels have `positions` axes behind them, to the next layer.

    Clamps from zero are crossed where `clamped`: who asks puts ReLU in their place.
    """
    state, node = _State(positions, 1 if positions == 0 else None), call
    nodes: list[fx.Node] = []
    while True:
        users = [user for user in node.users if user.target is not expect_features]  # which looks at the axes only
        if len(users) != 1:
            return Passage((*nodes,), None, *_lie(state), f"{node.name!r} goes to {len(users)} places")
        (user,) = users
        operator = operator_of(user)
        if inserted(gm, user) or (operator is not None and operator.weight is not None):
            return Passage((*nodes,), user, *_lie(state))
        after = _crossed(gm, user, state, clamped=clamped)
        if after is None or user.args[0] is not node:
            return Passage((*nodes,), user, *_lie(state), f"{node.name!r} goes into {_named(gm, user)}")
        state, node = after, user
        nodes.append(user)


def _lie(state: _State) -> tuple[int, int]:
    return state.positions, state.repeats


def _named(gm: fx.GraphModule, node: fx.Node) -> str:
    module = module_of(gm, node)
    if module is not None:
        return f"{node.target!r} ({type(module).__name__})"
    return "the output" if node.op == "output" else f"{node.name!r}"


def is_clamp(node: fx.Node) -> bool:
    """Return whether a node clamps to zero and some positive number, such as ReLU6."""
    bounds = clamp_bounds(node)
    return bounds is not None and bounds[0] == 0 and 0 < bounds[1] < math.inf


def _crossed(gm: fx.GraphModule, node: fx.Node, state: _State, *, clamped: bool) -> _State | None:
    """Return how channels lie behind a node, None where they cannot be followed or scaled across it."""
    module, operator = module_of(gm, node), operator_of(node)
    if module is not None:
        plain = type(module) in _PLAIN and not (module._forward_hooks or module._forward_pre_hooks)
        return state if plain else None
    if operator is None:
        return None
    kind, arguments = operator.kind, node.args[1:]
    if kind in _ELEMENTWISE or (clamped and is_clamp(node)):
        return state
    if kind.startswith("adaptive_avg_pool") and _axes(kind) == state.positions:
        (sizes,) = arguments
        return _State(state.positions, _product(sizes))
    if operator.channels == "pooling" and _axes(kind) == state.positions:
        return _State(state.positions, None)
    if kind == "mean" and state.positions and _is_all_positions(arguments[0], state.positions):
        return _State(state.positions if arguments[1] else 0, 1)
    if kind == "flatten" and state.positions and arguments == (1, -1) and state.size is not None:
        return _State(0, 1, state.size)  # who reads this many features for each channel reads samples of them
    return None


def _axes(kind: str) -> int:
    return int(kind[-2])


def _product(sizes: Any) -> int | None:
    total = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        total *= size
    return total


def _is_all_positions(dims: Any, positions: int) -> bool:
    """Return whether axes are all those behind the channels, counted from the end or, past samples, the start."""
    given = sorted(dims) if isinstance(dims, tuple) and all(isinstance(dim, int) for dim in dims) else []
    return given in (list(range(-positions, 0)), list(range(2, positions + 2)))
