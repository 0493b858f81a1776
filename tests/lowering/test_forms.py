"""Which quantizers are lowered: all codes of uniform ones; every other form is refused with the layer's name."""

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import LoweringError
from fxcompress.lowering import export_onnx, lower
from fxcompress.nn import CodebookQuantizer

ACCEPTED = "uniform quantizers of 2 to 8 bits with fixed ranges, per tensor or per channel"


def compressed(**rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x = torch.randn(16, 8)
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}]}
    return fxcompress.transform(model, policy, data=[x]), x


REFUSED = [
    ("weight", {"bits": 16}, "int16, per channel"),
    ("weight", {"bits": 4, "per": "group", "group_size": 4}, "int4, per group of 4"),
    ("weight", {"bits": "binary"}, "binary, per channel"),
    ("weight", {"bits": "ternary"}, "ternary, per channel"),
    ("weight", {"bits": "e4m3"}, "float8_e4m3, per channel"),
    ("weight", {"bits": 4, "codebook": "apot"}, "apot4, per channel"),
    ("weight", {"bits": 4, "codebook": "kmeans"}, "kmeans4, per tensor"),
    ("input", {"bits": 16}, "uint16, per tensor"),
    ("input", {"bits": "e5m2"}, "float8_e5m2, per tensor"),
    ("input", {"bits": 8, "dynamic": True}, "uint8, dynamic per tensor"),
    ("input", {"bits": 8, "dynamic": True, "per": "token"}, "uint8, dynamic per token"),
]


@pytest.mark.parametrize(("part", "spec", "form"), REFUSED)
def test_other_forms_are_refused(part, spec, form, tmp_path):
    gm, x = compressed(select={"names": ["2"]}, **{part: spec})
    said = f"the {part} of '2' is Quantizer({form}), which cannot be lowered; what can are {ACCEPTED}"
    for write in (lower, export_onnx):
        with pytest.raises(LoweringError) as caught:
            write(gm, tmp_path / "model.onnx", x)
        assert str(caught.value) == said
    assert not list(tmp_path.iterdir())


def test_outside_of_a_layer_the_module_is_named(tmp_path):
    quantizer = CodebookQuantizer("ternary")
    quantizer.fit(torch.randn(4))
    said = r"module '0' is Quantizer\(ternary, per tensor\), which cannot be lowered"
    with pytest.raises(LoweringError, match=said):
        lower(nn.Sequential(quantizer), tmp_path / "model.onnx", torch.randn(4))


def test_a_disabled_one_does_not_matter(tmp_path):
    gm, x = compressed(weight={"bits": "ternary"})
    for module in gm.modules():
        if isinstance(module, CodebookQuantizer):
            module.enabled = False
    assert lower(gm, tmp_path / "model.onnx", x).largest_difference < 1e-5


@pytest.mark.parametrize(("bits", "symmetric", "narrow"), [(2, True, False), (8, True, False), (3, False, True)])
def test_narrow_and_full_ranges(bits, symmetric, narrow, tmp_path):
    spec = {"bits": bits, "symmetric": symmetric, "narrow": narrow}
    gm, x = compressed(weight=spec, input=spec)
    with torch.no_grad():
        gm.get_parameter("0.weight").mul_(4)  # past the range, to the first and the last code
    lowered = lower(gm, tmp_path / "model.onnx", torch.cat([x, 3 * x]))
    assert lowered.largest_difference < 1e-5
