"""Where a graph is cut into parts: residual blocks whole, chains layer by layer, long skips passing by."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress import transform
from fxcompress.graph.regions import regions
from fxcompress.tune.parts import parts
from fxcompress.tune.weights import quantized_weights

W8A8 = {
    "version": 1,
    "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": 8}, "input": {"bits": 8}}]}],
}


def cut(model, *shape, capture=None):
    """Return the layers of each part, and the names of what it gives, region by region."""
    x = torch.randn(2, *shape)
    gm = transform(model.eval(), W8A8, data=[x], example_inputs=x, capture=capture)
    found = quantized_weights(gm)
    layers = frozenset(call for one in found for call in one.calls)
    names = {call: one.layer.name for one in found for call in one.calls}
    listed = [part for region in regions(gm) for part in parts(gm, region, layers)]
    return [
        ([names[node] for node in part.nodes if node in names], [node.name for node in part.gives]) for part in listed
    ]


class Residual(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.b(F.relu(self.a(x))))


class UNet(nn.Module):
    """A skip that comes back after ten layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.inner = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(10)))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.first(x)
        return self.last(torch.cat([skip, self.inner(skip)], 1))


class Masked(nn.Module):
    """A mask that is made first and read in each block."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(16))

    def forward(self, x):
        mask = (x > 0).float()
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + second(F.relu(first(x)) * mask)
        return x


def test_a_chain_is_cut_behind_each_layer_and_what_follows_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert cut(model, 4) == [(["0"], ["_1"]), (["2"], ["_3"]), (["4"], ["_4"])]


def test_a_residual_block_is_one_part():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Residual(), Residual())
    assert [layers for layers, _ in cut(model, 4, 5, 5)] == [["0"], ["1.a", "1.b"], ["2.a", "2.b"]]


def test_a_long_skip_passes_by():
    found = cut(UNet(), 4, 5, 5)
    assert [layers for layers, _ in found] == [["first"], *([f"inner.{i}"] for i in range(10)), ["last"]]
    assert all("first" in gives for _, gives in found[:-2])  # held for the last part
    assert found[-1][1] == ["last"]


def test_what_every_block_reads_does_not_join_them():
    found = cut(Masked(), 4)
    assert [len(layers) for layers, _ in found[:7]] == [2] * 7


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_every_layer_is_in_one_part_however_it_was_captured(way):
    layers = [name for found, _ in cut(nn.Sequential(Residual(), Residual()), 4, 5, 5, capture=way) for name in found]
    assert layers == ["0.a", "0.b", "1.a", "1.b"]


def test_a_layer_that_is_called_twice_is_in_both_parts():
    layer = nn.Linear(4, 4)
    found = cut(nn.Sequential(layer, nn.ReLU(), layer), 4)
    assert [layers for layers, _ in found] == [["0"], ["0"]]
