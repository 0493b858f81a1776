"""scalings: what makes a tensor takes a scale if linear layers alone read it, in one graph and over regions."""

import pytest
import torch
from torch import nn

from fxcompress.errors import PassError
from fxcompress.measure.calibrate import calibrate
from fxcompress.nn import Quantizer
from tests.tune.smoothing import W8A8, batches, in_float, quantized, seeded, smooth


class Written(nn.Module):
    """An RMS norm that is written out."""

    def __init__(self, weight_first):
        super().__init__()
        self.weight, self.weight_first = nn.Parameter(torch.ones(6)), weight_first

    def forward(self, x):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * x if self.weight_first else x * self.weight


class Gated(nn.Module):
    """A gate, which is not linear, times what can be scaled."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Addmm(nn.Module):
    """A layer that multiplies with its weight from the right, on a tensor of two axes."""

    def __init__(self, columns, rows):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(columns, rows)), nn.Parameter(torch.zeros(rows))
        self.rows = rows

    def forward(self, x):
        size = x.size()[:-1] + (self.rows,)  # noqa: RUF005 - a traced size is not unpacked
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


MODELS = {
    "layer norm": (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)), {"1"}),
    "layer norm without bias": (nn.Sequential(nn.LayerNorm(6, bias=False), nn.Linear(6, 4, bias=False)), {"1"}),
    "rms norm": (nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 4)), {"1"}),
    "weight first": (nn.Sequential(Written(True), nn.Linear(6, 4)), {"1"}),
    "weight last": (nn.Sequential(Written(False), nn.Linear(6, 4)), {"1"}),
    "layers": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)), {"2", "3"}),
    "addmm": (nn.Sequential(nn.LayerNorm(6), Addmm(6, 8), nn.LeakyReLU(), Addmm(8, 4)), {"1", "3"}),
    "gated": (nn.Sequential(Gated()), {"0.down"}),
}
CASES = [(name, "symbolic") for name in MODELS]
# what Python does between regions (the activations of "layers" and "addmm") is in the way of a scale
CASES += [(name, "islands") for name in MODELS if name not in ("layers", "addmm")]
CASES += [("rms norm", "export"), ("addmm", "export")]


@pytest.mark.filterwarnings("ignore:smooth_quant:UserWarning")
@pytest.mark.parametrize(("name", "way"), CASES)
def test_what_makes_the_input_takes_the_scales(name, way):
    model, expected = MODELS[name]
    gm = smooth(quantized(seeded(model), way=way), again=False)
    smoothed = set()
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear | Addmm):
            weight, axis = module.weight.detach(), int(isinstance(module, nn.Linear))
            factor = (gm.get_parameter(f"{layer}.weight").detach() / weight).movedim(axis, 0)
            smoothed |= {layer} if (factor.std(0) > 0.1).any() else set()
    assert smoothed == expected
    x = batches()[0]
    exact = model(x).detach()
    torch.testing.assert_close(in_float(gm, x), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())
    assert all(not gm.get_submodule(f"{layer}.weight_quantizer").ready for layer in expected)
    calibrate(gm, batches())
    assert all(module.ready for module in gm.modules() if isinstance(module, Quantizer))


@pytest.mark.filterwarnings("ignore:smooth_quant:UserWarning")
def test_layers_made_smaller_forget_their_ranges_too():
    gm = smooth(quantized(seeded(MODELS["layers"][0])), again=False)
    waiting = {name for name, module in gm.named_modules() if isinstance(module, Quantizer) and not module.ready}
    assert waiting == {
        "0.weight_quantizer",
        "2.weight_quantizer",
        "3.weight_quantizer",
        "_1_quantizer",
        "_2_quantizer",
    }


def twice(x, weight):
    return torch.addmm(x, x, weight)


READ = {
    "added": lambda self, x, y: x + y,
    "returned": lambda self, x, y: (x, y),
    "squared": lambda self, x, y: self.other(x * x) + y,
    "gated by itself": lambda self, x, y: self.other(torch.relu(x) * x) + y,
    "activated": lambda self, x, y: self.other(torch.nn.functional.gelu(x)) + y,
    "transposed": lambda self, x, y: self.other(x.transpose(1, 2).reshape(4, 5, 6)) + y,
    "called twice": lambda self, x, y: self.linear(y),
    "read as a bias, too": lambda self, x, y: twice(x.view(20, 6), self.other.weight) + y.view(20, 6),
    "read as a weight": lambda self, x, y: torch.nn.functional.linear(y, x[0, 1:]),
    "put together": lambda self, x, y: self.wide(x.reshape(4, 30)).unsqueeze(1) + y,
    "its own weight": lambda self, x, y: y * self.norm.weight,
    "its own bias": lambda self, x, y: y + self.norm.bias,
}


@pytest.mark.parametrize("way", ["symbolic", "islands"])
@pytest.mark.parametrize("also", READ.values(), ids=READ)
def test_what_something_else_reads_is_left(also, way):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear, self.other = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.wide = nn.Linear(30, 6)

        def forward(self, x):
            x = self.norm(x)
            return also(self, x, self.linear(x))

    model = seeded(Model())
    gm = quantized(model, way=way, rule=W8A8 | {"select": {"names": ["linear"]}})
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    message = (
        r"smooth_quant: none of 1 linear layers on quantized inputs can be smoothed \(the first is 'linear'\): the "
        "input must come from a norm's weight or a linear layer, and nothing but linear layers may read it"
    )
    with pytest.raises(PassError, match=message):
        smooth(gm, again=False)
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())


def test_of_two_that_could_take_the_scales_it_is_the_last():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale, self.linear = nn.Linear(6, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(torch.relu(self.first(x)) * self.scale)

    model = seeded(Scaled())
    with pytest.warns(UserWarning, match="1 of 2 linear layers on quantized inputs cannot be smoothed"):
        gm = smooth(quantized(model))
    assert torch.equal(gm.get_parameter("first.weight"), model.first.weight)
    factor = gm.get_parameter("scale") / model.scale
    torch.testing.assert_close(gm.get_parameter("linear.weight") * factor, model.linear.weight)
    assert (factor - 1).abs().max() > 0.1


def test_one_number_for_all_channels_takes_no_scales():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(1)), nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(x * self.scale)

    with pytest.raises(PassError, match="none of 1 linear layers"):
        smooth(quantized(seeded(Scaled())))


def test_a_tied_weight_is_left():
    model = seeded(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)))
    model[4].weight = model[0].weight
    with pytest.raises(PassError, match="none of 2 linear layers"):
        smooth(quantized(model))
