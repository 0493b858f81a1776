"""Comparison of a graph with the model that it was captured from, on the example inputs."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.inputs import Arguments

_TOLERANCE = 1e-4  # of an output's largest value; a graph that computes something else is far above

_DEPTH = 4  # how far objects are looked into


@torch.no_grad()
def run(module: nn.Module, arguments: Arguments, function: Callable[..., Any] | None = None) -> Any:
    """Return what a module computes on copies of the arguments, from one random seed; its buffers stay unchanged.

    `function` is called in the module's place.
    """
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, tuple(arguments))
    held = [(part, dict(part._buffers)) for part in module.modules()]
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = {tensor.device for tensor in module.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        result = (function or module)(*args, **kwargs)
    for part, buffers in held:  # forward may have put others into their places
        part._buffers.update(buffers)
    for buffer, value in before:
        if not buffer.is_meta and not torch.equal(buffer, value):
            buffer.copy_(value)
    return result


def refuse_difference(expected: Any, found: Any, name: str) -> None:
    """Raise CaptureError naming the first output in which the graph and the model `name` differ."""
    wanted, structure = pytree.tree_flatten(_opened(expected))
    got, other = pytree.tree_flatten(_opened(found))
    if structure != other:
        raise CaptureError(f"the graph of {name} returns {other}, the model returns {structure}")
    for index, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if difference := _difference(a, b):
            raise CaptureError(
                f"the graph of {name} does not compute what the model does: output {index} {difference}"
            )


def _opened(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value in which objects that cannot be compared as they are, such as a cache, show what they hold."""

    def opened(leaf: Any) -> Any:
        equality: Any = type(leaf).__eq__
        by_identity = equality is object.__eq__ and hasattr(leaf, "__dict__") and not callable(leaf)
        holds = is_dataclass(leaf) or by_identity
        return (type(leaf).__name__, _opened(vars(leaf), depth - 1)) if holds and depth else leaf

    return pytree.tree_map(opened, value)


def _difference(a: Any, b: Any) -> str:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return "" if isinstance(a, Tensor) == isinstance(b, Tensor) and a == b else f"is {b!r}, not {a!r}"
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"is {_kind(b)}, not {_kind(a)}"
    if a.is_meta:  # there are no values to compare
        return ""
    if not a.is_floating_point() and not a.is_complex():
        return "" if torch.equal(a, b) else "differs"
    finite = a.isfinite()
    largest = a[finite].abs().max().item() if finite.any() else 0.0
    tolerance = max(_TOLERANCE, 4 * torch.finfo(a.dtype).eps) * largest
    if torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True):
        return ""
    return f"differs by {(a - b).abs().max().item():.3g} where its largest value is {largest:.3g}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
