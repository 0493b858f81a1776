"""Channel labels: which channel each element of a tensor belongs to, and what operators couple by joining tensors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Axes = frozenset[int]
Ids = np.ndarray[Any, np.dtype[np.int64]]


class Labels(NamedTuple):
    """A channel for each element of a tensor: it goes when that channel is removed.

    `ids` has the tensor's shape, with stride 0 along the axes on which it does not vary, so that it is small. An id
    stands for one index along one axis of one parameter; 0 is an element that always stays. `axes` are those on which
    it varies. `zero` tells whether the elements of a channel are zero when the channel's parameters are set to zero.
    `spare` labels are not of a parameter: they count copies that `expand` made, of which any number will do.
    """

    ids: Tensor
    axes: Axes
    zero: bool
    spare: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Flow:
    """A value in the graph with its labels; a tensor may have several, on different axes.

    `origin` says in words where the axes without labels come from. A number that was read off a tensor's shape has
    labels of two axes, which vary along the second as the tensor did along that axis of its shape; `zero` says that
    it is a share or a multiple of that size.
    """

    value: Any
    labels: tuple[Labels, ...] = ()
    origin: str = ""

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Flow":
        """Return the flow with its elements moved to other places."""
        return Flow(move(self.value), tuple(moved(one, move(one.ids)) for one in self.labels), self.origin)

    def reshaped(self, shape: Sequence[int]) -> "Flow":
        """Return the flow in another shape."""
        return self.moved(lambda x: x.reshape(tuple(shape)))


def labels(ids: Tensor, zero: bool, spare: bool = False) -> Labels:
    """Return labels that vary on the axes on which `ids` has a stride."""
    shape, stride = ids.shape, ids.stride()
    return Labels(ids, frozenset([a for a in range(len(shape)) if stride[a] and shape[a] > 1]), zero, spare)


def moved(one: Labels, ids: Tensor) -> Labels:
    """Return labels whose ids were moved to other places: on some of the axes they may be the same now."""
    axes = labels(ids, one.zero).axes
    for axis in axes:
        grid = core(ids, axes)
        first = grid.narrow(axis, 0, 1)
        if torch.equal(first, grid.narrow(axis, 1, 1)) and torch.equal(first.expand_as(grid), grid):
            axes -= {axis}
    return Labels(core(ids, axes).expand_as(ids), axes, one.zero, one.spare)


def core(ids: Tensor, axes: Axes) -> Tensor:
    """Return the ids with size 1 on all axes but the given ones."""
    size = [n if axis in axes else 1 for axis, n in enumerate(ids.shape)]
    return ids.as_strided(size, ids.stride())


def rows(one: Labels, axes: Iterable[int]) -> Tensor:
    """Return the ids as a matrix: elements along the given axes in columns, and one row for each of the others."""
    last = sorted(one.axes.intersection(axes))
    ids = core(one.ids, one.axes)
    order = [axis for axis in range(ids.dim()) if axis not in last] + last
    columns = 1
    for axis in last:
        columns *= ids.shape[axis]
    return ids.permute(order).reshape(-1, columns)


def _flat(ids: Tensor) -> Ids:
    return ids.reshape(-1).numpy()


class Couplings:
    """What the operators of a graph say of channels, gathered node by node.

    `node` is the name of the node that is being followed. `pairs` go together; `fixed` stay, for a reason; `mixed`
    are matrices whose columns an operator mixes; `grids` are tensors with labels on several axes; `channels` are
    what a weight makes or reads. Ids come from `count`, which starts behind the 0 that always stays.
    """

    def __init__(self) -> None:
        self.node = ""
        self.count = 1
        self.pairs: list[tuple[Ids, Ids]] = []
        self.fixed: list[tuple[Ids, str]] = []
        self.mixed: list[tuple[Ids, str]] = []
        self.grids: dict[Any, Ids] = {}
        self.channels: list[Ids] = []

    def new_ids(self, size: int) -> Tensor:
        """Return ids that were not there before."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def unite(self, a: Tensor, b: Tensor, origin: str = "") -> None:
        """Let channels go together, those of `b` repeated to the shape of `a`; a channel that meets 0 stays."""
        b = b.expand_as(a)
        if a.numel() > 1 << 16:  # few different ones, as after a pixel shuffle
            pairs = torch.unique(a * self.count + b)
            a, b = pairs // self.count, pairs % self.count
        ids, others = _flat(a), _flat(b)
        if not (ids.all() and others.all()):
            stays = (ids == 0) != (others == 0)
            self.fixed.append((np.maximum(ids, others)[stays], self._meets(origin)))
            ids, others = ids[~stays], others[~stays]
        self.pairs.append((ids, others))

    def fix(self, one: Labels, reason: str) -> None:
        """Let channels stay."""
        self.fixed.append((_flat(core(one.ids, one.axes)), reason))

    def mix(self, one: Labels, axes: Iterable[int]) -> None:
        """Note that the node's result changes when whole indices along the axes go, though they are zero."""
        self.mixed.append((rows(one, axes).numpy(), self.node))

    def is_channel(self, flow: Flow) -> None:
        """Note that a weight makes or reads the channels."""
        self.channels += [_flat(core(one.ids, one.axes)) for one in flow.labels]

    def rectangular(self, flow: Flow) -> None:
        """Note that a tensor must be rectangular without the channels removed."""
        for one in flow.labels:
            if len(one.axes) > 1:
                grid = core(one.ids, one.axes)
                layout = sorted(zip(grid.stride(), grid.shape, strict=True))  # in whichever order the axes are
                self.grids[(grid.data_ptr(), *layout)] = grid.numpy()

    def along(self, one: Labels, axes: Axes) -> Labels:
        """Let what lies side by side along the axes go together."""
        axes = one.axes & axes
        if not axes:
            return one
        first = core(one.ids, one.axes - axes)
        self.unite(core(one.ids, one.axes), first)
        return one._replace(ids=first.expand_as(one.ids), axes=one.axes - axes)

    def across(self, found: Iterable[Labels], axes: Axes, reason: str) -> list[Labels]:
        """Do the same for an operator that mixes these axes, on which labels of their own stay."""
        kept = []
        for one in found:
            if one.axes <= axes:
                self.fix(one, reason)
            else:
                kept.append(self.along(one, axes))
        return kept

    def vector(self, flow: Flow, axis: int) -> Flow:
        """Return the labels on one axis, uniting what lies on the others, with the values' first elements."""
        others = frozenset(range(flow.value.dim())) - {axis}

        def on_axis(x: Tensor) -> Tensor:
            return x.as_strided((x.shape[axis],), (x.stride(axis),))

        kept = [self.along(one, others) for one in flow.labels if axis in one.axes]
        found = tuple(Labels(on_axis(one.ids), frozenset({0}), one.zero, one.spare) for one in kept)
        return Flow(on_axis(flow.value), found, flow.origin)

    def combined(self, flows: Sequence[Flow], shape: Sequence[int], zero: str = "") -> tuple[Labels, ...]:
        """Return the labels of an elementwise result of that shape: labels that meet on an axis are united.

        Where a tensor has no labels on an axis along which it is not broadcast, those of the others cannot go one by
        one. The result is zero where `any`, `all` or the `first` of the tensors are; never, by default.
        """
        found, real = self._spread(flows[0], shape)
        origin = flows[0].origin
        for flow in flows[1:]:
            others, other_real = self._spread(flow, shape)
            others.sort(key=lambda one: one.spare)
            alone = list(others)
            met = [self._met(one, others, alone, other_real, flow.origin, zero) for one in found]
            left = [self._held(one, real, origin, zero == "any" and one.zero) for one in alone]
            found = [one for one in (*met, *left) if one is not None]
            real |= other_real
            origin = origin or flow.origin
        return tuple(found)

    def _spread(self, flow: Flow, shape: Sequence[int]) -> tuple[list[Labels], Axes]:
        """Return labels over the result's shape, and the axes on which the tensor itself has that size."""
        ahead = len(shape) - flow.value.dim()
        real = frozenset(ahead + axis for axis, size in enumerate(flow.value.shape) if size > 1)
        if not ahead:
            return [one._replace(ids=one.ids.expand(tuple(shape))) for one in flow.labels], real
        return [
            one._replace(ids=one.ids.expand(tuple(shape)), axes=frozenset(ahead + axis for axis in one.axes))
            for one in flow.labels
        ], real

    def _met(
        self, one: Labels, others: list[Labels], alone: list[Labels], real: Axes, origin: str, zero: str
    ) -> Labels | None:
        """Return the labels after meeting those of another tensor, which are then not `alone`."""
        met = False
        for other in others:
            common = one.axes & other.axes
            if not common:
                continue
            met = True
            alone[:] = [left for left in alone if left is not other]
            axes = one.axes | other.axes
            self.unite(core(one.ids, axes), core(other.ids, axes), origin)
            is_zero = {"any": one.zero or other.zero, "all": one.zero and other.zero, "first": one.zero}
            ids = core(one.ids, common).expand_as(one.ids)
            one = Labels(ids, common, is_zero.get(zero, False), one.spare and other.spare)
        return one if met else self._held(one, real, origin, zero in ("any", "first") and one.zero)

    def _held(self, one: Labels, real: Axes, origin: str, zero: bool) -> Labels | None:
        """Return the labels after meeting a tensor that has these axes, but no labels on them; None if they stay."""
        held = one.axes & real
        if held == one.axes:
            self.fix(one, self._meets(origin))
            return None
        return self.along(one, held)._replace(zero=zero)

    def _meets(self, origin: str) -> str:
        return f"it meets {origin or 'what stays'} in {self.node!r}"

    def contracted(self, a: Flow, b: Flow, equation: str, shape: Sequence[int]) -> tuple[Labels, ...]:
        """Return the labels of a sum of products, in the notation of `torch.einsum` with a letter for each axis.

        Labels on the axes that are summed over are united; what also varies on others keeps these alone, so that
        attention removes whole heads.
        """
        inputs, out = equation.split("->")
        letters = inputs.split(",")
        summed = "".join(sorted({*letters[0], *letters[1]} - {*out}))
        inner, outer = [], []
        for flow, own in zip((a, b), letters, strict=True):
            ends = frozenset(axis for axis, letter in enumerate(own) if letter in summed)
            kept = [one if one.axes <= ends else self.along(one, ends) for one in flow.labels]
            within = replace(flow, labels=tuple(one for one in kept if one.axes & ends))
            beyond = replace(flow, labels=tuple(one for one in kept if not one.axes & ends))
            inner.append(_arranged(within, own, summed))
            outer.append(_arranged(beyond, own, out))
        sizes = [max(flow.value.shape[axis] for flow in inner) for axis in range(len(summed))]
        for one in self.combined(inner, sizes, "any"):
            if not one.zero:
                self.mix(one, one.axes)
        return self.combined(outer, shape, "any")


def _arranged(flow: Flow, own: str, wanted: str) -> Flow:
    """Return a flow with the axes `wanted` of its `own`: the first element of others, size 1 where it lacks one."""

    def arrange(x: Tensor) -> Tensor:
        size = [x.shape[own.index(letter)] if letter in own else 1 for letter in wanted]
        stride = [x.stride(own.index(letter)) if letter in own else 0 for letter in wanted]
        return x.as_strided(size, stride)

    found = tuple(labels(arrange(one.ids), one.zero, one.spare) for one in flow.labels)
    return Flow(arrange(flow.value), found, flow.origin)
