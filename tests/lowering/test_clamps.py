"""Tests of clamps before a quantizer: clamping the codes gives what clamping the values gave."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture
from fxcompress.graph.edit import insert
from fxcompress.lowering.clamps import absorb_clamp
from fxcompress.nn import UniformQuantizer


class Clamped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x * 1.0)


def _absorbed(function, quantizer):
    gm = capture(Clamped(function))
    clamp = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    call = insert(gm, clamp, "q", quantizer, list(clamp.users))
    return clamp, call, absorb_clamp(call, quantizer)


@pytest.mark.parametrize(
    "function",
    [F.relu, F.relu6, lambda x: F.hardtanh(x, -0.3, 0.7), lambda x: torch.clamp(x, max=0.5), lambda x: x.clamp(-0.2)],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_clamp_on_codes(function, symmetric):
    quantizer = UniformQuantizer(5, symmetric=symmetric)
    quantizer.set_range(torch.tensor(-1.3), torch.tensor(1.9))
    clamp, call, (low, high) = _absorbed(function, quantizer)
    x = torch.linspace(-3, 3, 1001)
    assert call.args[0] is clamp.args[0]
    assert torch.equal(quantizer.codes(x).clamp(low, high), quantizer.codes(function(x)))


@pytest.mark.parametrize("function", [torch.tanh, lambda x: torch.clamp(x, torch.tensor(0.0))])
def test_other_operators_stay(function):
    quantizer = UniformQuantizer(4, symmetric=True)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    before, call, codes = _absorbed(function, quantizer)
    assert call.args[0] is before
    assert codes == (-7, 7)


def test_a_clamp_that_others_read_stays():
    quantizer = UniformQuantizer(8, symmetric=False)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
    gm = capture(nn.Sequential(nn.ReLU(), nn.Tanh()))
    relu, tanh = (node for node in gm.graph.nodes if node.op == "call_function")
    call = insert(gm, relu, "q", quantizer, [tanh])
    with gm.graph.inserting_after(call):
        gm.graph.call_function(torch.add, (relu, call))
    assert absorb_clamp(call, quantizer) == (0, 255)
    assert call.args[0] is relu
