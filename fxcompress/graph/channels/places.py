"""Channel rules of operators that pick by place: which channels they tell apart must keep their places."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from fxcompress.graph.channels.labels import Couplings, Flow, Labels, core, rows
from fxcompress.graph.channels.rules import Call, axes_of, movement, overwritten, values

_SECTIONS = {"hsplit": 1, "vsplit": 0, "dsplit": 2}  # by the axis that they split


def _united(c: Couplings, one: Labels, axis: int, leaders: Tensor) -> None:
    """Let each index along an axis go together with its leader."""
    if axis in one.axes:
        ids = core(one.ids, one.axes)
        c.unite(ids, ids.index_select(axis, leaders))


def _blocks(c: Couplings, source: Flow, axis: int, size: int) -> None:
    """Let as many as `size` consecutive ones go together, so that the others keep their places in the blocks."""
    for one in source.labels:
        _united(c, one, axis, torch.arange(source.value.shape[axis]) // size * size)


def _parts(c: Couplings, source: Flow, axis: int, size: int) -> None:
    """Let those at the same place of each part go together, so that parts stay of one size."""
    for one in source.labels:
        _united(c, one, axis, torch.arange(source.value.shape[axis]) % size)


def _held(c: Couplings, source: Flow, axes: frozenset[int], reason: str) -> Flow:
    """Let channels that vary on the axes alone stay; those that vary on others too go whole."""
    kept = []
    for one in source.labels:
        if one.axes & axes and one.axes <= axes:
            c.fix(one, reason)
            kept.append(one)
        else:
            kept.append(c.along(one, axes))
    return replace(source, labels=tuple(kept))


def _counted(c: Couplings, source: Flow, axis: int, bound: Any) -> Flow:
    """Let the channels before a place (behind it, where it is negative) be as many as a number read off a size says.

    A number that is written follows what is removed.
    """
    if not isinstance(bound, Flow) or not bound.labels or not bound.value:
        return source
    count, length = abs(bound.value), source.value.shape[axis]
    if count > length:
        return source
    number, *others = bound.labels
    same = all(torch.equal(one.ids, number.ids) for one in others)
    if not (isinstance(count, int) and same and number.zero) or number.ids.shape[1] % count:
        reason = f"{c.node!r} counts by how many there are"
        for one in bound.labels:
            c.fix(one, reason)
        return _held(c, source, frozenset({axis}), reason)
    parts = number.ids.unflatten(1, (-1, count))
    c.unite(parts, parts[:, :1])
    first = parts[:, 0]
    for one in source.labels:
        if axis in one.axes:
            place = rows(one, (axis,)).narrow(1, 0 if bound.value > 0 else length - count, count)
            if len(first) != len(place):
                c.unite(first, first[:1])
                first = first[:1]
            c.unite(place, first)
    return source


def proportional(call: Call) -> bool:
    """Return whether a number computed from numbers of channels is a share or a multiple of them."""
    numbers = [part for part in call.args if isinstance(part, Flow) and part.labels]
    if not all(part.labels[0].zero for part in numbers):
        return False
    if call.name in ("add", "sub"):
        return len(numbers) == len(call.args)
    if len(numbers) != 1 or call.name == "mul":
        return len(numbers) == 1
    return call.name in ("div", "truediv", "floordiv", "neg", "int") and call.args[0] is numbers[0]


def _sliced(c: Couplings, source: Flow, axis: int, start: Any, stop: Any, step: Any = None) -> Flow:
    """Take those from a place to another, or every so many of them, where these numbers can stay as they are."""
    for bound in (start, stop):
        source = _counted(c, source, axis, bound)
    length, every = source.value.shape[axis], values(step) or 1
    first, end, _ = slice(values(start), values(stop)).indices(length)
    if every > 1 and first < every and end == length:
        _blocks(c, source, axis, every)
    elif every > 1:
        return _held(c, source, frozenset({axis}), f"{c.node!r} takes one in {every} of a part")
    return source


def _moved(c: Couplings, call: Call, source: Flow) -> Any:
    """Move labels of the first tensor as they are after they were coupled."""
    first = call.flows[0]
    args, kwargs = map_aggregate((call.args, call.kwargs), lambda part: source if part is first else part)
    return movement(c, replace(call, args=args, kwargs=kwargs))


def _raw(call: Call, position: int, name: str) -> Any:
    """Return an argument with the labels of its numbers."""
    return call.args[position] if position < len(call.args) else call.kwargs.get(name)


def sliced(c: Couplings, call: Call) -> Any:
    """Take a part that lies between two places along an axis, or one place."""
    source = call.flows[0]
    first, second, step = (_raw(call, at, name) for at, name in ((2, "start"), (3, "end"), (4, "step")))
    (axis,) = axes_of(source.value, call.given(1, "dim", 0))
    if call.name == "narrow":
        inner, start = _counted(c, source, axis, first), int(values(first))
        rest = source.value.shape[axis] - start if start >= 0 else -start
        _counted(c, inner.moved(lambda x: x.narrow(axis, start, rest)), axis, _raw(call, 3, "length"))
    elif call.name == "select":
        inner = _counted(c, source, axis, _raw(call, 2, "index"))
    else:
        inner = _sliced(c, source, axis, first, second, step)
    return _moved(c, call, inner)


def overwriting(c: Couplings, call: Call) -> Any:
    """Put a tensor in the place of a part of another."""
    base, (axis,) = call.flows[0], axes_of(call.flows[0].value, call.given(2, "dim", 0))
    if call.name == "slice_scatter":
        _sliced(c, base, axis, *(_raw(call, at, name) for at, name in ((3, "start"), (4, "end"), (5, "step"))))
    return overwritten(c, call)


def indexed(c: Couplings, call: Call) -> Any:
    """Take what lies at an index: places by slices and numbers, or a list or tensor of indices."""
    source, index = call.flows[0], call.args[1]
    if call.name == "index":  # of ATen, where None takes all of an axis
        index = [slice(None) if part is None else part for part in index]
    elif not isinstance(index, tuple):
        index = (index,)
    for axis, part in _by_axis(index, source.value.dim()):
        reason = f"{c.node!r} picks it by index"
        if isinstance(part, slice):
            source = _sliced(c, source, axis, part.start, part.stop, part.step)
        elif isinstance(part, list) or (isinstance(part, Flow) and isinstance(part.value, Tensor)):
            several = values(part).dim() if isinstance(part, Flow) and part.value.dtype == torch.bool else 1
            source = _held(c, source, frozenset(range(axis, axis + several)), reason)
        else:
            source = _counted(c, source, axis, part)
    return _moved(c, call, source)


def _by_axis(index: Sequence[Any], rank: int) -> Iterator[tuple[int, Any]]:
    """Yield the parts of an index with the axis that each starts at."""

    def width(part: Any) -> int:
        mask = isinstance(part, Flow) and isinstance(part.value, Tensor) and part.value.dtype == torch.bool
        return part.value.dim() if mask else int(part is not None and part is not Ellipsis)

    axis = 0
    for part in index:
        if part is Ellipsis:
            axis += rank - sum(map(width, index))
        elif part is not None:
            yield axis, part
            axis += width(part)


def selected(c: Couplings, call: Call) -> Any:
    """Take, or repeat, what a tensor of indices or counts says along an axis."""
    source = call.flows[0]
    if len(call.flows) == 1:
        return movement(c, call)
    dim = call.given(1, "dim") if call.name == "index_select" else call.given(2, "dim")
    return _moved(c, call, _held(c, source, axes_of(source.value, dim), f"{c.node!r} picks it by index"))


def parted(c: Couplings, call: Call) -> Any:
    """Part an axis, evenly or in sizes that are written."""
    source = call.flows[0]
    axis = _SECTIONS.get(call.name, call.given(2, "dim", 0))
    axis = 0 if call.name == "hsplit" and source.value.dim() == 1 else axis % source.value.dim()
    sizes = [part.shape[axis] for part in call.result]
    given = next((leaf for leaf in (*call.args[1:2], *call.kwargs.values()) if isinstance(leaf, tuple | list)), None)
    by_size = call.name not in ("chunk", "unsafe_chunk", "tensor_split", *_SECTIONS)
    if given is None and len(set(sizes)) > 1:
        return _moved(c, call, _held(c, source, frozenset({axis}), f"{c.node!r} parts it unevenly"))
    if given is None:
        _parts(c, source, axis, sizes[0])
        return _moved(c, call, _counted(c, source, axis, call.args[1]) if by_size and call.args[1:] else source)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    for start, bound in zip(starts, given, strict=False):
        at = start if by_size else 0
        behind = source.moved(lambda x, at=at: x.narrow(axis, at, x.shape[axis] - at))  # type: ignore[misc]
        _counted(c, behind, axis, bound)
    return _moved(c, call, source)


def reshaped(c: Couplings, call: Call) -> Any:
    """View as another shape; an axis whose size is computed from that of channels is the one that loses some."""
    flow = movement(c, call)
    ahead, sizes = 0, list(call.args[1:])
    if call.name == "unflatten":
        ahead, sizes = call.given(1, "dim") % call.flows[0].value.dim(), list(call.args[2:])
    sizes = list(sizes[0]) if sizes and isinstance(sizes[0], tuple | list) else sizes
    found = flow.labels
    for axis, size in enumerate(sizes, ahead):
        if isinstance(size, Flow) and size.labels and size.value != size.labels[0].ids.shape[1]:
            found = [_computed(c, one, axis, size.labels[0]) for one in found]
    return replace(flow, labels=tuple(found))


def _computed(c: Couplings, one: Labels, axis: int, number: Labels) -> Labels:
    """Let what varies on other axes too go whole across these, where the number counts the same channels."""
    same = axis in one.axes and torch.equal(core(one.ids, one.axes).unique(), number.ids.unique())
    return c.along(one, one.axes - {axis}) if same else one


def shuffled(c: Couplings, call: Call) -> Any:
    """Move whole blocks of channels into places, or back, or those of one group among those of others."""
    source = call.flows[0]
    rank = source.value.dim()
    if call.name in ("channel_shuffle", "channelshuffle"):
        _parts(c, source, 1, source.value.shape[1] // _setting(call, "groups"))
    elif call.name in ("pixel_shuffle", "pixelshuffle"):
        _blocks(c, source, rank - 3, _setting(call, "upscale_factor") ** 2)
    else:
        source = _held(c, source, frozenset({rank - 2, rank - 1}), f"{c.node!r} takes it apart")
    return _moved(c, call, source)


def _setting(call: Call, name: str) -> int:
    return int(call.given(1, name, getattr(call.run, name, None)))


def _axes_that(axes: Callable[[Call], Any], reason: str) -> Callable[[Couplings, Call], Any]:
    """Return the rule of an operator that tells places along some axes apart."""

    def rule(c: Couplings, call: Call) -> Any:
        source = call.flows[0]
        held = axes_of(source.value, axes(call))
        return _moved(c, call, _held(c, source, held, f"{c.node!r} {reason}"))

    return rule


rolled = _axes_that(lambda call: call.given(2, "dims") or None, "shifts it")
diagonal = _axes_that(lambda call: (call.given(2, "dim1", 0), call.given(3, "dim2", 1)), "takes the diagonal of it")
_windows = _axes_that(lambda call: call.given(1, "dimension"), "puts it into windows that overlap")


def windows(c: Couplings, call: Call) -> Any:
    """Part an axis into windows; where these overlap or leave a rest, each place is another."""
    (axis,) = axes_of(call.flows[0].value, call.given(1, "dimension"))
    size, step = call.given(2, "size"), call.given(3, "step")
    even = size == step and call.flows[0].value.shape[axis] % size == 0
    return movement(c, call) if even else _windows(c, call)
