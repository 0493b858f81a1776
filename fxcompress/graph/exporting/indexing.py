"""Indexing: the slices and selections of an exported program as the one index that stands in the model's code."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_END = 2**62  # torch.export writes the end of a slice that has none as the greatest integer


def is_index(node: fx.Node) -> bool:
    """Return whether a node takes a part of a tensor along one axis."""
    return node.target in (aten.slice.Tensor, aten.select.int)


def index(node: fx.Node, value: Callable[[Any], Any]) -> tuple[fx.Node, Any]:
    """Return the tensor that an index ending at `node` reads, and its key; `()` where it takes all of the tensor.

    `value` gives what a node of the program is in the graph.
    """
    source, entries, axes = node, list[Any](), list[int]()
    for one in _chain(node):
        given: tuple[Any, ...] = (*one.args, *(0, None, None, 1)[len(one.args) - 1 :])
        tensor, axis, *rest = given
        if not entries or entries[axes[axis % len(axes)]] is not None:
            source, entries = tensor, [None] * tensor.meta["val"].dim()
            axes = list(range(len(entries)))
        position = axes[axis % len(axes)]
        rest = list(fx.map_arg(tuple(rest), value))
        entries[position] = rest[0] if one.target is aten.select.int else _slice(*rest)
        if one.target is aten.select.int:
            axes.remove(position)
    return source, _key(entries)


def _chain(node: fx.Node) -> list[fx.Node]:
    """Return the nodes of one line of the model's code that only `node` reads, and `node` as the last of them."""
    chain = [node]
    while True:
        before = chain[0].args[0]
        if not isinstance(before, fx.Node) or not is_index(before):
            break
        if len(before.users) > 1 or before.meta.get("stack_trace") != node.meta.get("stack_trace"):
            break
        chain.insert(0, before)
    return chain


def _slice(start: Any, stop: Any, step: int) -> slice:
    whole = isinstance(stop, int) and stop >= _END
    return slice(
        None if isinstance(start, int) and start == 0 else start, None if whole else stop, None if step == 1 else step
    )


def _key(entries: Sequence[Any]) -> Any:
    """Return the key of a getitem; axes that were not spoken of stand behind the others, or before them as `...`."""
    if all(entry is None or entry == slice(None) for entry in entries):
        return ()
    spoken = [axis for axis, entry in enumerate(entries) if entry is not None]
    first, last = spoken[0], spoken[-1]
    if first and last == len(entries) - 1 and len(spoken) == len(entries) - first:
        return (..., *entries[first:])
    key = tuple(slice(None) if entry is None else entry for entry in entries[: last + 1])
    return key if len(key) > 1 else key[0]
