"""Channel groups: which slices of which parameters must be removed together, found by following the graph."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx

from fxcompress.graph.channels.flow import Follower, ParameterAxis
from fxcompress.graph.channels.labels import Couplings, Ids
from fxcompress.graph.compare import restored
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.regions import Islands, Region, bound, regions


@dataclass(frozen=True, eq=False)
class Slice:
    """Indices along one axis of a parameter or buffer, which has its first name in the model.

    `indices` has the shape (units, indices for each unit).
    """

    parameter: str
    axis: int
    indices: Ids


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that lie in the same parameters, each a unit that can be removed or kept on its own.

    Unit u is row u of the indices of all slices: what must be removed together. No axis may end up empty.
    `mixed_by` names the nodes whose result for other channels depends on there being these (a layer norm over
    channels): removing them is then something else than setting their slices to zero. `fixed` says why none of the
    units can be removed, and is empty where they can.
    """

    slices: tuple[Slice, ...]
    mixed_by: tuple[str, ...] = ()
    fixed: str = ""

    @property
    def units(self) -> int:
        """How many channels, or sets of channels, there are to choose from."""
        return len(self.slices[0].indices)

    @property
    def exact(self) -> bool:
        """Whether a model without some units computes what it does with their slices set to zero."""
        return not self.mixed_by


@torch.no_grad()
def channel_groups(gm: fx.GraphModule, example_inputs: Any) -> list[ChannelGroup]:
    """Return the groups of all channels that the graph's weights make or read, in the order of the graph.

    Runs the graph once in eval mode, with the channels' ids beside the values: operators that move elements are
    applied to the ids themselves, those that join tensors unite what meets, weights begin new channels. So coupling
    comes from what is computed, exact to the index, and not from the names or kinds of layers.

    In attention the unit is a head. A convolution in groups, or a group norm, loses whole groups where these are at
    least as many as the channels in one, else the same channels of each group. An operator that is not known keeps
    the channels that reach it, and so do inputs and outputs.

    Sizes that are written in the graph have to follow what is removed: those of views and of parts in a list,
    `groups`, `normalized_shape`, `num_groups`, and places where a slice without a step or a `narrow` starts and ends,
    or that `select` takes. All else stays as it is. So channels go together where a number is computed from how many
    there are (halves by `shape[1] // 2`), or where one number stands for many parts (`chunk`, `split` by one size,
    a step). Lists and tensors of indices, and shifts, keep the channels that they tell apart.
    """
    arguments = as_arguments(example_inputs)
    follower = Follower(gm)
    with eval_mode(gm), restored(gm.buffers()):
        found = regions(gm)
        if isinstance(gm, Islands):
            with gm.calling([_followed(follower, region) for region in found]):
                gm(*arguments.args, **arguments.kwargs)
        else:
            _followed(follower, found[0])(gm, *arguments.args, **arguments.kwargs)
    return _grouped(follower)


