"""The forms that the words of a rule ask for: which quantizers, and which options where fields are open."""

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.nn import Choice, Quantizer
from fxcompress.policies import Quantize, Supernet


def quantize(*rules):
    return Quantize(rules=rules)


def quantizers(gm):
    return {name: str(module) for name, module in gm.named_modules() if isinstance(module, Quantizer)}


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2, bias=False))


FORMS = [
    ({"bits": 16}, "int16, per channel"),
    ({"bits": 8, "narrow": False}, "int8, per channel, full range"),
    ({"bits": 4, "per": "group", "group_size": 4}, "int4, per group of 4"),
    ({"bits": "binary"}, "binary, per channel"),
    ({"bits": "ternary", "per": "tensor"}, "ternary, per tensor"),
    ({"bits": "ternary", "per": "group"}, "ternary, per group of 128"),
    ({"bits": "e4m3"}, "float8_e4m3, per channel"),
    ({"bits": 4, "allocate": True, "narrow": False}, "int4 on average, per channel, full range"),
    ({"bits": 16, "allocate": False}, "int16, per channel"),
    ({"bits": 3, "codebook": "apot", "per": "tensor"}, "apot3, per tensor"),
    ({"bits": 4, "codebook": "kmeans"}, "kmeans4, per tensor"),
]


@pytest.mark.parametrize(("weight", "said"), FORMS)
def test_forms_of_weights(weight, said, do):
    gm = do(capture(net()), quantize({"weight": weight}))
    names = ("0.weight_quantizer", "2.weight_quantizer")
    assert quantizers(gm) == dict.fromkeys(names, f"Quantizer({said})")
    calibrate(gm, None)
    x, model = torch.randn(3, 1, 3, 3), net()
    model.load_state_dict({name: gm.get_parameter(name) for name in model.state_dict()})
    with torch.no_grad():
        for layer, name in zip((model[0], model[2]), names, strict=True):
            layer.weight.copy_(gm.get_submodule(name)(layer.weight))
    torch.testing.assert_close(gm(x), model(x))


@pytest.mark.parametrize(
    ("input", "said"),
    [
        ({"bits": 16, "symmetric": True}, "int16, per tensor"),
        ({"bits": 4, "narrow": True}, "uint4, per tensor, narrow range"),
        ({"bits": "e5m2"}, "float8_e5m2, per tensor"),
        ({"bits": 8, "dynamic": True}, "uint8, dynamic per tensor"),
        ({"bits": 4, "dynamic": True, "per": "token", "symmetric": True}, "int4, dynamic per token"),
    ],
)
def test_forms_of_inputs(input, said, do):
    gm = do(capture(nn.Sequential(nn.Linear(5, 2))), quantize({"input": input}))
    assert quantizers(gm) == {"input_1_quantizer": f"Quantizer({said})"}
    x = torch.randn(4, 5)
    calibrate(gm, None if input.get("dynamic") else [x])
    expected = nn.functional.linear(gm.get_submodule("input_1_quantizer")(x), *gm.parameters())
    torch.testing.assert_close(gm(x), expected)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Embedding(6, 5)])
def test_groups_of_every_kind(layer, do):
    gm = do(capture(nn.Sequential(layer)), quantize({"weight": {"bits": 4, "per": "group", "group_size": 4}}))
    calibrate(gm, None)
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    rows = layer.weight.detach().movedim(axis, 0).flatten(1)
    parts = [part.numpy() for part in rows.split(4, 1)]
    scales = [(np.abs(part).max(1, keepdims=True).astype(np.float64) / 7).astype(np.float32) for part in parts]
    expected = [np.rint(part / scale) * scale for part, scale in zip(parts, scales, strict=True)]
    found = gm.get_submodule("0.weight_quantizer")(layer.weight).movedim(axis, 0).flatten(1)
    assert np.array_equal(found.detach().numpy(), np.concatenate(expected, 1))


def test_open_bits_and_group_sizes_are_a_product(do):
    weight = {"bits": ("ternary", 4, "float"), "per": "group", "group_size": (2, 4)}
    gm = do(capture(nn.Sequential(nn.Linear(8, 2))), quantize({"weight": weight}))
    choice = gm.get_submodule("0.weight_quantizer_choice")
    assert choice.settings == {
        "ternary g2": {"weight.bits": "ternary", "weight.group_size": 2},
        "ternary g4": {"weight.bits": "ternary", "weight.group_size": 4},
        "int4 g2": {"weight.bits": 4, "weight.group_size": 2},
        "int4 g4": {"weight.bits": 4, "weight.group_size": 4},
        "float": {"weight.bits": "float"},
    }
    assert str(choice) == "Choice(ternary g2 | ternary g4 | int4 g2 | int4 g4 | float)"
    assert str(choice.options["int4 g4"]) == "Quantizer(int4, per group of 4)"


def test_open_group_sizes_alone(do):
    weight = {"bits": 4, "per": "group", "group_size": (2, 4)}
    gm = do(capture(nn.Sequential(nn.Linear(8, 2))), quantize({"weight": weight}))
    settings = gm.get_submodule("0.weight_quantizer_choice").settings
    assert settings == {"int4 g2": {"weight.group_size": 2}, "int4 g4": {"weight.group_size": 4}}


def test_groups_left_open_where_there_are_none(do):
    for bits, codebook in (("float", None), (4, "kmeans")):
        rules = [
            {"weight": {"bits": 4, "per": "group", "group_size": (2, 4)}},
            {"select": {"names": ["0"]}, "weight": {"bits": bits, "codebook": codebook}},
        ]
        gm = do(capture(nn.Sequential(nn.Linear(8, 2))), quantize(*rules))
        assert not any(isinstance(module, Choice) for module in gm.modules())


def test_labels_of_open_words(do):
    rule = {"weight": {"bits": ("binary", 4, 16, "e4m3"), "symmetric": False}, "input": {"bits": (8, 16, "e5m2")}}
    gm = do(capture(nn.Sequential(nn.Linear(4, 2))), quantize(rule))
    assert gm.get_submodule("0.weight_quantizer_choice").labels == ("binary", "uint4", "uint16", "float8_e4m3")
    assert gm.get_submodule("input_1_quantizer_choice").labels == ("uint8", "uint16", "float8_e5m2")


def test_a_smaller_kernel_has_fewer_groups(do):
    gm = do(
        capture(nn.Sequential(nn.Conv2d(2, 2, 5, padding=2))),
        Supernet(rules=[{"kernel_size": 3}]),
        quantize({"weight": {"bits": 4, "per": "group", "group_size": 4}}),
    )
    calibrate(gm, None)
    assert gm.get_submodule("0.weight_quantizer").scale.shape == (2, 5)  # 18 weights, 4 to a group
    assert gm(torch.randn(1, 2, 6, 6)).isfinite().all()
