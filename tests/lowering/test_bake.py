"""Tests of baking: the graph before and after, and weights that are computed once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture, text
from fxcompress.graph.edit import insert
from fxcompress.lowering.bake import bake
from fxcompress.lowering.export_modules import Bias, Weight
from fxcompress.nn import Quantizer, UniformQuantizer
from fxcompress.nn.functional import folded_weight


def _weights(gm):
    return {name: module for name, module in gm.named_modules() if isinstance(module, Weight)}


def _value(weight):
    """What the stored codes mean, in float64."""
    codes = weight.codes.numpy()
    if weight.packed:
        bits, numel = len(weight.places), math.prod(weight.shape)
        rows = np.unpackbits(codes)[: numel * bits].reshape(numel, bits).astype(np.int64)
        codes = rows @ [-64, 32, 16, 8, 4, 2, 1][:bits]
    shape = [1] * len(weight.shape)
    if weight.axis is not None:
        shape[weight.axis] = -1
    steps = torch.tensor(codes).view(weight.shape).double() - weight.zero_point.view(shape)
    return steps * weight.scale.double().view(shape)


def test_text(quantize):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False))
    gm = quantize(model, torch.randn(2, 3, 4, 4), weight=4)
    bake(gm)
    assert text(gm) == "\n".join(
        [
            "input_1: input",
            "input_1_quantizer_1 = Activation()(input_1, True)",
            "_0_weight_1 = Weight()(True)",
            "_0_bias_1 = Bias()(input_1_quantizer_1)",
            "_0 = conv2d(input_1_quantizer_1, _0_weight_1, _0_bias_1, (1, 1), (0, 0), (1, 1), 1)",
            "_1_quantizer_1 = Activation()(_0, True)",
            "_2 = flatten(_1_quantizer_1, 1, -1)",
            "_2_quantizer_1 = Activation()(_2, True)",
            "_3_weight_1 = Weight()(True)",
            "_3 = linear(_2_quantizer_1, _3_weight_1, None)",
            "_3_quantizer_1 = Activation()(_3, True)",
            "return _3_quantizer_1",
        ]
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("axis", [0, None])
def test_stored_codes_mean_what_the_quantizer_gives(bits, symmetric, axis):
    gm = capture(nn.Linear(7, 5, bias=False))
    edge = next(node for node in gm.graph.nodes if node.op == "get_attr")
    quantizer = UniformQuantizer(bits, symmetric=symmetric, axis=axis, channels=None if axis is None else 5)
    value = gm.weight.detach()
    quantizer.set_range(value.amin(1), value.amax(1)) if axis == 0 else quantizer.set_range(value.min(), value.max())
    insert(gm, edge, "weight_quantizer", quantizer, list(edge.users))
    bake(gm)
    (weight,) = _weights(gm).values()
    torch.testing.assert_close(_value(weight).float(), quantizer(value), rtol=0, atol=1e-7)


def test_tied_weights_are_stored_once(quantize):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    gm = quantize(Tied(), torch.tensor([[1, 2]]))
    bake(gm)
    assert list(_weights(gm)) == ["embedding_weight"]
    assert "embedding_weight_1 = Weight()(False)" in text(gm)  # no integer kernel looks up rows
    assert "embedding_weight_2 = Weight()(True)" in text(gm)


def test_one_weight_folded_in_two_ways_is_stored_twice():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))
            self.register_buffer("one", torch.rand(4) + 0.5)
            self.register_buffer("two", torch.rand(4) + 0.5)

        def forward(self, x):
            return F.conv2d(x, self.weight), F.conv2d(x, self.weight)

    model = Folded()
    gm = capture(model)
    quantizer = UniformQuantizer(6, symmetric=True)
    quantizer.set_range(torch.tensor(-2.0), torch.tensor(2.0))
    for call, name in zip(gm.graph.find_nodes(op="call_function", target=F.conv2d), ("one", "two"), strict=True):
        with gm.graph.inserting_before(call):
            variance = gm.graph.get_attr(name)
            chain = gm.graph.call_function(folded_weight, (call.args[1], None, variance, 1e-5))
        call.update_arg(1, chain)
        insert(gm, chain, "weight_quantizer", quantizer, [call])
    expected = [quantizer(folded_weight(model.weight, None, variance, 1e-5)) for variance in (model.one, model.two)]
    bake(gm)
    for weight, value in zip(_weights(gm).values(), expected, strict=True):
        torch.testing.assert_close(_value(weight).float(), value, rtol=0, atol=1e-6)


def test_disabled_quantizers_vanish(quantize):
    gm = quantize(nn.Linear(3, 2), torch.randn(2, 3))
    before = text(capture(nn.Linear(3, 2)))
    for module in gm.modules():
        if isinstance(module, Quantizer):
            module.enabled = False
    bake(gm)
    assert text(gm) == before


def test_a_float_layer_gets_floats(quantize):
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Linear(3, 2))
    gm = quantize(model, torch.randn(2, 3), skip=("2", "_1"))
    bake(gm)
    assert "_0_quantizer_1 = Activation()(_0, False)" in text(gm)
    assert "_2_quantizer_1 = Activation()(_2, True)" in text(gm)


@pytest.mark.parametrize(("last", "integer"), [("_1", True), ("_2", False)])
def test_a_convolution_with_a_float_result_is_one_in_floats(quantize, last, integer):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(), nn.Sigmoid())
    gm = quantize(model, torch.randn(2, 3, 4, 4), skip={"_1", "_2"} - {last})
    bake(gm)
    assert f"_0_weight_1 = Weight()({integer})" in text(gm)
    assert f"input_1_quantizer_1 = Activation()(input_1, {integer})" in text(gm)


def test_a_part_of_a_model_hands_out_floats(quantize):
    gm = quantize(nn.Linear(3, 3), torch.randn(2, 3))
    bake(gm, whole=False)
    assert "linear_quantizer_1 = Activation()(linear, False)" in text(gm)


@pytest.mark.parametrize("bits", [3, 8])
def test_bias_of_a_dead_channel_does_not_overflow(quantize, bits):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] *= 1e-9
        layer.weight[1] = 0
        layer.bias[:2] = 0.4
    gm = quantize(layer, torch.randn(2, 4), weight=bits)
    bake(gm)
    (bias,) = (module for module in gm.modules() if isinstance(module, Bias))
    assert bias.codes.abs().max() <= 2**30 + 64
    torch.testing.assert_close(bias.codes * bias.scale.double(), layer.bias.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(bias.codes[:2] * bias.scale[:2].double(), layer.bias[:2].double(), rtol=1e-6, atol=0)
    (weight,) = _weights(gm).values()
    assert _value(weight)[:2].abs().max() < 1e-8
