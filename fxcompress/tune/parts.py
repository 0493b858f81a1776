"""Parts: a graph cut, from its inputs to its output, into blocks that are tuned one after the other."""

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from torch import fx

from fxcompress.graph.edit import is_constant, module_of
from fxcompress.graph.regions import Region
from fxcompress.nn import Quantizer

_REACH = 8  # layers over which a branch counts as part of a block; a skip that comes back later passes by


class Part(NamedTuple):
    """Nodes that run one after the other: those that only parameters enter, and those that data flows through.

    `gives` are the values, of the part or from before it, that something behind it needs.
    """

    constants: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]

    def needed(self, wanted: Iterable[fx.Node]) -> set[fx.Node]:
        """Return the nodes of the part that have to run so that those wanted are known."""
        inside, needed, waiting = {*self.constants, *self.nodes}, set(), list(wanted)
        while waiting:
            node = waiting.pop()
            if node in inside and node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        return needed


def parts(gm: fx.GraphModule, region: Region, layers: frozenset[fx.Node]) -> list[Part]:
    """Cut a region where the fewest values cross, so that each part holds at least one of the calls `layers`.

    A residual block, whose skip joins within a few layers, is one part; a chain is cut behind each layer and what
    follows it, before the quantizer of the next (the blocks of BRECQ, Li et al. 2021, section 3.2).
    """
    constants = [node for node in region.nodes if node.op not in ("placeholder", "output") and is_constant(gm, node)]
    nodes = [node for node in region.nodes if node.op != "output" and not is_constant(gm, node)]
    data = [node for node in nodes if node.op != "placeholder"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    ends = _ends(gm, inputs, data, region.nodes[-1], layers)
    found = []
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        later = {node for after in (*data[end:], region.nodes[-1]) for node in after.all_input_nodes}
        gives = tuple(node for node in (*inputs, *data[:end]) if node in later)
        found.append(Part(constants_of(constants, data[start:end]), tuple(data[start:end]), gives))
    return found


def constants_of(constants: Iterable[fx.Node], nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """Return those of `constants`, which are in graph order, that some nodes need."""
    inside = tuple(constants)
    needed = Part(inside, (), ()).needed(argument for node in nodes for argument in node.all_input_nodes)
    return tuple(node for node in inside if node in needed)


def _ends(
    gm: fx.GraphModule, inputs: list[fx.Node], data: list[fx.Node], output: fx.Node, layers: frozenset[fx.Node]
) -> list[int]:
    """Return the positions in `data` before which one part ends and another begins."""
    passed = [0, *accumulate(node in layers for node in data)]  # layers before each position
    at = dict.fromkeys(inputs, -1) | {node: index for index, node in enumerate([*data, output])}
    calls = [index for index, node in enumerate(data) if node in layers]
    ends = [0]
    while len(left := calls[passed[ends[-1]] :]) > 1:
        start, last = ends[-1], left[_REACH] if len(left) > _REACH else len(data)
        crossing = _crossing(data[start:last], at, passed)
        end = start + _narrow(crossing, left[0] + 1 - start)
        while end < last and crossing[end + 1 - start] <= crossing[end - start] and _follows(gm, data[end], layers):
            end += 1
        if passed[end] == len(calls):
            break
        ends.append(end)
    return ends[1:]


def _follows(gm: fx.GraphModule, node: fx.Node, layers: frozenset[fx.Node]) -> bool:
    """Return whether a node belongs to the layer before it: it is neither a layer nor a quantizer of the next."""
    return node not in layers and not isinstance(module_of(gm, node), Quantizer)


def _narrow(crossing: list[int], first: int) -> int:
    """Return the first position from `first` on where no more values cross than anywhere before.

    Where there is none, because something is made that all later blocks read: the first where a branch ends.
    """
    least = list(accumulate(crossing, min))
    positions = range(first, len(crossing))
    no_more = (position for position in positions if crossing[position] <= least[position - 1])
    fewer = (position for position in positions[:-1] if crossing[position] < crossing[position - 1])
    return next(no_more, next(fewer, positions[-1]))


def _crossing(window: list[fx.Node], at: dict[fx.Node, int], passed: list[int]) -> list[int]:
    """Return for each position in a window how many values cross it.

    Counted is what the window makes or reads, up to the last place that needs it before too many layers do not.
    """
    start = at[window[0]]
    values = dict.fromkeys(value for node in window for value in (*node.all_input_nodes, node) if value in at)
    changes = [0] * (len(window) + 2)
    for value in values:
        since = last = max(at[value] + 1, start)
        for use in sorted(at[user] for user in value.users if user in at and at[user] >= since):
            if passed[use] - passed[last] <= _REACH:
                last = use + 1
        if last > since:
            changes[since - start] += 1
            changes[min(last - start, len(window) + 1)] -= 1
    return list(accumulate(changes[:-1]))
