"""Comparison of a graph with the model that it was captured from, on the example inputs."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.counting import unfused
from fxcompress.graph.inputs import Arguments

_TOLERANCE = 1e-4  # of an output's largest value; a graph that computes something else is far above

_DEPTH = 4  # how far objects are looked into


_OF_TORCH = frozenset(vars(nn.Module()))  # what every module has: its mode, its hooks, its tensors and parts
_CONTAINERS = (list, dict, set, OrderedDict, Counter, defaultdict, deque)


def run(module: nn.Module, arguments: Arguments, times: int = 1) -> Any:
    """Return what a module computes on copies of the arguments, from one random seed; it is left as it was.

    Of several times, which see what the ones before have changed, the last result is returned.
    """
    with unfused(), torch.random.fork_rng(devices=devices(module)), unchanged(module):
        for _ in range(times):
            args, kwargs = pytree.tree_map_only(Tensor, _copied, tuple(arguments))
            torch.manual_seed(0)
            result = module(*args, **kwargs)
        return result


def devices(module: nn.Module) -> list[torch.device]:
    """Return the devices with random numbers of their own that a module computes on."""
    return list({tensor.device for tensor in module.parameters() if tensor.device.type == "cuda"})


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors, such as counters in buffers, back the values that running a model changes."""
    values = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put a module back as it was: its buffers, gradients and attributes, and what lists and dicts among these hold.

    A module that makes parts or tensors of its own in its first run keeps them, and all attributes with them.
    """
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    gradients = [(tensor, tensor.grad) for tensor in module.parameters()] if torch.is_grad_enabled() else []
    for tensor, _ in gradients:
        tensor.grad = None  # the next would be added to it, in place
    before = attributes(module)
    contents = [(held, held.copy()) for own in before.values() for held in own.values() if type(held) in _CONTAINERS]
    registered = _registered(module)
    try:
        with restored(module.buffers()):
            yield
    finally:
        for part, own in buffers:  # forward may have put others into their places
            part._buffers.update(own)
        for tensor, gradient in gradients:
            tensor.grad = gradient
        if registered == _registered(module):
            _put_back(before, contents)


def attributes(module: nn.Module) -> dict[nn.Module, dict[str, Any]]:
    """Return the plain attributes of each part of a module: those that torch knows nothing of.

    Lazy modules have none before their first run, which sets them once and for all.
    """
    return {
        part: {name: value for name, value in vars(part).items() if name not in _OF_TORCH}
        for part in module.modules()
        if not isinstance(part, LazyModuleMixin)
    }


def marks(own: dict[nn.Module, dict[str, Any]]) -> list[Any]:
    """Return what is another list where attributes, as long as they are held, were set, or were changed in place."""
    return [(part, name, id(value), _changes(value)) for part, named in own.items() for name, value in named.items()]


def _changes(value: Any) -> int:
    if isinstance(value, Tensor):
        return -1 if value.is_inference() else value._version
    return len(value) if type(value) in _CONTAINERS else 0


def _registered(module: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (part, *part._modules.keys(), *part._parameters.keys(), *part._buffers.keys()) for part in module.modules()
    ]


def _put_back(before: dict[nn.Module, dict[str, Any]], contents: list[tuple[Any, Any]]) -> None:
    for part, own in before.items():
        for name in vars(part).keys() - own.keys() - _OF_TORCH:
            del part.__dict__[name]
        part.__dict__.update(own)
    for held, copy in contents:
        held.clear()
        (held.extend if isinstance(held, list | deque) else held.update)(copy)


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
