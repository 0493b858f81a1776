"""Nesting: values inside tuples, lists, dicts and dataclasses, and graphs that return them so."""

import copy
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxcompress.errors import CaptureError
from fxcompress.graph.inputs import Arguments

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, type(None), type(...), slice)


class Place:
    """Where a tensor stands among the tensors of a call."""

    def __init__(self, index: int) -> None:
        self.index = index


def is_constant(value: Any) -> bool:
    """Return whether a value can be written into the code of a graph."""
    return isinstance(value, _CONSTANTS)


class _Size(tuple[Any, ...]):
    """A torch.Size, which itself holds nothing but numbers."""


class Entry(NamedTuple):
    """One value in a container, with the function and the key that read it."""

    read: Callable[..., Any]
    key: Any
    value: Any


def entries(value: Any) -> list[Entry] | None:
    """Return what a container holds; None for a value that is no container."""
    if isinstance(value, Mapping):
        return [Entry(operator.getitem, key, part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [Entry(getattr, key, getattr(value, key)) for key in value._fields]
    if isinstance(value, tuple | list):
        return [Entry(operator.getitem, index, part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [Entry(getattr, field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def like(value: Any, parts: Sequence[Entry], new: Sequence[Any]) -> Any:
    """Return a container like another one, that holds new values."""
    if isinstance(value, tuple | list):
        kind = _Size if isinstance(value, torch.Size) else type(value)
        return kind(*new) if hasattr(value, "_fields") else kind(new)
    copied = copy.copy(value)
    for part, inner in zip(parts, new, strict=True):
        if isinstance(value, Mapping):
            copied[part.key] = inner
        else:
            object.__setattr__(copied, part.key, inner)
    return copied


def replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Return a copy of a nested value with `replace` applied to all that is no container."""
    parts = entries(value)
    if parts is None:
        return replace(value)
    return like(value, parts, [replaced(part.value, replace) for part in parts])


def filled(call: Arguments, tensors: Sequence[Any]) -> Arguments:
    """Return a call with tensors in the places that it has for them."""

    def fill(leaf: Any) -> Any:
        return tensors[leaf.index] if isinstance(leaf, Place) else leaf

    return Arguments(tuple(replaced(one, fill) for one in call.args), replaced(call.kwargs, fill))


def close_output(value: Any, tensors: list[Any]) -> Any:
    """Return what a model returns with a Place for each tensor and number, and append these to `tensors`.

    Raises CaptureError for an object that is neither a container nor a constant.
    """

    def take(leaf: Any) -> Any:
        if isinstance(leaf, (Tensor, *_NUMBERS)):
            tensors.append(leaf)
            return Place(len(tensors) - 1)
        if is_constant(leaf):
            return leaf
        raise CaptureError(
            f"the model returns a {type(leaf).__name__}, which a graph cannot make; let it return tensors, and "
            "tuples, lists, dicts and dataclasses of them (a model of transformers: use_cache=False)"
        )

    return replaced(value, take)


def write_output(graph: fx.Graph, returned: Any, nodes: Sequence[Any]) -> None:
    """Write the output of a graph: containers of Python as they are, others by a call of their class."""

    def write(value: Any) -> Any:
        if isinstance(value, Place):
            return nodes[value.index]
        parts = entries(value)
        if parts is None:
            return value
        written = {part.key: write(part.value) for part in parts}
        if type(value) in (tuple, list):
            return type(value)(written.values())
        if type(value) is dict:
            return written
        if dataclasses.is_dataclass(value):
            return graph.call_function(type(value), (), written)
        if isinstance(value, Mapping):
            return graph.call_function(type(value), (list(written.items()),))
        values = tuple(written.values())
        if type(value) is _Size:
            return graph.call_function(torch.Size, (values,))
        return graph.call_function(type(value), values if hasattr(value, "_fields") else (values,))

    graph.output(write(returned))
