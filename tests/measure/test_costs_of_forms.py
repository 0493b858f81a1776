"""What quantizers other than the uniform ones of few bits cost, against numbers worked out by hand."""

import json

import pytest
import torch
from torch import nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import capture
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.measure.costs import bops, latency, rest_size, scales_size, size
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.options import survey
from fxcompress.passes import apply
from fxcompress.policies import Quantize


class Net(nn.Module):
    """A convolution, its norm, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).flatten(1))


def quantized(rule):
    gm = capture(Net())
    apply(Quantize(rules=(rule,)), gm)
    return gm


def prices(gm, cost, **args):
    """Return what each layer costs."""
    with float_mode(gm):
        known = shapes(gm, as_arguments(torch.zeros(1, 3, 8, 8)))
    return {name: cost(gm, one.layer, one.option({}), **args) for name, one in survey(gm, known).items()}


@pytest.mark.parametrize(
    ("weight", "bytes_"),
    [
        ({"bits": 16}, 432 + 8 * 4),
        ({"bits": 16, "symmetric": False}, 432 + 8 * (4 + 2)),
        ({"bits": 4, "per": "group", "group_size": 10}, 108 + 8 * 3 * 4),  # 27 weights for each of 8 channels
        ({"bits": 4, "per": "group", "group_size": 10, "symmetric": False}, 108 + 8 * 3 * (4 + 1)),
        ({"bits": "binary"}, 27 + 8 * 4),
        ({"bits": "ternary", "per": "tensor"}, 54 + 4),
        ({"bits": "e4m3"}, 216 + 8 * 4),
        ({"bits": 4, "codebook": "apot"}, 108 + 8 * 4 + 15 * 4),
        ({"bits": 3, "codebook": "kmeans"}, 81 + 8 * 4),  # eight centroids
    ],
)
def test_size_of_other_forms(weight, bytes_):
    rule = {"select": {"names": ["conv"]}, "weight": weight}
    assert prices(quantized(rule), size)["conv"] == bytes_


@pytest.mark.parametrize(
    ("weight", "input", "beside"),
    [
        ({"bits": 8}, {"bits": 8, "dynamic": True}, 0),  # ten biases stay float, and nothing of the input is stored
        ({"bits": 8}, {"bits": 16}, 2 * 6),
        ({"bits": 8}, {"bits": "e4m3"}, 2 * 4),
        ({"bits": 8, "per": "group", "group_size": 1280}, {"bits": 8}, 2 * 5),
    ],
)
def test_a_layer_that_does_not_run_in_integers_keeps_its_bias(weight, input, beside):
    gm = quantized({"weight": weight, "input": input})
    assert prices(gm, size) == {"conv": 216 + 8 * 4, "fc": 1280 + 10 * 4 + 10 * 4}
    assert rest_size(gm) == 128 + beside


def test_scales_of_an_open_input():
    gm = quantized({"input": {"bits": (8, 16, "e4m3", "float")}})
    for label, stored in (("uint8", 5), ("uint16", 6), ("float8_e4m3", 4), ("float", 0)):
        assert scales_size(gm, {"x_quantizer_choice": label}) == stored


@pytest.mark.parametrize(("bits", "width"), [("binary", 1), ("ternary", 2), ("e5m2", 8), (16, 16)])
def test_bops_of_words(bits, width):
    gm = quantized({"weight": {"bits": bits}, "input": {"bits": 8, "dynamic": True}})
    assert prices(gm, bops) == {"conv": 128 * 27 * width * 8, "fc": 1280 * width * 8}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"weight": {"bits": "e4m3"}}, r"the weight of 'conv' is Quantizer\(float8_e4m3, per channel\)"),
        ({"input": {"bits": 8, "dynamic": True}}, r"the input of 'conv' is Quantizer\(uint8, dynamic per tensor\)"),
    ],
)
def test_forms_that_tables_do_not_speak_of(rule, said, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"version": 1, "device": "desk", "engine": "by hand", "rows": []}))
    message = f"budget latency: {said}, and a table knows uniform quantizers of 2 to 8"
    with pytest.raises(NotReadyError, match=message):
        prices(quantized(rule), latency, table=str(table))
