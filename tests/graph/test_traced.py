"""Names of nodes: by the path of the module that computes them, unique, and the same in every way of capture."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcompress.graph import capture
from fxcompress.graph.mode import FollowsMode
from fxcompress.graph.traced import Traced, join, place


class Block(nn.Module):
    """A layer, and operators with and without a row in the table."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.scale = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        y = F.relu(self.bn(self.fc(x)) / self.scale)
        return (x + y).clamp(min=0) + F.dropout(y, 0.5, self.training) + torch.add(x, y, alpha=2)


class Net(nn.Module):
    """A block called twice among other blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(2, 2), nn.ModuleList([Block(), Block()]), nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        x = self.blocks[0](x) + self.blocks[0](x)
        return self.head(self.blocks[1](x) + x)


def numbered(name, count):
    return [name, *(f"{name}_{number}" for number in range(1, count))]


def block(path, calls=1):
    """Return the names of what a block computes in all of its calls."""
    once = [f"{path}_{name}" for name in ("fc", "bn", "div", "relu", "clamp", "dropout")]
    return [name for one in once for name in numbered(one, calls)] + numbered(f"{path}_add", 4 * calls)


def names(gm):
    return [node.name for node in gm.graph.nodes if node.op.startswith("call") and node.name != "expect_sizes"]


X = torch.randn(3, 2)


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_names_are_paths(way):
    found = names(capture(Net(), X, way=way))
    assert sorted(found) == sorted(["stem", *block("blocks_0", calls=2), *block("blocks_1"), "head", "add", "add_1"])


def test_names_in_islands_are_those_of_the_whole():
    class Outside(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    gm = capture(Outside(), X, way="islands")
    assert sorted(names(gm)) == sorted(["stem", *block("blocks_0"), *block("blocks_1"), "head"])
    inputs = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    assert inputs == ["stem_input", "blocks_0_x", "blocks_1_x", "head_input"]


def test_one_operator_has_one_name():
    class Spellings(nn.Module):
        def forward(self, x):
            y = x / 2
            y /= 2
            y = torch.div(y.div(2), 2).div_(2)
            y = y.softmax(-1) + F.softmax(y, -1) + torch.softmax(y, dim=-1)
            return y.mul(2)

    found = names(capture(Spellings(), X, way="symbolic"))
    divisions = ["div", "div_1", "div_2", "div_3", "div_4"]
    assert found == [*divisions, "softmax", "softmax_1", "add", "softmax_2", "add_1", "mul"]


@pytest.mark.parametrize("taken", ["parameter", "module"])
def test_a_made_module_takes_the_place_of_nothing(taken, same):
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Parameter(torch.ones(2)) if taken == "parameter" else nn.Linear(2, 2)

        def forward(self, x):
            x = x * self.dropout if taken == "parameter" else self.dropout(x)
            return F.dropout(x, 0.25, self.training)

    gm = same(Drops(), X)
    (made,) = [node for node in gm.graph.nodes if node.op == "call_module"]
    assert made.target != "dropout"
    assert gm.get_submodule(made.target).p == 0.25


def test_a_sequential_does_not_call_what_is_made():
    class Drops(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() < 1e9 else -x

    model = nn.Sequential(Drops(2, 2), Branches())
    gm = capture(model, X, way="islands")
    assert [node.target for node in gm.graph.nodes if node.op == "call_module"]
    found, expected = (torch.random.manual_seed(0) and module(X) for module in (gm, model))
    assert torch.equal(found, expected)


def test_a_qualified_name_is_joined():
    assert [join("a", "b.c"), join("", "b.c"), join("a", ""), join("", "")] == ["a.b.c", "b.c", "a", ""]


@pytest.fixture
def traced():
    """Return a graph with an input, a layer and its weight, an operator in a module, and a module that is made."""
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("fc.weight")
    result = graph.call_function(F.linear, (x, weight, None))
    kept = graph.call_module("norm", (result,))
    added, dropped = graph.call_function(torch.add, (kept, x)), graph.call_function(F.dropout, (kept, 0.5, True))
    graph.output((added, dropped))
    scopes = {x: "", weight: "fc", result: "fc", kept: "norm", added: "body.0", dropped: "body.0"}
    found = Traced(graph, scopes, {result: "fc"}, set(), {})
    found.call_made(dropped, FollowsMode(F.dropout, (2,), ()))
    return found


def test_a_graph_is_placed_under_a_path(traced):
    owner = nn.Module()
    owner.m = nn.Module()
    graph, taken = fx.Graph(), dict[str, int]()
    for _ in range(2):
        place(traced, "m", graph, owner, taken)
    once = ["m_x", "m_fc_weight", "m_fc", "m_norm", "m_body_0_add", "m_body_0_dropout", "m_output"]
    assert [node.name for node in graph.nodes] == [*once, *(f"{name}_1" for name in once)]
    nodes = list(graph.nodes)
    assert [node.target for node in nodes[:5]] == ["x", "m.fc.weight", F.linear, "m.norm", torch.add]
    assert nodes[2].args == (nodes[0], nodes[1], None)
    assert nodes[6].args == ((nodes[4], nodes[5]),)
    for node in nodes[5], nodes[12]:
        assert owner.get_submodule(node.target).function is F.dropout
    assert nodes[12].args == (nodes[10], 0.5, True)


def test_the_modules_that_nodes_call(traced):
    model = nn.Module()
    model.norm = nn.BatchNorm1d(2)
    x, _, _, kept, _, dropped, _ = traced.graph.nodes
    assert traced.module_of(model, x) is None
    assert traced.module_of(model, kept) is model.norm
    assert isinstance(traced.module_of(model, dropped), FollowsMode)
