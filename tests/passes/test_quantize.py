"""quantize: as text, and against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.graph import capture, verify
from fxcompress.measure.calibrate import calibrate
from fxcompress.nn import Choice, Quantizer
from fxcompress.policies import Quantize

ALL = {"select": {"ops": ["*"]}}


def quantize(*rules, **kwargs):
    return Quantize(rules=rules, **kwargs)


def quantizers(gm):
    return {name: str(module) for name, module in gm.named_modules() if isinstance(module, Quantizer)}


def net():
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 2, 3))
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(2, 2, bias=False))
    return model


def test_weights_and_inputs_as_text(do, reads):
    gm = capture(net())
    reads(
        gm,
        """
        input_1: input
        conv = conv2d(input_1, conv.weight, conv.bias, (1, 1), (0, 0), (1, 1), 1)
        flat = flatten(conv, 1, -1)
        fc = linear(flat, fc.weight, None)
        return fc
        """,
    )
    per_tensor = {"select": {"names": ["fc"]}, "weight": {"bits": 3, "per": "tensor", "symmetric": False}}
    reads(
        do(gm, quantize({"weight": {"bits": 4}, "input": {"bits": 8}}, per_tensor)),
        """
        input_1: input
        input_1_quantizer = Quantizer(uint8, per tensor)(input_1)
        conv_weight = conv.weight
        conv_weight_quantizer = Quantizer(int4, per channel)(conv_weight)
        conv = conv2d(input_1_quantizer, conv_weight_quantizer, conv.bias, (1, 1), (0, 0), (1, 1), 1)
        flat = flatten(conv, 1, -1)
        flat_quantizer = Quantizer(uint8, per tensor)(flat)
        fc_weight = fc.weight
        fc_weight_quantizer = Quantizer(uint3, per tensor)(fc_weight)
        fc = linear(flat_quantizer, fc_weight_quantizer, None)
        return fc
        """,
    )


def test_a_sequential_does_not_call_its_quantizers(do):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() < 1e9 else -x

    model, x = nn.Sequential(nn.Linear(3, 3), Branches(), nn.Linear(3, 3)), torch.randn(5, 3)
    gm = do(capture(model, x, way="islands"), quantize({"weight": {"bits": 4}, "input": {"bits": 2}}))
    calibrate(gm, [x])
    whole = do(capture(nn.Sequential(model[0], model[2])), quantize({"weight": {"bits": 4}, "input": {"bits": 2}}))
    calibrate(whole, [x])
    torch.testing.assert_close(gm(x), whole(x), rtol=0, atol=0)


def rounded(x, bits, symmetric, axis=None):
    """Quantize and dequantize in numpy, with the range of what is there."""
    x = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) if axis is not None else x.reshape(1, -1)
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    if symmetric:
        top, zero = 2 ** (bits - 1) - 1, 0
        scale = (np.maximum(-low, high).astype(np.float64) / top).astype(np.float32)
        return np.clip(np.rint(x / scale), -top, top) * scale
    top = 2**bits - 1
    wide = (high.astype(np.float64) - low) / top
    scale, zero = wide.astype(np.float32), np.rint(-low / wide).astype(np.float32)
    return (np.clip(np.rint(x / scale) + zero, 0, top) - zero) * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_numerically(bits, symmetric, per, do):
    layer, x = nn.Linear(5, 4, bias=False), torch.randn(7, 5)
    rule = {
        "weight": {"bits": bits, "symmetric": symmetric, "per": per},
        "input": {"bits": 6, "symmetric": symmetric},
    }
    gm = do(capture(nn.Sequential(layer)), quantize(rule))
    calibrate(gm, [x])
    weight = rounded(layer.weight.detach().numpy(), bits, symmetric, 0 if per == "channel" else None).reshape(4, 5)
    expected = rounded(x.numpy(), 6, symmetric).reshape(7, 5).astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(gm(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Conv1d(4, 6, 3), (4, 5), 0),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 0),
        (nn.ConvTranspose2d(4, 6, 3), (4, 5, 5), 1),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 5), 1),
        (nn.Linear(4, 6), (4,), 0),
        (nn.Embedding(4, 6), None, 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_channels_of_every_kind(layer, shape, axis, do):
    x = torch.tensor([[0, 3]]) if shape is None else torch.randn(2, *shape)
    gm = do(capture(nn.Sequential(layer)), quantize({"weight": {"bits": 4}}))
    calibrate(gm, None)
    quantizer = gm.get_submodule("0.weight_quantizer")
    assert (quantizer.axis, quantizer.scale.numel()) == (axis, layer.weight.shape[axis])
    with torch.no_grad():
        expected = rounded(layer.weight.numpy(), 4, True, axis)
        moved = layer.weight.movedim(axis, 0)
        layer.weight.copy_(torch.from_numpy(expected).view(moved.shape).movedim(0, axis))
    torch.testing.assert_close(gm(x), layer(x))


def test_a_shared_input_has_one_quantizer(do, reads, residual):
    adds = {"select": {"ops": ["add"]}, "input": {"bits": 6}}
    reads(
        do(capture(residual), quantize({"input": {"bits": 8}}, adds)),
        """
        x: input
        x_quantizer = Quantizer(uint8, per tensor)(x)
        a = linear(x_quantizer, a.weight, None)
        a_quantizer = Quantizer(uint6, per tensor)(a)
        b = linear(x_quantizer, b.weight, None)
        b_quantizer = Quantizer(uint6, per tensor)(b)
        add = add(a_quantizer, b_quantizer)
        return add
        """,
    )


def test_only_the_layers_that_rules_name_see_the_quantizer(do, reads, residual):
    reads(
        do(capture(residual), quantize({"select": {"names": ["b"]}, "input": {"bits": 8}})),
        """
        x: input
        x_quantizer = Quantizer(uint8, per tensor)(x)
        a = linear(x, a.weight, None)
        b = linear(x_quantizer, b.weight, None)
        add = add(a, b)
        return add
        """,
    )


def test_an_operator_with_one_tensor_twice(do, reads):
    class Double(nn.Module):
        def forward(self, x):
            return x + x

    reads(
        do(capture(Double()), quantize(ALL | {"input": {"bits": 8}})),
        """
        x: input
        x_quantizer = Quantizer(uint8, per tensor)(x)
        add = add(x_quantizer, x_quantizer)
        return add
        """,
    )


def test_a_tied_weight_has_one_quantizer(do, reads, tied):
    gm = do(capture(tied), quantize({"weight": {"bits": 4}}))
    reads(
        gm,
        """
        x: input
        a_weight = a.weight
        a_weight_quantizer = Quantizer(int4, per channel)(a_weight)
        a = linear(x, a_weight_quantizer, None)
        a_1 = linear(a, a_weight_quantizer, None)
        b_weight = b.weight
        a_weight_quantizer_1 = Quantizer(int4, per channel)(b_weight)
        b = linear(a_1, a_weight_quantizer_1, None)
        return b
        """,
    )
    assert list(quantizers(gm)) == ["a.weight_quantizer"]


def test_open_bits_become_a_choice(do, reads, residual):
    gm = do(capture(residual), quantize({"weight": {"bits": (4, "float")}, "input": {"bits": (4, 8)}}))
    reads(
        gm,
        """
        x: input
        x_quantizer_choice = Choice(uint4 | uint8)(x)
        a_weight = a.weight
        a_weight_quantizer_choice = Choice(int4 | float)(a_weight)
        a = linear(x_quantizer_choice, a_weight_quantizer_choice, None)
        b_weight = b.weight
        b_weight_quantizer_choice = Choice(int4 | float)(b_weight)
        b = linear(x_quantizer_choice, b_weight_quantizer_choice, None)
        add = add(a, b)
        return add
        """,
    )
    choice = gm.get_submodule("a.weight_quantizer_choice")
    assert isinstance(choice, Choice)
    assert choice.settings == {"int4": {"weight.bits": 4}, "float": {"weight.bits": "float"}}
    assert gm.get_submodule("x_quantizer_choice").settings["uint8"] == {"input.bits": 8}


def test_float_leaves_the_edge(do):
    gm = do(capture(net()), quantize({"weight": {"bits": "float"}, "input": {"bits": "float"}}))
    assert not quantizers(gm)


def test_known_ranges_need_no_calibration(do):
    gm = do(capture(net()), quantize({"input": {"bits": 8}}, ranges={"input_1": (-1.0, 4.1), "flat": (0.0, 5.1)}))
    first, second = gm.get_submodule("input_1_quantizer"), gm.get_submodule("flat_quantizer")
    assert (first.scale.item(), first.zero_point.item()) == (pytest.approx(0.02), 50)
    assert (second.scale.item(), second.zero_point.item()) == (pytest.approx(0.02), 0)


def test_a_parameter_that_flows_in_is_no_activation(do, reads):
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x + self.offset

    gm = do(capture(Offset()), quantize(ALL | {"input": {"bits": 8}}))
    verify(gm)
    reads(
        gm,
        """
        x: input
        x_quantizer = Quantizer(uint8, per tensor)(x)
        add = add(x_quantizer, offset)
        return add
        """,
    )
