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
    assert ranges["x"] == {None: (x.min().item(), x.max().item())}
    assert ranges["relu"][None][0] == 0.0
    assert list(ranges) == ["x", "relu"]
    assert all(module.ready for module in gm.modules() if isinstance(module, Quantizer))


def test_activations_are_those_of_the_float_model_in_eval_mode():
    gm = quantized({"weight": {"bits": 2}, "input": {"bits": 2}})
    ranges = calibrate(gm, batches())
    x = torch.cat(batches())
    expected = torch.relu(torch.nn.functional.linear(x, gm.get_parameter("a.weight"), gm.get_parameter("a.bias")))
    assert ranges["relu"][None] == (expected.min().item(), pytest.approx(expected.max().item()))


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


class WidthOfBits:
    """An observer that answers with the bits of the quantizer."""

    def observe(self, x):
        pass

    def range(self):
        raise AssertionError("range_for is asked instead")

    def range_for(self, quantizer):
        return torch.full((1,), -1.0), torch.full((1,), float(quantizer.bits))


def test_each_option_of_an_input_has_the_range_for_its_bits():
    observer = f"{__name__}:WidthOfBits"
    gm = quantized({"input": {"bits": (4, "e4m3", "float", 8), "observer": observer}})
    ranges = calibrate(gm, batches())
    assert ranges["x"] == {"uint4": (-1.0, 4.0), "float8_e4m3": (-1.0, 8.0), "uint8": (-1.0, 8.0)}
    options = gm.get_submodule("x_quantizer_choice").options
    assert options["uint4"].scale.item() == pytest.approx(5 / 15)
    assert options["uint8"].scale.item() == pytest.approx(9 / 255)
    assert options["float8_e4m3"].scale.item() == pytest.approx(8 / 448)


def test_each_option_of_a_weight_has_its_own_layout():
    weight = {"bits": ("ternary", 4), "per": "group", "group_size": (2, 4)}
    model = nn.Sequential(nn.Linear(6, 3))
    gm = quantized({"weight": weight}, model=model)
    assert calibrate(gm, None) == {}
    rows = model[0].weight.detach()
    for size in (2, 4):
        parts = [part.abs() for part in rows.split(size, dim=1)]
        options = gm.get_submodule("0.weight_quantizer_choice").options
        expected = torch.stack([part.amax(1) for part in parts], 1) / 7
        torch.testing.assert_close(options[f"int4 g{size}"].scale, expected)
        kept = [part > 0.7 * part.mean(1, keepdim=True) for part in parts]
        means = [(part * one).sum(1) / one.sum(1) for part, one in zip(parts, kept, strict=True)]
        torch.testing.assert_close(options[f"ternary g{size}"].scale, torch.stack(means, 1))


def test_the_short_last_group_is_observed_without_padding():
    """With zeros in the row, half of it would be below any percentile."""
    weight = {"bits": 4, "per": "group", "group_size": 100, "observer": {"percentile": {"q": 51}}}
    model = nn.Sequential(nn.Linear(102, 1))
    gm = quantized({"weight": weight}, model=model)
    calibrate(gm, None)
    last = gm.get_submodule("0.weight_quantizer").scale[0, 1] * 7
    torch.testing.assert_close(last, model[0].weight[0, 100:].detach().abs().max(), rtol=1e-3, atol=0)


def test_codebooks_are_fitted_to_the_masked_weight():
    gm = quantized({"weight": {"bits": 2, "codebook": "kmeans"}})
    apply(Prune(rules=({"sparsity": 0.5},)), gm)
    calibrate(gm, None)
    quantizer, mask = gm.get_submodule("a.weight_quantizer"), gm.get_submodule("a.weight_mask").mask
    masked = gm.get_parameter("a.weight") * mask
    assert torch.equal(quantizer(masked), masked)  # three different values
    assert (quantizer.levels == 0).any()


def test_dynamic_inputs_need_no_data():
    gm = quantized({"weight": {"bits": 4}, "input": {"bits": 8, "dynamic": True, "per": "token"}})
    assert calibrate(gm, None) == {}
    assert gm(torch.randn(3, 2)).shape == (3, 2)


def test_a_forgotten_range_is_found_again():
    gm = quantized(INPUTS | WEIGHTS)
    calibrate(gm, batches())
    found = [module for module in gm.modules() if isinstance(module, Quantizer)]
    before = [module.scale.clone() for module in found]
    for module in found:
        module.forget_range()
    ranges = calibrate(gm, [2 * x for x in batches()])
    assert ranges["x"][None] == (2 * torch.cat(batches()).min(), 2 * torch.cat(batches()).max())
    x_scale = next(place for place, one in enumerate(found) if one is gm.get_submodule("x_quantizer"))
    torch.testing.assert_close(found[x_scale].scale, 2 * before[x_scale])


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
