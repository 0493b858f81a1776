"""Arrivals: what flows into a region of a model captured by islands, found by running the model up to it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.inputs import Arguments
from fxcompress.graph.regions import Islands, bound, regions
from fxcompress.heap import trim

Inputs = Callable[[], Iterable[Arguments]]  # of all batches, the same whenever asked for
Values = dict[fx.Node, Any]  # what some nodes gave


class _ReachedError(BaseException):
    """All is known that a run is for; no Exception, which the model's own Python might catch."""


class Arrivals:
    """What flows into the regions of a model, asked for in the order in which they run.

    Regions that read the very same tensors, such as the projections of attention, are reached in one run, and a run
    ends behind them.
    """

    def __init__(self, gm: Islands, inputs: Inputs) -> None:
        self._gm, self._inputs, self._regions = gm, inputs, regions(gm)
        self._known: dict[int, list[Values]] = {}
        self._calls: list[Counter[int]] = []  # of each region, batch by batch

    def into(self, index: int) -> list[Values]:
        """Return what flows into a region, call by call."""
        if index not in self._known:
            self._known = self._reached(index)
        return self._known.pop(index)

    @torch.no_grad()
    def _reached(self, first: int) -> dict[int, list[Values]]:
        """Return what flows into region `first`, and into the later ones that read the same in each of its calls."""
        self._calls = self._calls or list(self._counted())
        arrived: dict[int, list[Values]] = {first: []}
        apart: set[int] = set()
        calls, left = list(self._gm.functions), 0

        def called(index: int, model: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            values = bound(model, self._regions[index], args, kwargs)
            if index == first:
                left -= 1
                arrived[first].append(values)
            elif arrived[first] and _same(values, arrived[first][-1]):
                arrived.setdefault(index, []).append(values)
            elif left <= 0:
                raise _ReachedError
            else:
                apart.add(index)
            return calls[index](model, *args, **kwargs)

        later = (partial(called, index) for index in range(first, len(calls)))
        with self._gm.calling([*calls[:first], *later]):
            for counted, arguments in zip(self._calls, self._inputs(), strict=False):
                left = counted[first]
                try:
                    self._gm(*arguments.args, **arguments.kwargs)
                except _ReachedError:
                    continue
        trim()
        whole = len(arrived[first])
        return {index: found for index, found in arrived.items() if index not in apart and len(found) == whole}

    def _counted(self) -> Iterator[Counter[int]]:
        """Run the model and yield for each batch how often each region is called."""
        calls, count = list(self._gm.functions), Counter[int]()

        def called(index: int, model: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            count[index] += 1
            return calls[index](model, *args, **kwargs)

        with self._gm.calling([partial(called, index) for index in range(len(calls))]):
            for arguments in self._inputs():
                count.clear()
                self._gm(*arguments.args, **arguments.kwargs)
                yield Counter(count)


def _same(values: Values, others: Values) -> bool:
    """Return whether two regions read the same tensors; both are what flows in, in the order of the arguments."""
    pairs = list(zip(values.values(), others.values(), strict=False))
    return len(values) == len(others) and all(isinstance(a, Tensor) and a is b for a, b in pairs)