def _followed(follower: Follower, region: Region) -> Callable[..., Any]:
    def call(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        return follower.follow(region, bound(gm, region, args, kwargs))

    return call


def components(count: int, a: Ids, b: Ids) -> Ids:
    """Return for each of `count` ids the smallest one that pairs of ids (a[i], b[i]) connect it with.

    Each id points at the smallest in its neighbourhood, then paths are shortened: about log(count) rounds.
    """
    low = np.arange(count)
    while len(a):
        least = np.minimum(low[a], low[b])
        np.minimum.at(low, low[a], least)
        np.minimum.at(low, low[b], least)
        while not np.array_equal(shorter := low[low], low):
            low = shorter
        apart = low[a] != low[b]
        a, b = a[apart], b[apart]
    return low


def _joined(arrays: Iterable[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _components(couplings: Couplings) -> tuple[Ids, Ids]:
    """Return the component of each id, every tensor rectangular without any one, and ids that stay for that."""
    everything = np.arange(couplings.count)
    low = components(couplings.count, *(_joined(pair[side] for pair in couplings.pairs) for side in (0, 1)))
    while True:
        pairs = [_rectangular(low[grid]) for grid in couplings.grids.values()]
        a, b = (_joined(pair[side] for pair in pairs) for side in (0, 1))
        before, apart = low, a > 0
        low = components(len(low), np.append(everything, a[apart]), np.append(low, b[apart]))
        if np.array_equal(low, before):
            return low, b[a == 0]


def _rectangular(grid: Ids) -> tuple[Ids, Ids]:
    """Return pairs to unite so that a grid loses whole slices across its longest axis, where it varies on several."""
    varying = [axis for axis in range(grid.ndim) if (grid != grid.take([0], axis)).any()]
    if len(varying) < 2:
        return _joined([]), _joined([])
    kept = max(varying, key=lambda axis: grid.shape[axis])
    slices = np.moveaxis(grid, kept, 0).reshape(grid.shape[kept], -1)
    return slices.reshape(-1), np.repeat(slices.max(axis=1), slices.shape[1])


def _grouped(follower: Follower) -> list[ChannelGroup]:
    """Return the components that hold a channel, those in the same slices as the units of one group."""
    axes, couplings = follower.axes, follower.couplings
    low, irregular = _components(couplings)
    reasons = _reasons(follower, low, irregular)
    mixed = _mixed(couplings, low)
    is_channel = np.zeros(couplings.count, bool)
    is_channel[low[_joined(couplings.channels)]] = True
    ids = _joined(np.arange(axis.start, axis.start + axis.size) for axis in axes)
    axis_of = np.repeat(np.arange(len(axes)), [axis.size for axis in axes])
    order = np.argsort(low[ids], kind="stable")
    order = order[is_channel[low[ids[order]]]]
    ids, axis_of = ids[order], axis_of[order]
    bounds = np.flatnonzero(np.diff(low[ids], prepend=-1, append=-1))
    units: dict[Any, list[Ids]] = {}
    for start, end in pairwise(bounds.tolist()):
        component = int(low[ids[start]])
        key = axis_of[start:end].tobytes(), mixed.get(component, ()), reasons.get(component, "")
        units.setdefault(key, []).append(ids[start:end])
    return [
        _group(axes, np.frombuffer(members, np.int64), np.stack(rows), nodes, why)
        for (members, nodes, why), rows in units.items()
    ]


def _group(axes: list[ParameterAxis], axis_of: Ids, ids: Ids, mixed_by: tuple[str, ...], fixed: str) -> ChannelGroup:
    slices = []
    for start, end in pairwise(np.flatnonzero(np.diff(axis_of, prepend=-1, append=-1)).tolist()):
        axis = axes[axis_of[start]]
        slices.append(Slice(axis.parameter, axis.axis, ids[:, start:end] - axis.start))
    return ChannelGroup(tuple(slices), mixed_by, fixed)


def _mixed(couplings: Couplings, low: Ids) -> dict[int, tuple[str, ...]]:
    """Return by component the nodes whose result depends on how many channels there are."""
    found: dict[int, dict[str, None]] = {}
    for matrix, node in couplings.mixed:
        ids = low[matrix]
        for component in np.unique(ids[0][(ids == ids[0]).all(axis=0)]).tolist():
            found.setdefault(component, {})[node] = None
    return {component: tuple(nodes) for component, nodes in found.items()}


def _reasons(follower: Follower, low: Ids, irregular: Ids) -> dict[int, str]:
    """Return by component why it stays, the first of all reasons."""
    couplings, axes = follower.couplings, follower.axes
    events = [(low[ids], why) for ids, why in couplings.fixed]
    events += [(low[irregular], "it shares a tensor with what stays, so that none of it can go")]
    for axis in axes:
        part = low[axis.start : axis.start + axis.size]
        if (part == part[0]).all():
            events.append((part[:1], f"it is the whole of axis {axis.axis} of {axis.parameter!r}"))
    found: dict[int, str] = {}
    for met, why in events:
        for component in np.unique(met).tolist():
            found.setdefault(component, why)
    return found
