"""Places of boxes: nothing overlaps, each box stands below what it reads, and edges pass between boxes."""

import itertools
import random
from collections import defaultdict

import pytest

from fxcompress.reporting.arrange import Box, Size, arrange


def overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def rounded(x: float, y: float) -> tuple[float, float]:
    return round(x, 3), round(y, 3)


def random_graph(seed: int) -> tuple[dict[int, list[int]], dict[int, Size]]:
    numbers = random.Random(seed)
    count = numbers.randint(1, 40)
    sources = {node: numbers.sample(range(node), min(node, numbers.randint(0, 3))) for node in range(count)}
    return sources, {node: Size(numbers.uniform(10, 300), numbers.uniform(10, 60)) for node in range(count)}


CHAIN = {0: [], 1: [0], 2: [1], 3: [2, 0], 4: [3], 5: [4], 6: [5, 3]}
BRANCHES = {0: [], **{node: [0] for node in range(1, 6)}, 6: [1, 2, 3, 4, 5]}
GRAPHS = [random_graph(seed) for seed in range(60)]
GRAPHS += [(sources, {node: Size(100, 20) for node in sources}) for sources in (CHAIN, BRANCHES)]


@pytest.mark.parametrize(("sources", "sizes"), GRAPHS)
def test_boxes_do_not_overlap_and_stand_below_what_they_read(sources, sizes):
    placed = arrange(sources, sizes)
    assert list(placed.boxes) == list(sources)
    assert all(box[2:] == sizes[node] for node, box in placed.boxes.items())
    assert not [pair for pair in itertools.combinations(placed.boxes.values(), 2) if overlap(*pair)]
    for node, before in sources.items():
        for source in before:
            assert placed.boxes[source].y + placed.boxes[source].height < placed.boxes[node].y
    for box in placed.boxes.values():
        assert -1e-6 < box.x < box.x + box.width < placed.size.width + 1e-6
        assert -1e-6 < box.y < box.y + box.height < placed.size.height + 1e-6


@pytest.mark.parametrize(("sources", "sizes"), GRAPHS)
def test_edges_pass_between_boxes(sources, sizes):
    placed = arrange(sources, sizes)
    for edge in placed.edges:
        for box in placed.boxes.values():
            assert not (box.x < edge.start[0] < box.x + box.width and edge.start[1] < box.y < edge.bottom)
            assert box.y + box.height <= edge.bottom or box.y >= edge.end[1]  # where the edge goes sideways
            passes = not edge.ends and box.y == edge.end[1]
            assert not (passes and box.x < edge.end[0] < box.x + box.width)


@pytest.mark.parametrize(("sources", "sizes"), GRAPHS)
def test_the_pieces_of_edges_lead_from_each_node_to_all_that_read_it(sources, sizes):
    placed = arrange(sources, sizes)
    bottoms = {rounded(box.x + box.width / 2, box.y + box.height): node for node, box in placed.boxes.items()}
    tops = {rounded(box.x + box.width / 2, box.y): node for node, box in placed.boxes.items()}
    after = defaultdict(list)
    for edge in placed.edges:
        after[rounded(*edge.start)].append(edge)
    found = set()
    for start, node in bottoms.items():
        waiting = list(after[start])
        while waiting:
            edge = waiting.pop()
            if edge.ends:
                found.add((node, tops[rounded(*edge.end)]))
            else:
                waiting += after[rounded(*edge.end)]
    assert found == {(source, node) for node, before in sources.items() for source in before}


def test_a_chain_stands_in_line_beside_the_edges_that_pass_it():
    placed = arrange(CHAIN, {node: Size(100, 20) for node in CHAIN})
    first, *others = placed.boxes.values()
    assert all(abs(box.x - first.x) < 2 for box in others)
    passing = [round(edge.end[0]) for edge in placed.edges if not edge.ends]
    assert len(passing) == 4  # two edges pass two rows each, and both are straight
    assert passing[0] == passing[1]
    assert passing[2] == passing[3]


def test_branches_stand_beside_each_other_under_their_middle():
    placed = arrange(BRANCHES, {node: Size(100, 20) for node in BRANCHES})
    branches = [placed.boxes[node] for node in range(1, 6)]
    assert len({box.y for box in branches}) == 1
    assert placed.boxes[0].x == pytest.approx(sum(box.x for box in branches) / 5)
