"""Layers: which operators they are, under which names, tied to what, called how often."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture, layers
from fxcompress.graph.edit import insert
from fxcompress.nn import Mask, UniformQuantizer


def rows(gm):
    return [(layer.name, layer.kind, len(layer.calls), layer.tied) for layer in layers(gm)]


def test_names_and_edges(model):
    def forward(self, x):
        y = self.block.conv(x)
        z = (y + y).flatten(1)
        return self.fc(z + z)

    block = nn.Module()
    block.conv = nn.Conv2d(3, 2, 1, bias=False)
    gm = capture(model(forward, block=block, fc=nn.Linear(8, 2)), torch.randn(2, 3, 2, 2))
    conv, first, second, fc = layers(gm)
    assert [layer.name for layer in (conv, first, second, fc)] == ["block.conv", "add", "add_1", "fc"]
    assert (conv.weight, conv.bias, conv.owner, conv.tied) == ("block.conv.weight", None, "block.conv.weight", False)
    assert (first.weight, first.weight_edges(), first.bias_edges()) == (None, [], [])
    assert [str(node) for node in fc.input_edges()] == ["add_1"]
    assert [str(node) for node in fc.weight_edges() + fc.bias_edges()] == ["fc_weight", "fc_bias"]
    assert fc.bias == "fc.bias"
    assert fc.weight_tensor(gm) is gm.fc.weight


def test_what_is_computed_on_sizes_is_no_layer(model):
    def forward(self, x):
        n = x.shape[0] + 1
        n += x.size(1)
        return x.new_zeros(n + len((1, 2))), x.shape[:1] + x.shape[1:], x + n, n + x, x + 1, x + x

    assert rows(capture(model(forward), torch.ones(2, 3))) == [("add_7", "add", 1, False)]


def test_spellings_of_an_addition(model):
    def forward(self, x):
        y = torch.add(x, other=x) + x.add(x) + (1 + x)
        y += x
        return y.add_(x) + torch.add(x, x, alpha=2)

    gm = capture(model(forward), torch.randn(3), way="symbolic")
    assert len(layers(gm)) == 7  # all but the one with alpha and the one with a number


def test_a_layer_called_twice_is_one(model):
    gm = capture(model(lambda self, x: self.fc(F.relu(self.fc(x))), fc=nn.Linear(2, 2)), torch.ones(1, 2))
    (layer,) = layers(gm)
    assert rows(gm) == [("fc", "linear", 2, False)]
    assert len(layer.weight_edges()) == 1
    assert len(layer.input_edges()) == 2


def test_ties_are_found_by_storage(model):
    net = model(lambda self, x: self.head(self.embed(x)), embed=nn.Embedding(5, 3), head=nn.Linear(3, 5, bias=False))
    net.head.weight = net.embed.weight
    embed, head = layers(capture(net, torch.tensor([1])))
    assert (embed.owner, embed.tied) == ("embed.weight", False)
    assert (head.weight, head.owner, head.tied) == ("head.weight", "embed.weight", True)


def test_a_tie_to_something_unused_is_none(model):
    net = model(lambda self, x: self.fc(x), unused=nn.Linear(2, 2), fc=nn.Linear(2, 2))
    net.fc.weight = net.alias = net.unused.weight
    (layer,) = layers(capture(net, torch.ones(1, 2)))
    assert (layer.name, layer.weight, layer.owner, layer.tied) == ("fc", "fc.weight", "alias", False)


def test_one_weight_in_two_kinds_of_operator(model):
    def forward(self, x):
        y = F.linear(self.e(x), self.e.weight)
        return F.linear(y @ self.e.weight, self.e.weight)

    gm = capture(model(forward, e=nn.Embedding(5, 3)), torch.tensor([1]))
    assert rows(gm) == [("e", "embedding", 1, False), ("linear", "linear", 2, True)]


def test_a_parameter_of_the_model_itself(model):
    gm = capture(model(lambda self, x: F.linear(x, self.w), w=nn.Parameter(torch.ones(2, 2))), torch.ones(1, 2))
    assert rows(gm) == [("w", "linear", 1, False)]


def test_a_computed_weight_is_not_a_parameter(model):
    gm = capture(model(lambda self, x: F.linear(x, self.w * 2), w=nn.Parameter(torch.ones(2, 2))), torch.ones(1, 2))
    assert [(layer.name, layer.weight) for layer in layers(gm)] == [("linear", None)]


def test_names_never_fall_together(model):
    def forward(self, x):
        y = x + x
        y = y + x  # the node add_1
        return self.add_1(self.fc(y))

    net = model(forward, add_1=nn.Linear(2, 2), fc=nn.Linear(2, 2))
    net.fc.register_forward_hook(lambda module, args, output: output + output)  # the node fc
    names = [layer.name for layer in layers(capture(net, torch.ones(1, 2)))]
    assert names == ["add", "add_1.add", "fc", "fc.add", "add_1"]


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_module_under_two_names(model, shared):
    first = nn.Linear(2, 2)
    second = first if shared else nn.Linear(2, 2)
    gm = capture(model(lambda self, x: self.b(self.a(x)), a=first, b=second), torch.ones(1, 2))
    assert rows(gm) == (
        [("a", "linear", 2, False)] if shared else [("a", "linear", 1, False), ("b", "linear", 1, False)]
    )


def test_a_layer_is_found_through_what_stands_on_its_weight(model):
    gm = capture(model(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(2, 2)))
    weight = next(node for node in gm.graph.nodes if node.target == "fc.weight")
    mask = insert(gm, weight, "fc.weight_mask", Mask(torch.ones(2, 2)), list(weight.users))
    quantizer = insert(gm, mask, "fc.weight_quantizer", UniformQuantizer(4, symmetric=True), list(mask.users))
    (layer,) = layers(gm)
    assert (layer.name, layer.weight, layer.owner) == ("fc", "fc.weight", "fc.weight")
    assert layer.weight_edges() == [quantizer]
    assert layer.weight_tensor(gm) is gm.fc.weight


def test_a_layer_as_the_model():
    assert rows(capture(nn.Linear(2, 2))) == [("weight", "linear", 1, False)]
