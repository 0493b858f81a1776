"""Channel rules: how each class of operators passes channels on, what it couples and what it mixes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from fxcompress.graph.channels.labels import Couplings, Flow, Labels, core, labels, moved

_RESHAPING = ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "_unsafe_view", "ravel")
_EXPANDING = ("expand", "expand_as", "broadcast_to", "repeat", "tile")
_UNIFORM = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
_DIVISION = ("div", "truediv", "quantizer", "_weight_norm")
_ZERO = {  # of which tensors that are zero the result of an elementwise operator is zero
    "mul": "any",
    **dict.fromkeys(("add", "sub", "folded_bias"), "all"),
    **dict.fromkeys(_DIVISION, "first"),
}


@dataclass(frozen=True, eq=False)
class Call:
    """An operator's call: its name, what runs it, its arguments with a Flow for each tensor, and its result."""

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @cached_property
    def flows(self) -> list[Flow]:
        """The tensors among the arguments, in order."""
        return [flow for flow in flows_in((self.args, self.kwargs)) if isinstance(flow.value, Tensor)]

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that is at a position or has a name; numbers are plain."""
        value = self.args[position] if position < len(self.args) else self.kwargs.get(name, default)
        return value if isinstance(value, Flow) and isinstance(value.value, Tensor) else values(value)

    @cached_property
    def first(self) -> Tensor:
        """The result, or the first tensor in it."""
        return next(leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, Tensor))

    def made(self, found: Sequence[Labels]) -> Any:
        """Return the result with labels on its tensor, or on the first of them."""
        if isinstance(self.result, Tensor):
            return Flow(self.result, tuple(found), self.origin)
        return pytree.tree_map_only(
            Tensor, lambda value: Flow(value, tuple(found) if value is self.first else (), self.origin), self.result
        )

    @property
    def origin(self) -> str:
        """Where axes without labels come from: from an input sooner than from a parameter, which is quoted."""
        return min((flow.origin for flow in self.flows if flow.origin), key=lambda name: name[0] == "'", default="")


Rule = Callable[[Couplings, Call], Any]


def flows_in(structure: Any) -> list[Flow]:
    """Return the Flows in nested arguments."""
    found: list[Flow] = []
    map_aggregate(structure, lambda part: found.append(part) if isinstance(part, Flow) else None)
    return found


def values(structure: Any, others: Mapping[Flow, Tensor] = MappingProxyType({})) -> Any:
    """Return nested arguments with the value in the place of each Flow, or another tensor."""
    return map_aggregate(structure, lambda part: others.get(part, part.value) if isinstance(part, Flow) else part)


def axes_of(value: Tensor, dim: Any) -> frozenset[int]:
    """Return axes given as a number, several or None for all, counted from the front."""
    given = range(value.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    return frozenset(axis % max(value.dim(), 1) for axis in given)


def unknown(c: Couplings, call: Call) -> Any:
    """Follow no further: every channel that gets here stays."""
    for flow in call.flows:
        for one in flow.labels:
            c.fix(one, f"{c.node!r} is computed from it by {call.name}, whose channels are not known")
    labelled = any(flow.labels for flow in call.flows)
    return _without_labels(call, f"what {c.node!r} ({call.name}) computes" if labelled else call.origin)


def creation(c: Couplings, call: Call) -> Any:
    """Make a tensor of numbers that nothing is known of; where they are all the same, any number of them will do."""
    constant = _without_labels(call, f"the constant {c.node!r}")
    if call.name not in _UNIFORM:
        return constant
    return _copied(c, constant, range(call.result.dim()), "zero" in call.name)


def _without_labels(call: Call, origin: str) -> Any:
    return pytree.tree_map_only(Tensor, lambda value: Flow(value, (), origin), call.result)


def same(c: Couplings, call: Call) -> Any:
    """Keep every channel where it is."""
    return call.made(call.flows[0].labels)


def movement(c: Couplings, call: Call) -> Any:
    """Move the labels as the elements move."""
    source, *others = call.flows
    if call.name in _RESHAPING:  # a view of the values need not be one of the ids
        after = source.reshaped(call.result.shape)
        return replace(after, labels=tuple(_visible(c, after.labels)))
    if call.name in _EXPANDING:
        return _expanded(c, call, source)
    indices = [other for other in others if other.value.dim() and not other.value.dtype.is_floating_point]
    if indices:
        return _indexed(c, call, source, indices)
    return _moved(c, call, source, source.labels)


def _moved(c: Couplings, call: Call, source: Flow, found: Sequence[Labels]) -> Any:
    """Run the operator on the ids; a label that one element is left of has lost its axis, so that it stays."""
    leaves, structure = pytree.tree_flatten(call.result)
    kept: list[list[Labels]] = [[] for _ in leaves]
    for one in found:
        args, kwargs = values((call.args, call.kwargs), {source: one.ids})
        for place, ids in zip(kept, pytree.tree_leaves(call.run(*args, **kwargs)), strict=True):
            after = moved(one, ids)
            if one.axes and not after.axes:
                c.fix(after, f"{c.node!r} takes it out alone")
            else:
                place.append(after)
    flows = [Flow(leaf, tuple(_visible(c, at)), source.origin) for leaf, at in zip(leaves, kept, strict=True)]
    return pytree.tree_unflatten(flows, structure)


def _visible(c: Couplings, found: Sequence[Labels]) -> list[Labels]:
    """Return the labels without spare ones on axes that others vary on; those copies stay as they are."""
    kept = []
    for one in found:
        if one.spare and any(one.axes & other.axes for other in found if other is not one):
            c.fix(one, f"it is copied in {c.node!r}")
        else:
            kept.append(one)
    return kept


def _expanded(c: Couplings, call: Call, source: Flow) -> Any:
    """Copy; where one becomes many, any number of copies would do."""
    flow = _moved(c, call, source, source.labels)
    shape, before = flow.value.shape, source.value.shape
    ahead = len(shape) - len(before)
    return _copied(c, flow, [at for at in range(len(shape)) if at < ahead or before[at - ahead] == 1], False)


def _copied(c: Couplings, flow: Flow, axes: Iterable[int], zero: bool) -> Flow:
    """Return a flow whose elements along each of the axes are copies of one another."""
    shape = flow.value.shape
    for axis in axes:
        if shape[axis] > 1:
            ids = c.new_ids(shape[axis]).view([-1 if at == axis else 1 for at in range(len(shape))])
            flow = replace(flow, labels=(*flow.labels, labels(ids.expand(shape), zero, spare=True)))
    return flow


def _indexed(c: Couplings, call: Call, source: Flow, indices: Sequence[Flow]) -> Any:
    """Pick elements by tensors of indices: those that are the model's are places, like slices; others are data."""
    for flow in indices:
        for one in flow.labels:
            c.fix(one, f"{c.node!r} picks by it")
    found = source.labels
    if not all(flow.labels for flow in indices):
        index = call.args[1] if isinstance(call.args[1], tuple | list) else (call.args[1],)
        is_mask = any(flow.value.dtype == torch.bool for flow in indices)
        if call.name not in ("getitem", "index") or is_mask or Ellipsis in index or None in index:
            return unknown(c, call)
        at = {axis for axis, part in enumerate(index) if not (isinstance(part, slice) and part == slice(None))}
        for one in found:
            if one.axes & at:
                c.fix(one, f"{c.node!r} picks by index")
        found = tuple(one for one in found if not one.axes & at)
    return replace(_moved(c, call, source, found), origin=f"what {c.node!r} picks")


