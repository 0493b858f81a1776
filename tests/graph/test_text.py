"""The text of a graph: every kind of line."""

import torch
from torch import nn

from fxcompress.graph import capture
from fxcompress.graph.edit import insert
from fxcompress.nn import Choice, UniformQuantizer


class Net(nn.Module):
    """Every kind of line."""

    def __init__(self):
        super().__init__()
        self.rnn, self.bn, self.shift = nn.GRU(2, 2), nn.BatchNorm1d(2), nn.Parameter(torch.zeros(2))
        self.parts = nn.utils.parametrize.register_parametrization(nn.Linear(2, 2), "weight", nn.Identity())

    def forward(self, x, scale=0.5, *, text="a"):
        y, state = self.rnn(x)
        y = torch.cat((self.bn(y), y[:, 0:1]), dim=-1).sum(dim=[1]) * scale
        return {"y": (y,), "z": [state, None, self.shift], "w": self.parts(x)}


def test_every_kind_of_line(reads):
    reads(
        capture(Net()),
        """
        x: input
        scale: input = 0.5
        text: input = 'a'
        expect = expect(text, 'a', 'text')
        rnn = GRU(2, 2)(x)
        getitem = getitem(rnn, 0)
        getitem_1 = getitem(rnn, 1)
        bn = BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)(getitem)
        getitem_2 = getitem(getitem, (slice(None, None, None), slice(0, 1, None)))
        cat = cat((bn, getitem_2), -1)
        sum_1 = sum(cat, (1,), False)
        mul = mul(sum_1, scale)
        parts_parametrizations_weight = ParametrizationList(...)()
        parts = linear(x, parts_parametrizations_weight, parts.bias)
        return {'y': (mul,), 'z': [getitem_1, None, shift], 'w': parts}
        """,
    )


def test_inserted_modules(reads):
    gm = capture(nn.Sequential(nn.Linear(2, 2)))
    nodes = {node.name: node for node in gm.graph.nodes}
    bits = {f"int{bits}": UniformQuantizer(bits, symmetric=True, axis=0, channels=2) for bits in (4, 8)}
    insert(gm, nodes["_0_weight"], "0.weight_choice", Choice(bits, {"int4": {}, "int8": {}}), [nodes["_0"]])
    insert(gm, nodes["input_1"], "input_1_quantizer", UniformQuantizer(8, symmetric=False), [nodes["_0"]])
    reads(
        gm,
        """
        input_1: input
        input_1_quantizer = Quantizer(uint8, per tensor)(input_1)
        _0_weight = 0.weight
        _0_weight_choice = Choice(int4 | int8)(_0_weight)
        _0 = linear(input_1_quantizer, _0_weight_choice, 0.bias)
        return _0
        """,
    )
