"""Where the boxes of a drawing stand: in rows from top to bottom, with edges that pass between them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx

_BETWEEN_ROWS, _BETWEEN_BOXES, _BETWEEN_LINES = 30.0, 24.0, 14.0
_BOX, _LINE = 100.0, 1.0  # how much a box and a passing line hold their place against each other
_SWEEPS = 12
_BACK = 0.5  # of the way to the middle

Point = tuple[float, float]


class Size(NamedTuple):
    """Width and height."""

    width: float
    height: float


class Box(NamedTuple):
    """A box that has its place: left, top, width and height."""

    x: float
    y: float
    width: float
    height: float


class Edge(NamedTuple):
    """A piece of an edge: from a point down to the end of its row, over to a point in the next; `ends` at a box."""

    start: Point
    bottom: float
    end: Point
    ends: bool


class Arranged(NamedTuple):
    """The boxes by node, the pieces of the edges, and the size of it all."""

    boxes: dict[Any, Box]
    edges: list[Edge]
    size: Size


class _Pass(NamedTuple):
    """The place in a row where the edges of `node` to later rows pass."""

    node: Any
    row: int


Rows = list[list[Any]]
Links = list[tuple[Any, Any]]


def arrange(sources: Mapping[Any, Sequence[Any]], sizes: Mapping[Any, Size]) -> Arranged:
    """Return places for the nodes of a graph without cycles, each below its `sources`, without overlap.

    Layered drawing after Sugiyama et al. (1981): rows by the longest way from a start, edges over several rows pass
    through places of their own, which all edges of one node share; nodes stand near their neighbours in both rows.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(sources)
    graph.add_edges_from((source, node) for node, before in sources.items() for source in before)
    order = {node: index for index, node in enumerate(sources)}
    rows = [sorted(row, key=order.__getitem__) for row in nx.topological_generations(graph)]
    links = _links(graph, rows)
    every = {node: sizes.get(node, Size(0.0, 0.0)) for row in rows for node in row}
    x = _columns(rows, links, every)
    boxes: dict[Any, Box] = {}
    ends: dict[Any, float] = {}
    bottom = -_BETWEEN_ROWS
    for row in rows:
        top = bottom + _BETWEEN_ROWS
        bottom = top + max(every[node].height for node in row)
        boxes |= {node: Box(x[node] - every[node].width / 2, top, *every[node]) for node in row}
        ends |= dict.fromkeys(row, bottom)
    edges = [
        Edge((x[one], boxes[one].y + boxes[one].height), ends[one], (x[other], boxes[other].y), other in sizes)
        for one, other in links
    ]
    right = max(box.x + box.width for box in boxes.values())
    return Arranged({node: boxes[node] for node in sources}, edges, Size(right, bottom))


def _links(graph: nx.DiGraph, rows: Rows) -> Links:
    """Return the edges from each row to the next; places for those that pass rows are added to `rows`."""
    row_of = {node: index for index, row in enumerate(rows) for node in row}
    links: Links = []
    for node, index in row_of.items():
        users = sorted(graph.successors(node), key=row_of.__getitem__)
        last = row_of[users[-1]] if users else index
        way = [node, *(_Pass(node, row) for row in range(index + 1, last))]
        for number, place in enumerate(way[1:], index + 1):
            rows[number].append(place)
        links += pairwise(way)
        links += [(way[row_of[user] - index - 1], user) for user in users]
    return links


def _columns(rows: Rows, links: Links, sizes: Mapping[Any, Size]) -> dict[Any, float]:
    """Return the centre of each node: sweeps down and up draw it to its neighbours, which also orders the rows."""
    above: dict[Any, list[Any]] = {node: [] for node in sizes}
    below: dict[Any, list[Any]] = {node: [] for node in sizes}
    for start, end in links:
        above[end].append(start)
        below[start].append(end)
    x = dict.fromkeys(sizes, 0.0)
    for sweep in range(_SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            _place(row, {node: _middle(node, near[node], x) for node in row}, sizes, x)
    straight = _straight(rows, x)
    for row in rows:
        _place(row, {node: straight.get(node, x[node]) for node in row}, sizes, x)
    left = min(x[node] - size.width / 2 for node, size in sizes.items())
    return {node: value - left for node, value in x.items()}


def _middle(node: Any, near: Sequence[Any], x: Mapping[Any, float]) -> float:
    """Return where a node would stand alone in its row: a box is in line with boxes, if it is beside any.

    Where edges meet they turn back to the middle of the picture, or else each block of a model would stand to the
    right of the one before.
    """
    boxes = [other for other in near if not isinstance(other, _Pass)]
    drawing = near if isinstance(node, _Pass) or not boxes else boxes
    if not drawing:
        return x[node]
    mean = sum(x[other] for other in drawing) / len(drawing)
    return mean if len(near) == 1 else mean * _BACK


def _straight(rows: Rows, x: Mapping[Any, float]) -> dict[_Pass, float]:
    """Return for each line that passes rows one place in all of them, on its side of the boxes: the outermost."""
    lines: dict[Any, list[_Pass]] = defaultdict(list)
    side: dict[Any, float] = defaultdict(float)  # how far to the right of the boxes
    for row in rows:
        boxes = [x[node] for node in row if not isinstance(node, _Pass)]
        for place in row:
            if isinstance(place, _Pass):
                lines[place.node].append(place)
                side[place.node] += x[place] - sum(boxes) / len(boxes)
    outermost = {
        node: (max if side[node] > 0 else min)(x[place] for place in places) for node, places in lines.items()
    }
    return {place: outermost[place.node] for places in lines.values() for place in places}


def _place(row: list[Any], wanted: Mapping[Any, float], sizes: Mapping[Any, Size], x: dict[Any, float]) -> None:
    """Order a row, and set in `x` the centres nearest to the wanted ones, in least squares, that do not overlap.

    Isotonic regression by pooling of adjacent violators: neighbours that are too close move as one.
    """
    row.sort(key=wanted.__getitem__)
    offsets = [0.0]
    for one, other in pairwise(row):
        apart = _BETWEEN_LINES if isinstance(one, _Pass) or isinstance(other, _Pass) else _BETWEEN_BOXES
        offsets.append(offsets[-1] + (sizes[one].width + sizes[other].width) / 2 + apart)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for node, offset in zip(row, offsets, strict=True):
        mean, weight, count = wanted[node] - offset, _LINE if isinstance(node, _Pass) else _BOX, 1
        while pools and pools[-1][0] > mean:
            before, others, more = pools.pop()
            mean = (mean * weight + before * others) / (weight + others)
            weight, count = weight + others, count + more
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    x.update({node: mean + offset for node, mean, offset in zip(row, means, offsets, strict=True)})