def padding(c: Couplings, call: Call) -> Any:
    """Put a margin around; a margin of channels has channels of its own, of which any number will do."""
    source, pads = call.flows[0], call.given(1, "pad")
    pads = (pads,) * 2 * (source.value.dim() - 2) if isinstance(pads, int) else tuple(pads)
    mode, value = call.given(2, "mode", "constant"), call.given(3, "value")
    if call.name == "constant_pad_nd":
        mode, value = "constant", call.given(2, "value")
    around = {source.value.dim() - 1 - at // 2: pads[at : at + 2] for at in range(0, len(pads), 2)}
    shape = call.result.shape
    found = []
    for one in source.labels:
        padded = [axis for axis in one.axes if any(around.get(axis, ()))]
        ids = core(one.ids, one.axes)
        if padded and (len(one.axes) > 1 or mode != "constant" or min(pads) < 0):
            c.fix(one, f"{c.node!r} pads it")
            continue
        for axis in padded:
            before, after = around[axis]
            new = c.new_ids(before + after)
            joined = torch.cat([new[:before], ids.reshape(-1), new[before:]])
            ids = joined.view([-1 if at == axis else 1 for at in range(len(shape))])
        found.append(labels(ids.expand(shape), one.zero and not value))
    return call.made(found)


def join(c: Couplings, call: Call) -> Any:
    """Put tensors one behind the other along an axis; labels on the other axes are united."""
    dim = call.given(1, "dim", 0)
    parts = [flow for flow in call.flows if flow.value.numel()]
    if call.name == "stack":
        parts = [flow.moved(lambda x: x.unsqueeze(dim)) for flow in parts]
    if len(parts) < 1:
        return unknown(c, call)
    axis = dim % call.result.dim()
    joint = frozenset[int]().union(*(one.axes for flow in parts for one in flow.labels if axis in one.axes))
    along = [[one for one in flow.labels if one.axes & joint] for flow in parts]
    found = []
    for index in range(max(map(len, along))):
        chosen = [one[index] if index < len(one) else None for one in along]
        zeros = torch.zeros((), dtype=torch.int64)
        shapes = [flow.value.shape for flow in parts]
        ids = [zeros.expand(n) if one is None else one.ids for one, n in zip(chosen, shapes, strict=True)]
        start = Labels(zeros, frozenset(), all(one.zero for one in chosen if one is not None))
        found.append(moved(start, torch.cat(ids, axis)))
    beside = [
        replace(flow, labels=tuple(one for one in flow.labels if not one.axes & joint)).moved(
            lambda x: x.narrow(axis, 0, 1)
        )
        for flow in parts
    ]
    shape = [1 if at == axis else n for at, n in enumerate(call.result.shape)]
    found += [one._replace(ids=one.ids.expand(call.result.shape)) for one in c.combined(beside, shape, "all")]
    return call.made(_visible(c, found))


def overwritten(c: Couplings, call: Call) -> Any:
    """Put a tensor in the place of a part of another, whose channels it takes on."""
    base, part = call.flows
    dim, *place = (values(argument) for argument in call.args[2:])
    index = [slice(None)] * (dim % base.value.dim()) + [slice(*place) if call.name == "slice_scatter" else place[0]]
    inner = base.moved(lambda x: x[tuple(index)])
    c.combined([inner, part], part.value.shape)
    zero = bool(part.labels) and all(one.zero for one in part.labels)
    return call.made([one._replace(zero=zero and one.zero) for one in base.labels])


def elementwise(c: Couplings, call: Call) -> Any:
    """Compute each element on its own from those at its place."""
    if len(call.flows) == 1:
        return call.made(_unary(c, call, call.flows[0]))
    if call.name in _DIVISION:
        for one in call.flows[1].labels:
            if one.zero:
                c.mix(one, one.axes)  # a zero divides
    return call.made(c.combined(call.flows, call.result.shape, _ZERO.get(call.name, "")))


def _unary(c: Couplings, call: Call, source: Flow) -> Sequence[Labels]:
    """Return the labels of a function of one tensor, which says itself what it makes of zero."""
    if not any(one.zero for one in source.labels):
        return source.labels
    args, kwargs = values((call.args, call.kwargs), {source: source.value.new_zeros(())})
    at_zero = call.run(*args, **kwargs)
    if not at_zero.isfinite():
        for one in source.labels:
            c.mix(one, one.axes)
    return [one._replace(zero=one.zero and not at_zero) for one in source.labels]


def prelu(c: Couplings, call: Call) -> Any:
    """Scale what is negative, by one number or by one for each index along the second axis."""
    source, slope = call.flows
    slope = slope.reshaped([-1] + [1] * (source.value.dim() - 2))
    return call.made(c.combined([source, slope], source.value.shape, "first"))


def gated(c: Couplings, call: Call) -> Any:
    """Multiply the first half along an axis by a function of the second."""
    source, dim = call.flows[0], call.given(1, "dim", -1)
    value, gate = source.moved(lambda x: x.chunk(2, dim)[0]), source.moved(lambda x: x.chunk(2, dim)[1])
    return call.made(c.combined([value, gate], call.result.shape, "first"))
