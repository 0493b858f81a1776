"""calibrate: ranges from any kind of data, and what it says when data is missing or broken."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxcompress.errors import NotReadyError
from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.nn import Choice, Quantizer
from fxcompress.passes import apply
from fxcompress.policies import Prune, Quantize

INPUTS = {"input": {"bits": 8}}
WEIGHTS = {"weight": {"bits": 8}}


class Net(nn.Module):
    """Two layers and a nonlinearity."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(torch.relu(self.drop(self.a(x))))


def quantized(*rules, model=None):
    torch.manual_seed(0)
    gm = capture(model or Net())
    apply(Quantize(rules=rules), gm)
    return gm


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 2, generator=generator) for _ in range(3)]


class Stream(IterableDataset):
    """Samples without a known number of them."""

    def __iter__(self):
        return iter(torch.cat(batches()))


@pytest.mark.parametrize(
    "data",
    [
        batches(),
        [(x, torch.zeros(4)) for x in batches()],
        [[x] for x in batches()],
        [{"x": x, "label": torch.zeros(4)} for x in batches()],
        DataLoader(torch.cat(batches()), batch_size=5),
        DataLoader(TensorDataset(torch.cat(batches()), torch.zeros(12)), batch_size=4),
        DataLoader(Stream(), batch_size=5),
        (x for x in batches()),
    ],
    ids=["tensors", "tuples", "lists", "dicts", "loader", "labelled loader", "stream", "generator"],
)
def test_any_data(data):
    gm = quantized(INPUTS)
    ranges = calibrate(gm, data)
    x = torch.cat(batches())
    assert ranges["x"] == (x.min().item(), x.max().item())
    assert ranges["relu"][0] == 0.0
    assert list(ranges) == ["x", "relu"]
    assert all(module.ready for module in gm.modules() if isinstance(module, Quantizer))


def test_activations_are_those_of_the_float_model_in_eval_mode():
    gm = quantized({"weight": {"bits": 2}, "input": {"bits": 2}})
    ranges = calibrate(gm, batches())
    x = torch.cat(batches())
    expected = torch.relu(torch.nn.functional.linear(x, gm.get_parameter("a.weight"), gm.get_parameter("a.bias")))
    assert ranges["relu"] == (expected.min().item(), pytest.approx(expected.max().item()))


def test_modes_come_back():
    gm = quantized(INPUTS).train()
    gm.get_submodule("drop").eval()
    calibrate(gm, batches())
    assert gm.training
    assert not gm.get_submodule("drop").training
    assert all(module.enabled for module in gm.modules() if isinstance(module, Quantizer))


def test_weights_need_no_data():
    gm = quantized(WEIGHTS)
    assert calibrate(gm, None) == {}
    expected = gm.get_parameter("a.weight").abs().amax(1) / 127
    torch.testing.assert_close(gm.get_submodule("a.weight_quantizer").scale, expected)


def test_a_masked_weight():
    gm = quantized({"weight": {"bits": 8, "symmetric": False, "per": "tensor"}})
    apply(Prune(rules=({"sparsity": 0.5},)), gm)
    calibrate(gm, None)
    weight = gm.get_parameter("a.weight") * gm.get_submodule("a.weight_mask").mask
    low, high = min(weight.min().item(), 0), max(weight.max().item(), 0)
    assert gm.get_submodule("a.weight_quantizer").scale.item() == pytest.approx((high - low) / 255)


def test_percentile_of_many_channels_equals_each_alone():
    model = nn.Sequential(nn.Embedding(1030, 8))
    gm = quantized({"weight": {"bits": 4, "observer": {"percentile": {"q": 80}}}}, model=model)
    calibrate(gm, None)
    scale = gm.get_submodule("0.weight_quantizer").scale
    rows = model[0].weight.detach().abs().sort(1).values
    # the 7th of 8 magnitudes is the first that 80% do not exceed; a bin is wider than that by 2 / 8192 of the largest
    assert ((scale * 7 - rows[:, 6]).abs() <= 3 / 8192 * rows[:, 7]).all()


def test_all_options_get_the_range():
    gm = quantized({"weight": {"bits": (2, 4, "float")}, "input": {"bits": (4, 8)}})
    calibrate(gm, batches())
    choice = gm.get_submodule("x_quantizer_choice")
    assert isinstance(choice, Choice)
    low, high = (option.scale * (2**option.bits - 1) for option in choice.options.values())
    torch.testing.assert_close(low, high)


def test_what_is_ready_stays():
    gm = quantized(INPUTS)
    first = calibrate(gm, batches())
    assert first
    assert calibrate(gm, None) == {}


def test_a_tied_weight_is_observed_once():
    model = Net()
    model.b.weight = model.a.weight
    gm = quantized(WEIGHTS, model=model)
    calibrate(gm, None)
    assert gm.get_submodule("a.weight_quantizer").ready


def test_missing_data():
    message = (
        r"step quantize needs data to calibrate 2 inputs \(the first is that of 'a'\): pass data=loader, any "
        "iterable of batches, or use a policy that quantizes weights only, such as 'w8'"
    )
    with pytest.raises(NotReadyError, match=message):
        calibrate(quantized(INPUTS), None)


def test_no_batch():
    with pytest.raises(NotReadyError, match="calibration needs data, but `data` yielded no batch"):
        calibrate(quantized(INPUTS), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_data_names_batch_and_layer(value):
    data = batches()
    data[2][1, 0] = value
    with pytest.raises(NotReadyError, match="calibration batch 2: the input of 'a' holds NaN or infinity"):
        calibrate(quantized(INPUTS), data)


def test_values_that_overflow_inside_name_the_layer():
    gm = quantized(INPUTS)
    with torch.no_grad():
        gm.get_parameter("a.weight").fill_(1e30)
    with pytest.raises(NotReadyError, match="calibration batch 1: the input of 'b' holds NaN or infinity"):
        calibrate(gm, [torch.ones(1, 2), torch.full((1, 2), 1e30)])


def test_a_broken_weight_names_the_layer():
    gm = quantized(WEIGHTS)
    with torch.no_grad():
        gm.get_parameter("b.weight")[0, 0] = float("nan")
    with pytest.raises(NotReadyError, match="the weight of 'b' holds NaN or infinity"):
        calibrate(gm, None)


def test_an_empty_batch():
    with pytest.raises(NotReadyError, match="calibration batch 0: the input of 'a' holds no values"):
        calibrate(quantized(INPUTS), [torch.ones(0, 2)])


def test_whole_numbers():
    class Shift(nn.Module):
        def forward(self, x):
            return x + x

    gm = quantized({"select": {"ops": ["add"]}} | INPUTS, model=Shift())
    with pytest.raises(
        NotReadyError, match=r"the input of 'add' is torch\.int64, not floating point; leave 'add' out"
    ):
        calibrate(gm, [torch.ones(3, dtype=torch.int64)])


def test_hooks_are_gone_after_an_error():
    gm = quantized(INPUTS)
    with pytest.raises(NotReadyError):
        calibrate(gm, [torch.full((1, 2), float("nan"))])
    assert not any(module._forward_pre_hooks for module in gm.modules())
