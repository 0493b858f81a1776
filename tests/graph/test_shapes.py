"""Shapes and multiply-accumulates, beside torch's own count."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.graph import capture, layers
from fxcompress.graph.edit import insert
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import macs, shapes
from fxcompress.nn import Choice


class Net(nn.Module):
    """Groups, stride, dilation, transposed convolutions, a layer called twice and linear layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, groups=4, dilation=2)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2, output_padding=1)
        self.twice = nn.Conv1d(4, 4, 3, padding="same")
        self.out = nn.ConvTranspose1d(4, 2, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.up(self.b(self.a(x)))
        z = self.out(self.twice(self.twice(x.flatten(2))))
        return self.fc(x.mean((2, 3))), z + 1, self.fc(x.transpose(1, 3))


def counted(gm, inputs):
    known = shapes(gm, as_arguments(inputs))
    return {layer.name: macs(gm, layer, known) for layer in layers(gm)}


@pytest.mark.parametrize("batch", [1, 3])
def test_beside_the_count_of_torch(batch):
    x = torch.ones(batch, 3, 16, 16)
    gm = capture(Net(), x)
    with FlopCounterMode(display=False) as counter:
        gm(x)
    assert sum(counted(gm, x).values()) * 2 == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Conv3d(2, 4, 3, stride=2, groups=2), (1, 2, 7, 7, 7), 4 * 27 * 27),  # outputs * kernel
        (nn.ConvTranspose3d(2, 4, 2, groups=2), (1, 2, 3, 3, 3), 2 * 27 * 2 * 8),  # inputs * outputs of each
        (nn.Linear(3, 5), (2, 4, 3), 8 * 15),
    ],
)
def test_counted_by_hand(model, shape, expected):
    assert counted(capture(nn.Sequential(model)), torch.ones(shape)) == {"0": expected}


def test_an_embedding_and_an_add_cost_nothing():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 2)

        def forward(self, x):
            y = self.embed(x)
            return y + y

    assert counted(capture(Looks()), torch.tensor([1])) == {"embed": 0, "add": 0}


def test_a_weight_that_is_cut_counts_as_it_is_used():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(x, self.fc.weight[:2])

    assert counted(capture(Half()), torch.ones(3, 4)) == {"linear": 3 * 2 * 4}


def test_shapes_by_node():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x, y=None, *, flag=True, z=2):
            a, b = torch.chunk(x, 2)[0], x.shape[0]
            return self.drop(a) * z + b

    gm = capture(Mixed().train(), {"x": torch.ones(4, 3)})
    for arguments in (torch.ones(4, 3), {"x": torch.ones(4, 3), "z": 5}):
        known = {node.name: shape for node, shape in shapes(gm, as_arguments(arguments)).items()}
        assert known.pop("x") == [(4, 3)]
        assert known == {name: [(2, 3)] for name in ("getitem", "drop", "mul", "add", "output")}
    assert gm.drop.training


def test_keyword_inputs():
    class Named(nn.Module):
        def forward(self, a, b=None, *, c):
            return a + b + c

    gm = capture(Named(), {"a": torch.ones(2), "b": torch.ones(3, 1), "c": torch.ones(2)})
    known = shapes(gm, as_arguments({"c": torch.ones(2), "a": torch.ones(2), "b": torch.ones(4, 1)}))
    assert {node.name: shape for node, shape in known.items()}["add_1"] == [(4, 2)]


def test_each_run_of_a_region_has_shapes():
    class Shrinks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.never = nn.Conv1d(1, 1, 3), nn.Linear(2, 2)

        def forward(self, x):
            while x.shape[-1] > 4:
                x = self.conv(x)
            return x if x.shape[-1] > 2 else self.never(x)

    gm = capture(Shrinks(), torch.ones(1, 1, 9), way="islands")
    x = torch.ones(1, 1, 7)
    known = {node.name: shape for node, shape in shapes(gm, as_arguments(x)).items()}
    assert known["conv_input"] == [(1, 1, 7), (1, 1, 5)]
    assert known["conv"] == [(1, 1, 5), (1, 1, 3)]
    assert known["conv_weight"] == [(1, 1, 3), (1, 1, 3)]
    assert counted(gm, x) == {"conv": (5 + 3) * 3}
    short = torch.ones(1, 1, 2)
    assert counted(gm, short) == {"conv": 0}


def test_state_and_gradients_are_left_alone():
    gm = capture(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train())
    shapes(gm, as_arguments(torch.randn(3, 2)))
    assert gm.get_submodule("1").num_batches_tracked == 0
    assert gm.training


def test_without_inputs_nothing_is_known():
    assert shapes(capture(Net()), None) is None


def test_the_weight_under_a_choice_counts_as_it_runs():
    gm = capture(nn.Sequential(nn.Linear(3, 2)))
    weight = next(node for node in gm.graph.nodes if node.target == "0.weight")
    options = {"a": nn.Identity(), "b": nn.Identity()}
    insert(gm, weight, "0.weight_choice", Choice(options, {"a": {}, "b": {}}), list(weight.users))
    gm.recompile()
    assert counted(gm, torch.ones(1, 3)) == {"0": 6}
